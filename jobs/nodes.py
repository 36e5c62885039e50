"""The nodes of one attempt agree on its rounds, through a store on the first of them.

Each node has an agent. That of the first node opens the attempt and decides who takes part in a round, when
it is over and what comes next; the others follow what it writes - numbers, never clocks that two machines
would have to share.

    key           written by     meaning
    attempt       the first      number of the attempt
    round         the first      the round that is being gathered, or is under way
    ready/K       node K         the round it wants to take part in next
    beat/K        node K         grows as long as its agent lives
    unfit/K       node K         why it takes no part: its pre-flight
    N/members     the first      nodes of round N, in the order of their ranks
    N/over        the first      whoever still works on round N is to end it
    N/report/K    node K         how its part of round N ended
    N/verdict     the first      what comes next
    bye/K         node K         it has read the last verdict, or leaves without
    N/torch       torch          what its agents tell each other of round N
    N/workers     torch          where the workers of round N find each other

torch's rendezvous of elastic agents rests on the same kind of store. But a node that comes late makes it
start the workers of a round again behind our back, and it does not know what a round was.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from jobs.outcomes import Cause, Outcome
from jobs.slurm import Execution, has_node, num_nodes

JOIN_TIMEOUT_S = 120.0  # for the nodes of a job to come together, and for too few to become enough
_BEAT_S = 1.0
_DEAD_AFTER_S = 6.0  # without a beat, by the clock of the first node
_LAST_CALL_S = 2.0  # for nodes that nothing was heard of
_GOODBYE_S = 5.0
_ASK_SLURM_S = 10.0  # between two questions how many nodes the job still has
_CONNECT_S = 2.0  # to a node without power, which does not even refuse
_POLL_S = 0.1
_LOOK_S = 0.5  # how often a round that is under way is looked at


class RoundOverError(Exception):
    """The round has ended elsewhere; what this node still does for it is in vain."""


class FirstNodeLostError(RuntimeError):
    """SLURM has taken the node that decides from the job."""


class FirstNodeSilentError(RuntimeError):
    """The node that decides does not answer."""


class TooFewNodesError(Exception):
    """Fewer nodes are left than the training needs."""


@dataclass
class Report:
    """How one node's part of a round ended.

    Attributes:
        rank: The worker that was seen to end first; -1 where the round was ended from outside.
        exit_code: Of that worker; negative for a signal.
        outcomes: What the workers left behind.
        silent: Workers that left nothing, and did not answer when they were told to end.
    """

    rank: int
    exit_code: int
    outcomes: list[Outcome] = field(default_factory=list)
    silent: list[int] = field(default_factory=list)

    def to_json(self) -> str:
        """As it is put into the store."""
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: bytes) -> Report:
        """What another node put into the store."""
        document = json.loads(text)
        outcomes = [
            Outcome(outcome["exit_code"], Cause(outcome["cause"]), outcome["message"])
            for outcome in document["outcomes"]
        ]
        return cls(document["rank"], document["exit_code"], outcomes, document["silent"])


class Nodes(ABC):
    """This node's side of the agreement.

    Args:
        here: This execution.
        store: On the first node.
        while_waiting: Called again and again, also while workers are watched; may raise to end that.
    """

    def __init__(self, here: Execution, store: TCPStore, while_waiting: Callable[[], None]) -> None:
        self.here = here
        self.while_waiting = while_waiting
        self.address = store.host, store.port
        self._store = store

    def rendezvous(self, number: int, members: list[int]) -> RendezvousHandler:
        """What torch's agent needs to know to start this node's workers of a round."""
        return _Agreed(self, number, members)

    def store_of(self, number: int) -> Store:
        """The part of the store that belongs to the process group of a round."""
        return PrefixStore(f"{number}/torch", self._store)

    @abstractmethod
    def look(self, number: int, members: list[int]) -> None:
        """Called again and again while this node works on a round.

        Raises:
            RoundOverError: If it has to stop.
        """

    def _wait(self) -> None:
        self.while_waiting()
        time.sleep(_POLL_S)

    def _set(self, key: str, value: str) -> None:
        self._store.set(key, value)

    def _has(self, key: str) -> bool:
        return bool(self._store.check([key]))


class First(Nodes):
    """The node that decides; the only one of a job on one node.

    Args:
        here: This execution.
        attempt: Number of the attempt.
        in_order: Exit code of a worker that ended in order.
        on_unfit: Told once of each node that takes no part, and why, while no round is under way.
        while_waiting: See `Nodes`.
    """

    def __init__(
        self,
        here: Execution,
        attempt: int,
        *,
        in_order: int,
        on_unfit: Callable[[int, str], None] = lambda node, what: None,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        host, port = _endpoint(here)
        store = TCPStore(
            host, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=JOIN_TIMEOUT_S)
        )
        super().__init__(here, store, while_waiting)
        self._in_order = in_order
        self._on_unfit = on_unfit
        self._unfit: dict[int, str] = {}
        self._beats: dict[int, tuple[int, float]] = {}  # newest beat of a node, and when it was first seen
        self._members = list(range(here.num_nodes))
        self._next_look = 0.0
        self.stop_round = Path()  # to be made when the workers of a round shall stop so that a node can join
        self._set("round", "0")
        self._set("attempt", str(attempt))

    def gather(self, number: int, minimum: int) -> list[int]:
        """Decide who takes part in a round: everyone, or who is still there.

        Raises:
            TooFewNodesError: If they stay too few.
        """
        self._set("round", str(number))
        begun, asked_after_s = time.monotonic(), _ASK_SLURM_S
        while True:
            waited_s = time.monotonic() - begun
            self._learn_unfit()
            members = [0, *(node for node in self._others() if self._wants(node) == number)]
            missing = [node for node in self._members if node not in members and node not in self._unfit]
            patience_s = JOIN_TIMEOUT_S if number == 0 or len(members) < minimum else _LAST_CALL_S
            if number and any(self._is_alive(node) for node in missing):
                patience_s = JOIN_TIMEOUT_S
            if not missing or waited_s > patience_s:
                break
            if waited_s > asked_after_s:
                asked_after_s = waited_s + _ASK_SLURM_S
                left = num_nodes(self.here)  # SLURM never gives a lost node back to the same job
                # An agent that was started again knows of no loss, and would wait for all.
                if left < minimum or (number == 0 and minimum <= len(members) >= left):
                    break
            self._wait()
        if len(members) < minimum:
            why = [f"node {node} failed its pre-flight: {what}" for node, what in self._unfit.items()]
            few = f"{len(members)} nodes are left, and {minimum} are needed"
            raise TooFewNodesError("; ".join([few, *why]))
        self._members = members
        self._set(f"{number}/members", json.dumps(members))
        return members

    def look(self, number: int, members: list[int]) -> None:
        """End this node's part if that of another one has failed, or its agent is gone."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        if any(self._wants(node) > number for node in self._others() if node not in members):
            self.stop_round.touch()
        for node in members[1:]:
            report = self._report_of(number, node)
            if not self._is_at_work(number, node) if report is None else report.exit_code != self._in_order:
                raise RoundOverError

    def collect(self, number: int, members: list[int], own: Report) -> tuple[list[Report], list[int]]:
        """How each part of a round ended, and the nodes that could not tell any more."""
        reports, lost = {0: own}, []
        for node in members[1:]:
            while (report := self._report_of(number, node)) is None and self._is_at_work(number, node):
                if any(each.exit_code != self._in_order for each in reports.values()):
                    self._set(f"{number}/over", "1")
                self._wait()
            report = report or self._report_of(number, node)
            if report is None:
                lost.append(node)
            else:
                reports[node] = report
        return list(reports.values()), lost

    def again(self, number: int) -> None:
        """Tell all that another round follows this one."""
        self._set(f"{number}/verdict", json.dumps(None))

    def end(self, number: int, outcome: Outcome) -> None:
        """Tell all how the attempt ended, and wait until they have read it: the store ends with this node."""
        self._set(f"{number}/verdict", json.dumps(asdict(outcome)))
        deadline = time.monotonic() + _GOODBYE_S
        for node in self._others():
            while self._is_alive(node) and not self._has(f"bye/{node}") and time.monotonic() < deadline:
                time.sleep(_POLL_S)

    def _learn_unfit(self) -> None:
        for node in self._others():
            if node not in self._unfit and self._has(f"unfit/{node}"):
                self._unfit[node] = self._store.get(f"unfit/{node}").decode()
                self._on_unfit(node, self._unfit[node])

    def _others(self) -> range:
        return range(1, self.here.num_nodes)

    def _wants(self, node: int) -> int:
        return int(self._store.get(f"ready/{node}")) if self._has(f"ready/{node}") else -1

    def _report_of(self, number: int, node: int) -> Report | None:
        key = f"{number}/report/{node}"
        return Report.of_json(self._store.get(key)) if self._has(key) else None

    def _is_at_work(self, number: int, node: int) -> bool:
        """Whether a node will still tell how its part of a round ended; not if its agent was started anew."""
        return self._is_alive(node) and self._wants(node) <= number

    def _is_alive(self, node: int) -> bool:
        """Whether its agent has given a sign within the last seconds."""
        if not self._has(f"beat/{node}"):
            return False
        now, beat = time.monotonic(), int(self._store.get(f"beat/{node}"))
        if self._beats.get(node, (-1, 0.0))[0] != beat:
            self._beats[node] = (beat, now)
        return now - self._beats[node][1] < _DEAD_AFTER_S


