"""Counters of a training go on from where the round before left them; its journal says what the run is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from jobs import base, imports, train
from jobs.attempts import attempt
from jobs.compose import compose
from jobs.config import RunHeader, RunKind, store
from jobs.train import totals_so_far
from monitoring.journal import Journal, read
from monitoring.lines import JournalFile
from univip.engine.distributed import Group
from univip.engine.reporting import Totals


def test_a_round_goes_on_with_the_counters_of_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert totals_so_far(tmp_path) == Totals()
    for attempt_number in (1, 2):
        with Journal(tmp_path, attempt=attempt_number) as journal:
            for number in range(1, 101):
                done = 100 * (attempt_number - 1) + number
                amounts = {"seconds": done / 7, "counts": {"images": 8 * done}, "phases": {"data": done / 9}}
                journal.record("step", data_step=number, loss=1.0, steps=done, images=8 * done, **amounts)
    monkeypatch.setattr(JournalFile, "next_block", lambda self: pytest.fail("all of a file is read"))

    totals = totals_so_far(tmp_path)

    assert totals == Totals(200, 1600, 200 / 7, {"images": 1600}, {"data": 200 / 9})


class Enough(Exception):
    """The record is written; the work is not needed."""


@pytest.mark.parametrize(("experiment", "name"), [("", "byol"), ("coco_byol", "coco_byol")])
def test_every_stage_says_the_same_of_what_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str, name: str
) -> None:
    def enough(*_: object, **__: object) -> NoReturn:
        raise Enough

    config = replace(compose(["debug=small", "method=byol", "data.root=/x"]), experiment=experiment)
    run_dir = tmp_path / f"{name}-0a1b2c3d"
    run_dir.mkdir()
    store(config, RunHeader(run_dir.name, RunKind.train, "f" * 64, 1000), run_dir)
    for stage in ("jobs.evaluate.evaluate", "jobs.proposals.prepare", "jobs.train.CheckpointManager"):
        monkeypatch.setattr(stage, enough)

    for kind in ("prepare", "evaluate"):
        with attempt(run_dir, kind) as mine, Journal(run_dir, source=kind) as journal, pytest.raises(Enough):
            base._work(kind, run_dir, mine, journal)
    with pytest.raises(Enough), imports._stage(run_dir, "prepare"):
        raise Enough
    with Journal(run_dir) as journal, pytest.raises(Enough):
        train.train_rank(
            config,
            run_dir,
            group=Group(),
            observer=journal,
            stop_requested=lambda: False,
            still_owner=lambda: True,
            totals=Totals(),
            on_hang=pytest.fail,
            place={},
        )

    records = [record for record in read(run_dir) if record["kind"] == "run"]
    assert {"proposals", "evaluating", "training", "failed"} == {record["state"] for record in records}
    facts = ("experiment", "method", "config_hash", "num_images")
    assert {tuple(record[fact] for fact in facts) for record in records} == {(name, "byol", "0a1b2c3d", 1000)}
