"""Runs to break: one data set with its boxes, and as many tiny runs on it as a campaign needs.

A run in process goes through the function that a worker calls (`jobs.train.train_rank`), with an observer
that remembers instead of a journal. A run that is never disturbed is made once for each configuration, and
its digest is what the others are held against.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch

from jobs import proposals, train
from jobs.audit import audit
from jobs.compose import compose
from jobs.config import Config, RunHeader, RunKind, load, store
from univip.checkpoint import layout
from univip.engine.distributed import Group
from univip.engine.reporting import Totals
from univip.engine.trainer import Ending
from univip.errors import UnivipError
from univip.observe import NullObserver
from univip.resilience import faults
from univip.resilience.ledger import Ledger

PLANTED = "planted"  # folder of the markers, in a run
# Small photographs and a tiny network; nothing here but sizes, and budgets that a campaign would spend.
_SMALL = (
    "debug=small",
    "data.workers=0",
    "data.split=train",
    "proposals.processes=1",
    "proposals.engine=opencv",  # not to compile our own for a minute of work
    "proposals.min_sizes=[24,36]",
    "views.min_overlap=24",
    "train.threads=1",
    "resilience.skip_window_steps=1",
    "resilience.max_rollbacks=1000",
    "resilience.max_calm_rollbacks=1000",
    "resilience.calm_steps=0",
    "resilience.max_capsules=1000",
    "resilience.max_restarts=1000",
)
IN_PROCESS_TARGET = 16
_IN_PROCESS = (
    "views.scene_size=32",
    "model.hidden_dim=16",
    "model.embedding_dim=8",
    "train.global_batch=4",
    f"train.max_steps={IN_PROCESS_TARGET}",
    "checkpoint.every_steps=2",
    "resilience.healthy_after_steps=2",
)
_SHARED = "cut-off"
_ROUNDS = 5  # after an error in process, as the agent would begin new ones
# What the run does to itself; a control run has none of them.
ACTIONS = ("skip", "rollback", "restart", "corruption", "image_failed")


class Died(BaseException):
    """Stands for a death that nothing may catch."""


class Step(NamedTuple):
    """One data step that was done."""

    time: float  # Unix time
    done: int
    is_good: bool
    round: tuple[int, int]  # attempt, and round within it


class Losses(TypedDict):
    """Fields of a `Result`."""

    steps_lost: int
    samples_lost: int
    samples_wrong: int


@dataclass
class Told:
    """An observer that remembers what the engine told."""

    records: list[dict[str, Any]] = field(default_factory=list)
    on_record: Callable[[dict[str, Any]], None] = lambda record: None

    def record(self, kind: str, **fields: object) -> None:
        """Take one event."""
        self.records.append({"kind": kind, "time": time.time(), **fields})
        self.on_record(self.records[-1])

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Records of one kind."""
        return [record for record in self.records if record["kind"] == kind]