class Follower(Nodes):
    """Every other node.

    Args:
        here: This execution.
        while_waiting: See `Nodes`.
        has_ended: Whether the first node has left word of its end; asked while it does not answer.
    """

    def __init__(
        self,
        here: Execution,
        *,
        while_waiting: Callable[[], None] = lambda: None,
        has_ended: Callable[[], bool] = lambda: False,
    ) -> None:
        host, port = _endpoint(here)
        _until_it_answers(here, host, port, while_waiting, has_ended)
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=JOIN_TIMEOUT_S))
        super().__init__(here, store, while_waiting)
        self.attempt = int(self._store.get("attempt"))
        self._next_look = 0.0
        self._closed = threading.Event()
        self._store.add(f"beat/{here.node}", 1)  # alive before it is ready
        # A connection of its own: that of this thread may be waiting.
        beats = threading.Thread(target=self._beat, args=[self._store.clone()], name="beats", daemon=True)
        beats.start()
        # A round that has its members goes on without this node, even if it was one of them before it died.
        current = int(self._store.get("round"))
        self._wanted = current + 1 if self._has(f"{current}/members") else current

    def close(self) -> None:
        """Give no further sign."""
        self._closed.set()

    def stay_out(self, what: str) -> Outcome:
        """Tell why this node takes no part, and wait for the end of the attempt."""
        self._set(f"unfit/{self.here.node}", what)
        while (outcome := self._last_verdict()) is None:
            self._wait()
        return outcome

    def wait_for_round(self) -> tuple[int, list[int]] | Outcome:
        """The next round that this node takes part in, and all nodes that do; or how the attempt ended."""
        while True:
            self._set(f"ready/{self.here.node}", str(self._wanted))
            while not self._has(f"{self._wanted}/members"):
                self._wait()
                if (outcome := self._last_verdict()) is not None:
                    return outcome
            number, self._wanted = self._wanted, self._wanted + 1
            members = json.loads(self._store.get(f"{number}/members"))
            if self.here.node in members:
                return number, members

    def look(self, number: int, members: list[int]) -> None:
        """End this node's part if the first one says so; fails if that is gone."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        if self._has(f"{number}/over"):
            raise RoundOverError

    def report(self, number: int, report: Report) -> None:
        """Tell how this node's part of a round ended."""
        self._set(f"{number}/report/{self.here.node}", report.to_json())

    def verdict(self, number: int) -> Outcome | None:
        """What comes next: the outcome of the attempt, or another round."""
        key = f"{number}/verdict"
        while not self._has(key):
            self._wait()
        document = json.loads(self._store.get(key))
        if document is None:
            return None
        self.leave()
        return Outcome(document["exit_code"], Cause(document["cause"]), document["message"])

    def leave(self) -> None:
        """The first node need not wait for this one when it ends the attempt."""
        self._set(f"bye/{self.here.node}", "1")

    def _last_verdict(self) -> Outcome | None:
        """The outcome of an attempt that ended while this node waited for a round."""
        current = int(self._store.get("round"))
        return self.verdict(current) if self._has(f"{current}/verdict") else None

    def _beat(self, store: Store) -> None:
        with suppress(DistError, RuntimeError):  # the store is gone, as the thread that needs it will see
            while not self._closed.wait(_BEAT_S):
                store.add(f"beat/{self.here.node}", 1)


