"""Counters of a training go on from where the round before left them, and only ends of files are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.train import totals_so_far
from monitoring.journal import Journal
from monitoring.lines import JournalFile
from univip.engine.reporting import Totals


def test_a_round_goes_on_with_the_counters_of_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert totals_so_far(tmp_path) == Totals()
    for attempt in (1, 2):
        with Journal(tmp_path, attempt=attempt) as journal:
            for number in range(1, 101):
                done = 100 * (attempt - 1) + number
                amounts = {"seconds": done / 7, "counts": {"images": 8 * done}, "phases": {"data": done / 9}}
                journal.record("step", data_step=number, loss=1.0, steps=done, images=8 * done, **amounts)
    monkeypatch.setattr(JournalFile, "next_block", lambda self: pytest.fail("all of a file is read"))

    totals = totals_so_far(tmp_path)

    assert totals == Totals(200, 1600, 200 / 7, {"images": 1600}, {"data": 200 / 9})
