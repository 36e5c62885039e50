"""Did every sample train the network exactly once in each epoch? The sample log, held against the plan.

The plan of an epoch is a permutation of all images. So if every data step up to the newest checkpoint either
was applied once, with the samples that the plan gives it, or was left out by a decision in the ledger, then
no sample was repeated, and those that were lost are known with the reason.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.config import INDEX_NAME, Config, RunKind, data_dir, load, load_header
from univip.checkpoint import layout
from univip.data.images import ImageIndex
from univip.data.marks import add_marks, mark_of_samples, mark_of_views
from univip.data.plan import SamplePlan
from univip.engine import sample_log
from univip.engine.sample_log import Marks
from univip.errors import CheckpointError, ConfigError, DataError
from univip.resilience.ledger import Ledger


@dataclass(frozen=True)
class Lost:
    """Data steps [start, stop) that were left out for one reason."""

    start: int
    stop: int
    why: str


@dataclass(frozen=True)
class Audit:
    """What came of the data steps before the newest checkpoint.

    Attributes:
        data_steps: That many were audited.
        applied: Of these, once and with the planned samples.
        lost: Left out, by decision.
        wrong: Applied with other samples than planned.
        unexplained: Neither applied nor left out by decision.
        whole_epochs: Begun and ended within the audited steps, every sample seen exactly once.
        lost_by_epoch: Samples lost, where there are any.
        views_checked: Data steps whose views were made again from the photographs.
        views_wrong: Of these, with another result.
    """

    data_steps: int
    global_batch: int
    num_images: int
    applied: int
    lost: list[Lost]
    wrong: list[int]
    unexplained: list[int]
    whole_epochs: int
    lost_by_epoch: dict[int, int]
    views_checked: int
    views_wrong: list[int]

    @property
    def is_proved(self) -> bool:
        """Whether everything is explained."""
        return not (self.wrong or self.unexplained or self.views_wrong)


def audit(run_dir: Path, *, views: int = 0) -> dict[str, Any]:
    """Audit a run up to its newest checkpoint.

    Args:
        run_dir: A training run.
        views: Make the views of that many data steps again, from the photographs.

    Returns:
        The `Audit` as JSON, and `is_proved`.

    Raises:
        ConfigError: If the run trains nothing.
        CheckpointError: If it has no checkpoint yet.
        DataError: If it has no sample log, or its index is of other photographs.
    """
    header, config = load_header(run_dir), load(run_dir)
    if header.kind is not RunKind.train:
        raise ConfigError(
            f"run `{run_dir.name}` must be a training run to be audited, but only makes boxes.",
            where=str(run_dir),
            fix="univip status --all  # names the training runs",
        )
    data_steps = layout.data_steps(run_dir / "checkpoints")
    if not data_steps:
        raise CheckpointError("the run has no checkpoint yet.", where=str(run_dir / "checkpoints"))
    log = run_dir / sample_log.FILE_NAME
    if not log.exists():
        raise DataError(
            "the run must have a sample log to be audited, but has none.",
            where=str(log),
            fix="only runs of a version that writes it can be audited",
        )
    index = ImageIndex.open(data_dir(run_dir) / INDEX_NAME)
    if index.fingerprint != header.fingerprint:
        raise DataError("the index must be of the photographs of this run, but is not.", where=str(run_dir))
    found = _compare(config, run_dir, index, sample_log.read(log), data_steps[-1], views)
    return {**asdict(found), "is_proved": found.is_proved}


def _compare(
    config: Config, run_dir: Path, index: ImageIndex, marks: dict[int, Marks], done: int, views: int
) -> Audit:
    batch = config.train.global_batch
    plan = SamplePlan(len(index), batch, config.train.seed)
    reasons = _reasons(Ledger(run_dir / "ledger.jsonl"))
    applied: list[int] = []
    wrong: list[int] = []
    left_out: list[int] = []
    for data_step in range(done):
        if data_step not in marks:
            left_out.append(data_step)
            continue
        epochs, rows = plan.batch(data_step)
        is_right = marks[data_step].samples == mark_of_samples(epochs, index.ids[rows])
        (applied if is_right else wrong).append(data_step)
    lost = [data_step for data_step in left_out if data_step in reasons]
    missing = Counter[int]()
    for data_step in {*left_out, *wrong}:
        samples = np.arange(data_step * batch, (data_step + 1) * batch)
        missing.update((samples // len(index)).tolist())
    checked = sorted(random.Random(0).sample(applied, min(views, len(applied))))
    return Audit(
        data_steps=done,
        global_batch=batch,
        num_images=len(index),
        applied=len(applied),
        lost=_stretches((data_step, reasons[data_step]) for data_step in lost),
        wrong=wrong,
        unexplained=[data_step for data_step in left_out if data_step not in reasons],
        whole_epochs=sum(epoch not in missing for epoch in range(done * batch // len(index))),
        lost_by_epoch=dict(sorted(missing.items())),
        views_checked=len(checked),
        views_wrong=_wrong_views(config, run_dir, plan, {step: marks[step].views for step in checked}),
    )


def _reasons(ledger: Ledger) -> dict[int, str]:
    """Why data steps were left out, by data step."""
    reasons: dict[int, str] = {}
    for record in ledger.read():
        if record["kind"] == "skip":
            reasons[record["data_step"]] = f"skipped: {record.get('what', '')}"
        elif record["kind"] == "rollback":
            for data_step in range(*record["window"]):
                reasons[data_step] = f"rollback at {record['at']}: {record.get('what', '')}"
    return reasons


def _stretches(lost: Iterable[tuple[int, str]]) -> list[Lost]:
    """Neighbours with the same reason as one."""
    stretches: list[Lost] = []
    for data_step, why in lost:
        if stretches and (stretches[-1].stop, stretches[-1].why) == (data_step, why):
            stretches[-1] = Lost(stretches[-1].start, data_step + 1, why)
        else:
            stretches.append(Lost(data_step, data_step + 1, why))
    return stretches


def _wrong_views(config: Config, run_dir: Path, plan: SamplePlan, marks: dict[int, int]) -> list[int]:
    """Make the samples again, and return the data steps whose rectangles are others."""
    if not marks:
        return []
    from jobs.reader import make_reader  # loads torch

    reader = make_reader(config, run_dir)
    wrong = []
    for data_step, mark in marks.items():
        samples = [
            reader.sample(int(epoch), int(row)) for epoch, row in zip(*plan.batch(data_step), strict=True)
        ]
        again = add_marks(
            mark_of_views(each.epoch, each.image_id, each.views.scenes, each.views.boxes) for each in samples
        )
        if again != mark:
            wrong.append(data_step)
    return wrong