class _Agreed(RendezvousHandler):
    """A rendezvous whose members have been agreed on."""

    def __init__(self, nodes: Nodes, number: int, members: list[int]) -> None:
        self._nodes = nodes
        self._number = number
        self._members = members

    def get_backend(self) -> str:
        return "agreed"

    def get_run_id(self) -> str:
        return str(self._number)

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        rank = self._members.index(self._nodes.here.node)
        store = self._nodes.store_of(self._number)
        return RendezvousInfo(store, rank, len(self._members), RendezvousStoreInfo(*self._nodes.address))

    def num_nodes_waiting(self) -> int:
        """Asked for by torch's agent again and again while all workers are well."""
        self._nodes.while_waiting()
        self._nodes.look(self._number, self._members)
        return 0

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """The first node decides what ends."""

    def shutdown(self) -> bool:
        return True


def store_of_workers(number: int) -> Store:
    """What the workers of a round find each other by; called in one, for its agent put the address there."""
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    # Under a name of their own: what the workers of another round left leads nowhere (pytorch#167288).
    return PrefixStore(f"{number}/workers", store)


def _until_it_answers(
    here: Execution, host: str, port: int, while_waiting: Callable[[], None], has_ended: Callable[[], bool]
) -> None:
    """Wait for the store of the first node, which torch would do without a word to anybody.

    Raises:
        FirstNodeLostError: If SLURM has taken that node from the job.
        FirstNodeSilentError: If it has ended, or stays silent.
    """
    begun, asked_after_s = time.monotonic(), _ASK_SLURM_S
    while True:
        with suppress(OSError), socket.create_connection((host, port), timeout=_CONNECT_S):
            return
        waited_s = time.monotonic() - begun
        if waited_s > JOIN_TIMEOUT_S:
            raise FirstNodeSilentError(f"{host} has not answered for {waited_s:.0f} s")
        if waited_s > asked_after_s:
            asked_after_s = waited_s + _ASK_SLURM_S
            if not has_node(here, host):
                raise FirstNodeLostError(f"SLURM has taken {host} from the job")
            if has_ended():
                raise FirstNodeSilentError(f"{host} has ended")
        while_waiting()
        time.sleep(_POLL_S)


def _endpoint(here: Execution) -> tuple[str, int]:
    """Where the store is: on the first node of the job; on a job of one node any free port will do."""
    if here.num_nodes == 1:
        return "localhost", 0
    from submitit.slurm.slurm import _parse_node_list

    # A port of its own for every execution: what is left of the one before must not answer. Below 32768, from
    # where Linux gives ports to whoever connects.
    number = int(here.job_id.partition("_")[0]) * 7 + here.restart
    return _parse_node_list(os.environ["SLURM_JOB_NODELIST"])[0], 20_000 + number % 12_000
