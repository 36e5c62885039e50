"""The journal: what is written comes back, and what cannot be written or read costs only itself."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring import journal
from monitoring.journal import Journal, Record, newest_record, read, tail_records
from monitoring.lines import JournalFile
from univip.observe import Observer


def lines_of(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def line(time_s: float, **fields: object) -> bytes:
    record = {"v": 1, "kind": "step", "seq": 0, "time": time_s, "attempt": 1, "round": 0, "rank": 0}
    return json.dumps(record | fields).encode() + b"\n"


def written(run_dir: Path, content: bytes, name: str = "0001.00-rank0000.jsonl") -> Path:
    path = run_dir / "journal" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_record_holds_the_envelope_and_its_fields(tmp_path: Path) -> None:
    before = time.time()
    with Journal(tmp_path, attempt=2, round=1, rank=3) as writer:
        writer.record("step", step=7, data_step=9, loss=0.5, terms={"scene": 1.5})
        writer.record("healthy", checkpoint="step-000000007")

    assert writer.path == tmp_path / "journal" / "0002.01-rank0003.jsonl"
    first, second = lines_of(writer.path)
    assert before <= first.pop("time") <= time.time()
    assert first == {
        "v": 1,
        "kind": "step",
        "seq": 0,
        "attempt": 2,
        "round": 1,
        "rank": 3,
        "step": 7,
        "data_step": 9,
        "loss": 0.5,
        "terms": {"scene": 1.5},
    }
    assert (second["seq"], second["step"], second["data_step"]) == (1, None, None)


def test_the_engine_can_use_it_as_its_observer(tmp_path: Path) -> None:
    with Journal(tmp_path) as writer:
        observer: Observer = writer
        observer.record("stop", outcome="done", cause="done")

    assert [record["kind"] for record in read(tmp_path)] == ["stop"]


def test_a_process_that_is_no_rank_has_a_file_of_its_own(tmp_path: Path) -> None:
    with Journal(tmp_path, attempt=4, source="shard00007") as writer:
        writer.record("proposals", shard=7)

    assert writer.path.name == "0004.00-shard00007.jsonl"
    assert next(read(tmp_path))["rank"] is None


@pytest.mark.parametrize("source", ["../x", "Shard1", "1shard", "a b", "rank-1"])
def test_a_source_that_is_no_plain_name_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(ValueError, match="lower-case letters, then digits"):
        Journal(tmp_path, source=source)


def test_numbers_that_are_not_finite_come_back_as_numbers(tmp_path: Path) -> None:
    with Journal(tmp_path) as writer:
        writer.record("step", loss=math.nan, terms={"scene": math.inf}, window=[-math.inf, 1.0])

    assert b'"NaN"' in writer.path.read_bytes()
    [record] = read(tmp_path)
    assert math.isnan(record["loss"])
    assert record["terms"] == {"scene": math.inf}
    assert record["window"] == [-math.inf, 1.0]


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    with Journal(tmp_path) as writer:
        writer.record("step", loss=math.nan, norms=np.array([np.inf, 1.0]), ratio=np.float32(np.nan))

    json.loads(writer.path.read_bytes(), parse_constant=refuse)


def test_numpy_values_become_numbers(tmp_path: Path) -> None:
    with Journal(tmp_path) as writer:
        writer.record(
            "x", a=np.float32(0.5), b=np.int64(3), c=np.bool_(True), d=np.array([[1, 2]]), e=np.float64(2)
        )

    [record] = read(tmp_path)
    assert [record[name] for name in "abcde"] == [0.5, 3, True, [[1, 2]], 2.0]


def test_foreign_values_are_written_as_their_repr(tmp_path: Path) -> None:
    with Journal(tmp_path) as writer:
        writer.record("x", path=Path("/a"), kinds={1}, pair=(1, 2), keys={3: None})

    [record] = read(tmp_path)
    assert "'/a'" in record["path"]
    assert (record["kinds"], record["pair"], record["keys"]) == ("{1}", [1, 2], {"3": None})


def test_fields_cannot_forge_the_stamp_but_may_name_another_round(tmp_path: Path) -> None:
    with Journal(tmp_path, attempt=1) as writer:
        writer.record("round", v=9, seq=99, time=0.0, round=5)

    [record] = read(tmp_path)
    assert (record["v"], record["seq"], record["round"]) == (1, 0, 5)
    assert record["time"] > 1e9


def test_what_the_caller_changes_afterwards_is_not_written(tmp_path: Path) -> None:
    counts = {"too_small": 1}
    with Journal(tmp_path) as writer:
        writer.record("step", counts=counts)
        counts["too_small"] = 2

    assert next(read(tmp_path))["counts"] == {"too_small": 1}


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_records_that_cannot_be_lines_are_counted_and_reported(tmp_path: Path) -> None:
    endless: list[object] = []
    endless.append(endless)
    with Journal(tmp_path) as writer:
        writer.record("x", value=Hostile())
        writer.record("x", value=endless)
        writer.record("x", value="y" * journal.MAX_LINE_BYTES)
        writer.record("good")

    records = list(read(tmp_path))
    assert [record["kind"] for record in records] == ["good", "dropped"]
    assert records[1]["records"] == 3
    assert [record["seq"] for record in records] == [3, 4]


def test_a_full_queue_drops_records_and_a_later_one_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    real_write = os.write

    def slow_write(descriptor: int, data: bytes) -> int:
        may_write.wait(5)
        return real_write(descriptor, data)

    monkeypatch.setattr(journal, "MAX_WAITING", 10)
    monkeypatch.setattr(os, "write", slow_write)
    writer = Journal(tmp_path)
    for number in range(100):
        writer.record("x", number=number)
    may_write.set()
    writer.close()

    records = list(read(tmp_path))
    dropped = sum(record["records"] for record in records if record["kind"] == "dropped")
    kept = [record["number"] for record in records if record["kind"] == "x"]
    assert dropped > 0
    assert len(kept) + dropped == 100
    assert kept == sorted(kept)


def test_a_run_directory_that_does_not_exist_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "later"
    with caplog.at_level(logging.WARNING), Journal(run_dir) as writer:
        for number in range(3):
            writer.record("x", number=number)
            wait_until(lambda: not writer._lines)
        wait_until(lambda: writer._lost == 3)
        assert len(caplog.records) == 1
        run_dir.mkdir()
        writer.record("x", number=3)

    assert [(record["kind"], record.get("records")) for record in read(run_dir)] == [
        ("x", None),
        ("dropped", 3),
    ]


def test_a_full_disk_costs_lines_and_the_line_after_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    room = [30]

    def write_on_full_disk(descriptor: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(data)
        return real_write(descriptor, data[:30])

    writer = Journal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_on_full_disk)
        writer.record("x", number=0)
        wait_until(lambda: writer._lost == 1)
    writer.record("x", number=1)
    writer.close()

    file = JournalFile(writer.path)
    assert [(record["kind"], record.get("records")) for record in file.records()] == [
        ("x", None),
        ("dropped", 1),
    ]
    assert file.damaged == 1


def test_a_file_that_ends_in_a_torn_line_is_continued_on_a_new_one(tmp_path: Path) -> None:
    written(tmp_path, line(1.0) + b'{"v": 1, "kind": "st')
    with Journal(tmp_path) as writer:
        writer.record("stop")

    assert [record["kind"] for record in read(tmp_path)] == ["step", "stop"]


def test_close_returns_in_time_when_the_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(os, "write", lambda descriptor, data: released.wait(5) and len(data))
    writer = Journal(tmp_path)
    writer.record("x")

    start = time.perf_counter()
    writer.close(timeout_s=0.1)
    elapsed_s = time.perf_counter() - start

    released.set()
    writer._thread.join(5)
    assert elapsed_s < 1.0


def test_recording_costs_little_beside_a_training_step(tmp_path: Path) -> None:
    phases = dict.fromkeys("abcdefgh", 123.456789)
    costs_s = []
    with Journal(tmp_path) as writer:
        for number in range(300):
            start = time.perf_counter()
            writer.record("step", step=number, loss=3.14159, terms=phases, phases=phases, counts=phases)
            costs_s.append(time.perf_counter() - start)

    # A record of every tenth step of 10 ms may cost 500 us to stay below half a percent.
    assert sorted(costs_s)[len(costs_s) // 2] < 500e-6


def test_files_are_merged_by_time(tmp_path: Path) -> None:
    written(tmp_path, line(1.0, n=1) + line(4.0, n=4), "0001.00-rank0000.jsonl")
    written(tmp_path, line(2.0, n=2) + line(5.0, n=5), "0001.00-rank0001.jsonl")
    written(tmp_path, line(3.0, n=3), "0002.00-rank0000.jsonl")

    assert [record["n"] for record in read(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_clock_set_back_loses_no_record(tmp_path: Path) -> None:
    written(tmp_path, line(5.0, n=1) + line(1.0, n=2), "0001.00-rank0000.jsonl")
    written(tmp_path, line(2.0, n=3), "0002.00-rank0000.jsonl")

    assert sorted(record["n"] for record in read(tmp_path)) == [1, 2, 3]


def test_a_run_without_a_journal_has_no_records(tmp_path: Path) -> None:
    assert list(read(tmp_path)) == []


def test_more_files_than_a_process_may_open_are_read(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(100):
        written(tmp_path, line(float(number), n=number), f"0001.00-shard{number:05d}.jsonl")
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        assert [record["n"] for record in read(tmp_path)] == list(range(100))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "damage",
    [
        b"\n",
        b"\x00\xff\xfe garbage\n",
        b"[1, 2]\n",
        b'"step"\n',
        b"{}\n",
        b'{"v": 1, "kind": 3, "time": 1.0}\n',
        b'{"v": 1, "kind": "step", "time": "soon"}\n',
        b'{"v": 1, "kind": "step", "time": "NaN"}\n',
        b'{"v": 1, "kind": "step", "time": 1' + b"0" * 400 + b"}\n",
        b'{"v": 2, "kind": "step", "time": 1.0}\n',
        b'{"v": 1, "kind": "step", "time": 1.0, "x": "NaN", "y": ' + b"[" * 900 + b"]" * 900 + b"}\n",
        b"[" * 100_000 + b"\n",
        b"x" * 10_000_000 + b"\n",
    ],
    ids=range(13),
)
def test_damaged_lines_are_skipped_and_counted(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, line(1.0, n=1) + damage + line(2.0, n=2))

    with caplog.at_level(logging.WARNING):
        records = [record for record in read(tmp_path) if "n" in record]
    file = JournalFile(path)
    polled = list(file.records())

    assert [record["n"] for record in records] == [1, 2]
    assert len(polled) + file.damaged == 3
    assert (file.damaged == 1) == ("1 damaged lines" in caplog.text)
    assert tail_records(path)[-1] == polled[-1]


def test_a_file_growing_byte_by_byte_gives_each_record_once(tmp_path: Path) -> None:
    content = line(1.0, n=1, loss="NaN") + b"garbage\n" + line(2.0, n=2) + line(3.0, n=3)
    path = written(tmp_path, b"")
    file = JournalFile(path)
    seen = []

    for end in range(len(content)):
        path.write_bytes(content[: end + 1])
        complete = content[: end + 1].count(b"\n")
        seen += [record["n"] for record in file.records()]
        assert len(seen) + file.damaged == complete
        assert [record["n"] for record in tail_records(path)] == seen

    assert seen == [1, 2, 3]
    assert file.damaged == 1


def test_a_line_without_an_end_is_passed_over_block_by_block(tmp_path: Path) -> None:
    path = written(tmp_path, line(1.0, n=1) + b"x" * 3_500_000 + b"\n" + line(2.0, n=2))
    file = JournalFile(path)

    assert [record["n"] for record in file.records()] == [1, 2]
    assert file.damaged == 1
    assert file.bytes_read < 2 * path.stat().st_size


def test_every_8_kib_a_line_says_what_the_file_amounts_to(tmp_path: Path) -> None:
    with Journal(tmp_path) as writer:
        for number in range(2000):
            writer.record("skip", where="loss", reason="nonfinite", what="x" * 100, number=number)
            if number % 50 == 0:
                wait_until(lambda: not writer._lines)

    content = writer.path.read_bytes()
    positions = [content.index(b"\n" + row) for row in content.split(b"\n") if b'"kind": "totals"' in row]
    assert len(positions) > len(content) // 50_000
    assert max(np.diff([0, *positions, len(content)])) < 2 * journal.TOTALS_BYTES
    # Readers of records are spared it.
    assert [record["number"] for record in read(tmp_path)] == list(range(2000))
    assert {record["kind"] for record in tail_records(writer.path)} == {"skip"}


def test_the_first_line_of_a_file_says_what_the_earlier_ones_amounted_to(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        with Journal(tmp_path, attempt=attempt) as writer:
            writer.record("skip", where="loss", reason="nonfinite")
    with Journal(tmp_path, attempt=3, rank=1) as other:
        other.record("round")

    first, second = lines_of(writer.path)
    assert (first["kind"], second["kind"]) == ("totals", "skip")
    assert first["counts"]["univip_fault_skipped_steps_total"] == [[["nonfinite"], "", 2]]
    assert [record["kind"] for record in lines_of(other.path)] == ["round"]


def test_the_tail_of_a_long_file_is_found_in_its_last_64_kib(tmp_path: Path) -> None:
    longest = "y" * (journal.MAX_LINE_BYTES - 200)
    path = written(
        tmp_path, b"x" * 1_000_000 + b"\n" + line(1.0, n=1, x=longest) + line(2.0, n=2, x=longest)[:-9]
    )

    assert [record["n"] for record in tail_records(path)] == [1]


def test_the_tail_holds_every_whole_record_of_the_last_64_kib(tmp_path: Path) -> None:
    each = len(line(1.0, n=1000))
    path = written(tmp_path, b"".join(line(1.0, n=n) for n in range(1000, 3000)))

    tail = [record["n"] for record in tail_records(path)]

    assert tail == list(range(3000 - journal.TAIL_BYTES // each, 3000))


def test_the_newest_record_of_a_kind_is_found_from_the_ends_of_the_files(tmp_path: Path) -> None:
    for attempt, steps in ((1, 3), (2, 2), (3, 0)):
        with Journal(tmp_path, attempt=attempt) as writer:
            writer.record("round")
            for step in range(steps):
                writer.record("step", data_step=10 * attempt + step)
    with Journal(tmp_path, attempt=4, rank=1) as other:
        other.record("step", data_step=99)

    def found() -> int:
        record = newest_record(tmp_path, "rank0000", "step")
        assert record is not None
        return int(record["data_step"])

    assert found() == 21
    # Even where more than 64 KiB follow it, or where nothing can be read.
    with Journal(tmp_path, attempt=2) as writer:
        for number in range(1000):
            writer.record("image_failed", image_id=number, path="a" * 100)
    assert found() == 21
    writer.path.unlink()
    writer.path.mkdir()
    assert found() == 12
    assert newest_record(tmp_path, "rank0000", "rollback") is None
    assert newest_record(tmp_path / "nowhere", "rank0000", "step") is None


def test_an_empty_file_has_no_tail(tmp_path: Path) -> None:
    assert tail_records(written(tmp_path, b"")) == []
    assert tail_records(written(tmp_path, b"torn")) == []


words = st.text(max_size=9).filter(lambda word: word not in ("NaN", "Infinity", "-Infinity"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(json_values, min_size=1, max_size=3))
def test_any_json_value_comes_back_as_it_was(
    values: list[object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    with Journal(run_dir) as writer:
        for value in values:
            writer.record("x", value=value)

    # `repr` tells NaN from NaN's absence, and 1 from 1.0 from True.
    found = [repr(record["value"]) for record in read(run_dir)]
    assert found == [repr(value) for value in values]
