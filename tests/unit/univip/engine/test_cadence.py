"""The interval between checkpoints against its closed form, and where it is chosen and kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from univip.checkpoint.manager import CheckpointManager, Cost
from univip.config import CheckpointConfig
from univip.engine import cadence
from univip.engine.cadence import TRIAL_STEPS, Cadence, interval_s
from univip.engine.distributed import Group
from univip.resilience.ledger import Ledger

DAY_S = 86400.0


def lost_share(interval: float, cost: float, mtbf: float) -> float:
    """Share of the time that saves take and failures throw away: half an interval each time."""
    return cost / interval + interval / 2 / mtbf


@pytest.mark.parametrize("blocked_s", [0.01, 0.1, 2.0])
@pytest.mark.parametrize("mtbf_s", [3600.0, DAY_S, 10 * DAY_S])
def test_no_other_interval_loses_less(blocked_s: float, mtbf_s: float) -> None:
    best = interval_s(Cost(2, blocked_s, 0.1), mtbf_s)

    least = min(lost_share(best * (0.5 + number / 100), blocked_s, mtbf_s) for number in range(150))
    assert lost_share(best, blocked_s, mtbf_s) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize(
    ("cost", "mtbf_s", "expected"),
    [
        (Cost(2, 0.5, 1.0), 10_000.0, 100.0),  # sqrt(2 x 0.5 x 10000)
        (Cost(2, 0.5, 30.0), 10_000.0, 300.0),  # a write may take a tenth of the time
        (Cost(2, 0.5, 1.0), 1e12, 3600.0),  # a failure may cost an hour
        (Cost(2, 0.5, 500.0), 1e12, 5000.0),  # where a write does not last longer still
        (Cost(2, 0.0, 0.2), 10_000.0, 2.0),
    ],
)
def test_the_interval_is_young_s_within_what_writes_and_failures_may_cost(
    cost: Cost, mtbf_s: float, expected: float
) -> None:
    assert interval_s(cost, mtbf_s) == pytest.approx(expected)


@dataclass(frozen=True)
class Follower(Group):
    """Another rank, which hears what rank 0 has said."""

    rank: int = 1
    size: int = 2
    said: list[Any] = field(default_factory=list)

    def broadcast(self, value: Any) -> Any:
        assert value is None
        return self.said.pop(0)


class Events:
    def __init__(self) -> None:
        self.events: list[dict[str, object]] = []

    def record(self, kind: str, **fields: object) -> None:
        self.events.append({"kind": kind, **fields})


def make(folder: Path, group: Group, every_steps: int = 0) -> Cadence:
    made = Cadence(
        CheckpointConfig(every_steps=every_steps, mtbf_h=1.0),
        group,
        CheckpointManager(folder / "checkpoints"),
        Ledger(folder / "ledger.jsonl"),
        Events(),
    )
    made.begin()
    return made


def due(cadence: Cadence, start: int, stop: int) -> list[int]:
    return [data_step for data_step in range(start, stop) if cadence.is_due(data_step)]


def test_a_fixed_interval_asks_nobody(tmp_path: Path) -> None:
    assert due(make(tmp_path, Follower(), every_steps=7), 1, 30) == [7, 14, 21, 28]


def measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, start: int, blocked_s: list[float]
) -> tuple[Cadence, list[int]]:
    """One process from a data step to the next choice: a data step takes 0.1 s, its saves block so long."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(cadence, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    made = make(folder, Group())
    saved: list[int] = []
    for data_step in range(start, start + 10 * TRIAL_STEPS):
        is_due = made.is_due(data_step)
        if made._chosen:
            break
        if is_due:
            saved.append(data_step)
            made.manager.cost = Cost(len(saved), blocked_s[len(saved) - 1], 0.01)
        clock.now += 0.1
    return made, saved


@pytest.mark.parametrize("start", [0, 350])
def test_the_interval_is_chosen_by_the_second_save_of_a_process_and_the_steps_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    # The first save of a process touches fresh memory and says little.
    made, saved = measured(tmp_path, monkeypatch, start=start, blocked_s=[9.0, 0.02])

    (record,) = made.ledger.read()
    first = -(-start // TRIAL_STEPS) * TRIAL_STEPS
    assert saved == [first, first + TRIAL_STEPS]
    # sqrt(2 x 0.02 s x 3600 s) = 12 s.
    assert (record["kind"], record["data_step"], record["every_steps"]) == ("cadence", first + 200, 120)
    assert (record["blocked_s"], record["background_s"], record["mtbf_h"]) == (0.02, 0.01, 1.0)
    assert record["step_s"] == pytest.approx(0.1)
    assert isinstance(made.observer, Events)
    assert [each["every_steps"] for each in made.observer.events] == [120]


def test_a_later_process_and_every_other_rank_save_where_the_ledger_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = measured(tmp_path, monkeypatch, start=0, blocked_s=[9.0, 0.02])
    later, follower = make(tmp_path, Group()), make(tmp_path, Follower(said=[[200, 120]]))
    later.manager.cost = Cost(7, 5.0, 5.0)

    # Before the choice as it was then, for a rollback may lead there.
    expected = [100, 240, 360, 480]
    assert due(first, 1, 500) == due(later, 1, 500) == due(follower, 1, 500) == expected
    assert sum(1 for _ in later.ledger.read()) == 1


def test_every_rank_hears_of_the_choice_at_the_data_step_it_is_made(tmp_path: Path) -> None:
    follower = make(tmp_path, Follower(said=[None, None, [200, 150]]))

    assert due(follower, 1, 500) == [100, 300, 450]


def test_a_rollback_starts_the_measuring_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cadence, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    made = make(tmp_path, Group())
    made.manager.cost = Cost(2, 0.02, 0.01)
    assert made.is_due(100)
    made.begin()

    assert made.is_due(100)  # else 0 data steps would have been measured

    assert list(made.ledger.read()) == []