class Lab:
    """A folder of runs on one data set, whose boxes all of them share.

    Args:
        folder: Of the campaign.
        photographs: The data set, laid out as COCO, its split `train`.
        overrides: Of the user; the few that a trial needs to be itself come after them.
    """

    def __init__(self, folder: Path, photographs: Path, overrides: Sequence[str] = ()) -> None:
        self.runs = folder / "runs"
        self._overrides = [*_SMALL, f"data.root='{photographs}'", *overrides, f"paths.runs='{self.runs}'"]
        self._numbers = itertools.count()
        self.photographs = photographs
        self.boxes = self.runs / "boxes"
        self.compose = cache(self._compose)
        if self.runs.exists():
            shutil.rmtree(self.runs)  # of trials that did not end; their results are elsewhere
        self.boxes.mkdir(parents=True)
        config = self.compose()
        index = proposals.prepare(config, self.boxes)
        for shard in range(proposals.num_shards(config, self.boxes)):
            proposals.run_shard(config, self.boxes, shard, NullObserver())
        proposals.merge(config, self.boxes)
        self.header = RunHeader(
            id="", kind=RunKind.train, fingerprint=index.fingerprint, num_images=len(index), proposals="boxes"
        )
        self.calm = cache(self._calm)
        self.cut_off = cache(self._cut_off)

    def _compose(self, *more: str) -> Config:
        return compose([*self._overrides, *more])

    def new(self, name: str, *more: str) -> Path:
        """A run that was submitted and not started."""
        run_dir = self._free(name)
        run_dir.mkdir()
        store(self.compose(*more), replace(self.header, id=run_dir.name), run_dir)
        return run_dir

    def copy(self, source: Path, name: str) -> Path:
        """Another run in the state that one is in."""
        return Path(shutil.copytree(source, self._free(name)))

    def _free(self, name: str) -> Path:
        return self.runs / f"{name}-{next(self._numbers):06d}"

    def clear(self, kept: set[Path]) -> None:
        """Remove what a trial made, but for what others are copied from."""
        for path in set(self.runs.iterdir()) - kept:
            if not path.name.startswith(_SHARED):
                shutil.rmtree(path)

    # --- in process
    # -----------------------------------------------------------------------------------------------

    def in_process(self, name: str, *more: str) -> Path:
        """A run that was submitted and is to be trained by `train`."""
        return self.new(name, *_IN_PROCESS, *more)

    def train(self, run_dir: Path, told: Told, *, plant: str = "") -> Ending:
        """Train a run in this process, to its end or its death."""
        config = load(run_dir)
        torch.set_num_threads(config.train.threads)
        with _planted(plant):
            return train.train_rank(
                config,
                run_dir,
                group=Group(),
                observer=told,
                stop_requested=lambda: False,
                still_owner=lambda: True,
                totals=Totals(),
                on_hang=lambda reason: None,  # a slow machine; nothing in process hangs on purpose
                place={"attempt": 1, "round": 0},
            )

    def finish(self, run_dir: Path, told: Told, *, plant: str = "") -> list[str]:
        """Train to the end, with a new round after each error; returns the errors."""
        errors: list[str] = []
        for _ in range(_ROUNDS):
            try:
                self.train(run_dir, told, plant=plant)
            except (UnivipError, OSError) as error:
                errors.append(str(error))
            else:
                return errors
        raise UnivipError(f"{_ROUNDS} rounds ended with an error; the last: {errors[-1]}", where=str(run_dir))

    def _calm(self, *more: str) -> str:
        """Digest of the run that nothing happens to."""
        run_dir = self.in_process("calm", *more)
        self.train(run_dir, Told())
        return digest(run_dir)

    def _cut_off(self, data_step: int, *more: str) -> Path:
        """A run that died right after a data step, its checkpoints written; to be copied."""
        run_dir = self.in_process(_SHARED, *more)

        def die(record: dict[str, Any]) -> None:
            if record["kind"] == "step" and record["data_step"] == data_step:
                raise Died

        try:
            self.train(run_dir, Told(on_record=die))
        except Died:
            return run_dir
        raise AssertionError("it did not die")


@contextmanager
def _planted(plant: str) -> Iterator[None]:
    before = os.environ.get(faults.VARIABLE)
    os.environ[faults.VARIABLE] = plant
    try:
        yield
    finally:
        del os.environ[faults.VARIABLE]
        if before is not None:
            os.environ[faults.VARIABLE] = before


def digest(run_dir: Path) -> str:
    """Of the newest checkpoint."""
    checkpoints = run_dir / "checkpoints"
    return layout.digest(checkpoints / layout.name_of(layout.data_steps(checkpoints)[-1]))


def decided(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Records of one kind in the ledger."""
    return [record for record in Ledger(run_dir / "ledger.jsonl").read() if record["kind"] == kind]


def steps_of(records: Sequence[dict[str, Any]]) -> list[Step]:
    """The data steps that records tell of, in order of time."""
    steps = [
        Step(
            each["time"],
            each["data_step"],
            math.isfinite(float(each["loss"])),
            (each.get("attempt", 1), each.get("round", 0)),
        )
        for each in records
        if each["kind"] == "step"
    ]
    return sorted(steps)


def seconds_to_good(steps: Sequence[Step], since: Sequence[float]) -> list[float]:
    """From each of these moments to the next good step."""
    found = []
    for moment in since:
        after = [step.time for step in steps if step.is_good and step.time > moment]
        found += [after[0] - moment] if after else []
    return found


def proved(run_dir: Path, steps: Sequence[Step]) -> Losses:
    """What the audit says of a run, and how many steps were lost, as fields of a `Result`."""
    found = audit(run_dir)
    left_out = sum(each["stop"] - each["start"] for each in found["lost"])
    again = len(steps) - len({step.done for step in steps})
    return {
        "steps_lost": left_out + again,
        "samples_lost": left_out * found["global_batch"],
        "samples_wrong": (len(found["wrong"]) + len(found["unexplained"])) * found["global_batch"],
    }
