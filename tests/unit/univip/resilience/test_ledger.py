"""The ledger survives crashes and is never rewound."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from univip.errors import DataError
from univip.resilience.ledger import Ledger, Rollback


def test_records_come_back_in_order_with_their_fields(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("skip", data_step=3, where="loss", reason="x")
    ledger.append("rollback", target=2, at=9, window=[5, 10], where="state", reason="y")

    records = list(ledger.read())

    assert [record["kind"] for record in records] == ["skip", "rollback"]
    assert records[0]["data_step"] == 3
    assert records[0]["time"] <= records[1]["time"]


def test_a_record_is_written_whole_where_the_system_takes_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
        ledger.append("skip", data_step=3)

    assert [record["data_step"] for record in ledger.read()] == [3]


def test_decisions_say_which_data_steps_are_not_trained_on() -> None:
    ledger = Ledger(Path("/nonexistent/ledger.jsonl"))

    assert ledger.decisions().skipped == ledger.decisions().windows == set()


def test_skips_and_windows_are_jumped(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("skip", data_step=3, where="loss", reason="x")
    ledger.append("rollback", target=2, at=9, window=[5, 10], where="state", reason="y")

    decisions = ledger.decisions()

    assert (decisions.skipped, decisions.windows) == ({3}, {5, 6, 7, 8, 9})
    assert decisions.line == 1


def test_a_record_cut_off_by_a_crash_is_ignored_and_the_next_one_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append("skip", data_step=3, where="loss", reason="x")
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole + whole[:length])
        ledger.append("healthy", checkpoint=7)

        kinds = [record["kind"] for record in ledger.read()]

        assert kinds[0] == "skip"
        assert kinds[-1] == "healthy"


def test_damage_in_the_middle_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"kind": "healthy", "checkpoint": 1}\n{"kind" "rollback"}\n{"kind": "healthy"}\n')

    with pytest.raises(DataError) as caught:
        list(Ledger(path).read())

    assert "line 2" in str(caught.value)


def test_checkpoints_of_an_abandoned_future_are_told_from_those_written_after_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("rollback", target=100, at=130, window=[122, 131], where="state", reason="x")
    decisions = ledger.decisions()

    # 100 is the target, 120 was written before the rollback (line 0), 140 after it (line 1).
    assert decisions.rollbacks == [Rollback(100, 130, (122, 131))]
    assert decisions.abandoned({100: 0, 120: 0, 140: 1}) == [120]


def test_zeros_at_the_end_as_a_power_cut_leaves_them_are_no_record(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append("skip", data_step=3, where="loss", reason="x")
    with path.open("ab") as file:
        file.write(bytes(64))

    ledger.append("healthy", checkpoint=7)

    assert [record["kind"] for record in ledger.read()] == ["skip", "healthy"]
