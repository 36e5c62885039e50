"""The reader: from the ends of the files it knows what all lines together say, whatever happens to them."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from monitoring.catalog import METRICS
from monitoring.journal import Journal, read
from monitoring.kinds import KIND, PHASES
from monitoring.reader import RunReader
from monitoring.series import RunSeries, merged

FIRST_READ_BYTES = 65_536  # promised for a run
METRIC = {metric.name: metric for metric in METRICS}
Shown = dict[str, str]


def shown(series: RunSeries) -> Shown:
    """Everything a run shows, as text: NaN differs from itself."""
    return {
        metric.name: repr(
            sorted(series.info(metric).items() if metric.type == "info" else series.samples(metric))
        )
        for metric in METRICS
        if metric.take != "exporter"
    }


def known(series: RunSeries) -> str:
    """The same in less time."""
    return json.dumps(series.totals(), sort_keys=True)


def counters(series: RunSeries) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (metric.name, labels): value
        for metric in METRICS
        if metric.type == "counter" and metric.take != "exporter"
        for labels, value in series.samples(metric)
    }


def read_anew(run_dir: Path) -> RunReader:
    reader = RunReader(run_dir)
    reader.update()
    return reader


def of_every_line(run_dir: Path) -> RunSeries:
    """The same without `totals` records: what all others say, one by one."""
    sources: dict[object, RunSeries] = defaultdict(RunSeries)
    for record in read(run_dir):
        sources[record["rank"]].add(record)
    return merged(sources.values())


def write_round(run_dir: Path, attempt: int, steps: int, images: int = 0, rank: int = 0) -> Path:
    """The journal of one rank in one round."""
    with Journal(run_dir, attempt=attempt, rank=rank) as writer:
        writer.record("round", world_size=2)
        for step in range(steps):
            images += 64
            if step % 7 == 0:
                writer.record("skip", where="loss", reason="nonfinite", what="the loss is NaN")
            if step % 11 == 0:
                writer.record("checkpoint", outcome="success", blocked_s=0.1 * step, background_s=1 / 3)
            if step % 13 == 0:
                writer.record("image_failed", reason="corrupt", path="a/b.jpg", image_id=step)
            loss = math.nan if step % 7 == 0 else 1 / (1 + step)
            phases = dict.fromkeys(PHASES, images / 3)
            writer.record("step", data_step=step, loss=loss, images=images, phases=phases)
    return writer.path


def tear(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three attempts of two ranks; the files of rank 0 are longer than a first reading."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    run_dir.mkdir()
    for attempt in (1, 2, 3):
        write_round(run_dir, attempt, steps=600, images=attempt * 64 * 500)
        write_round(run_dir, attempt, steps=20, rank=1)
    return run_dir


@pytest.fixture
def run_dir(tmp_path: Path, long_run: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(long_run, tmp_path / "run")


def newest(run_dir: Path) -> Path:
    return run_dir / "journal" / "0003.00-rank0000.jsonl"


def test_the_ends_of_the_files_tell_what_all_lines_do(long_run: Path) -> None:
    reader = read_anew(long_run)

    assert shown(reader.series) == shown(of_every_line(long_run))
    assert newest(long_run).stat().st_size > 2 * FIRST_READ_BYTES
    assert reader.bytes_read <= FIRST_READ_BYTES


def test_afterwards_only_what_was_appended_is_read(run_dir: Path) -> None:
    reader = read_anew(run_dir)
    before = reader.bytes_read
    assert not reader.update()
    assert reader.bytes_read == before

    with Journal(run_dir, attempt=3) as writer:
        writer.record("skip", where="loss", reason="nonfinite")
    size = newest(run_dir).stat().st_size
    assert reader.update()

    assert reader.bytes_read - before < 8192
    assert size > 2 * FIRST_READ_BYTES
    assert shown(reader.series) == shown(of_every_line(run_dir))


def test_a_run_of_four_nodes_of_eight_gpus_is_known_from_64_kb(tmp_path: Path) -> None:
    names = [name.removesuffix("{}") for name in KIND["gpu"].fields if name.endswith("{}")]
    bytes_read = []
    for length in range(60, 67):  # every seventh is a `totals` record: wherever a file may end
        run_dir = tmp_path / str(length)
        run_dir.mkdir()
        write_round(run_dir, 1, steps=10 * length)
        for rank in range(1, 32):
            with Journal(run_dir, rank=rank) as other:
                other.record("round", world_size=32, host="node1")
                other.record("restore", checkpoint="step-000001000", seconds=2.0, passed_over={})
        for node in range(4):
            with Journal(run_dir, source=f"agent{node}") as agent:
                for number in range(length + node):
                    readings = {str(gpu): 12345678.9 + number for gpu in range(8)}
                    agent.record("gpu", node=node, host=f"node{node}", **dict.fromkeys(names, readings))
        reader = read_anew(run_dir)
        hottest = reader.series.samples(METRIC["univip_gpu_temperature_celsius"])
        assert dict(hottest)["3", "7"] == 12345678.9 + length + 2
        bytes_read.append(reader.bytes_read)

    assert sum(bytes_read) / len(bytes_read) <= FIRST_READ_BYTES


def test_counters_never_go_back_over_twenty_kills_of_run_and_reader(tmp_path: Path) -> None:
    dice = random.Random(0)
    living = RunReader(tmp_path)
    before: dict[tuple[str, tuple[str, ...]], float] = {}
    for attempt in range(1, 21):
        images = int(before.get(("univip_train_images_total", ()), 0))
        path = write_round(tmp_path, attempt, steps=dice.randrange(1, 200), images=images)
        # What a kill leaves: any number of bytes did not reach the file.
        tear(path, dice.randrange(min(path.stat().st_size, 5000)))
        with Journal(tmp_path, attempt=attempt, source="agent0") as agent:
            agent.record("restart", cause="killed", message="rank 0 ended")

        living.update()
        reborn = read_anew(tmp_path).series
        now = counters(reborn)
        assert now == counters(living.series)
        assert all(now[key] >= count for key, count in before.items())
        assert shown(reborn) == shown(of_every_line(tmp_path))
        before = now

    assert before["univip_fault_restarts_total", ("killed",)] == 20.0
    assert before["univip_fault_skipped_steps_total", ("nonfinite",)] > 200.0


def test_a_file_cut_at_any_of_its_last_bytes_tells_its_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitoring.journal.TOTALS_BYTES", 2000)
    path = write_round(tmp_path, 1, steps=60)
    content = path.read_bytes()
    assert b'"kind": "totals"' in content[-4096:]
    living = read_anew(tmp_path)
    most = counters(living.series)
    expected = ""
    for end in range(len(content) - 1, len(content) - 4097, -1):
        path.write_bytes(content[:end])
        reader = read_anew(tmp_path)
        if content[end : end + 1] == b"\n":  # one whole line less than before
            expected = known(of_every_line(tmp_path))
        assert known(reader.series) == expected
        assert reader.is_readable
        assert reader.damaged == 0
        if end % 100 == 0:
            living.update()
            assert counters(living.series) == most


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\xff" * 2000 + b"\n",
        bytes(range(256)) * 1000 + b"\n",
        b'{"kind": "totals"}\n' * 100,
        b"x" * 10_000_000 + b"\n",
        b"[" * 200_000 + b"\n",
        b'"kind": "totals"' * 10_000 + b"\n",
        b"\n" * 70_000,
    ],
    ids=range(7),
)
def test_damage_is_counted_and_costs_nothing_else(run_dir: Path, damage: bytes) -> None:
    living = read_anew(run_dir)
    with newest(run_dir).open("ab") as file:
        file.write(damage)
    reader = read_anew(run_dir)
    living.update()
    assert living.damaged == reader.damaged > 0
    assert counters(reader.series) == counters(living.series) == counters(of_every_line(run_dir))

    # And the run goes on from there.
    with newest(run_dir).open("ab") as file:
        file.write(damage[:-1])
    write_round(run_dir, 4, steps=5)
    living.update()
    assert counters(living.series) == counters(read_anew(run_dir).series) == counters(of_every_line(run_dir))


def test_journals_without_totals_are_read_from_the_beginning(run_dir: Path) -> None:
    expected = shown(of_every_line(run_dir))
    for path in (run_dir / "journal").iterdir():
        lines = [row for row in path.read_bytes().splitlines(True) if b'"kind": "totals"' not in row]
        path.write_bytes(b"".join(lines))

    assert shown(read_anew(run_dir).series) == expected


def test_totals_at_the_head_of_a_long_file_are_enough(run_dir: Path) -> None:
    path = newest(run_dir)
    head, *rest = path.read_bytes().splitlines(True)
    assert b'"kind": "totals"' in head
    path.write_bytes(head + b"".join(row for row in rest if b'"kind": "totals"' not in row))
    expected = shown(read_anew(run_dir).series)
    for earlier in (1, 2):
        (run_dir / "journal" / f"000{earlier}.00-rank0000.jsonl").unlink()

    assert shown(read_anew(run_dir).series) == expected


@pytest.mark.parametrize("size", [0, 100, 200_000])
def test_a_file_that_is_replaced_takes_nothing_back(run_dir: Path, size: int) -> None:
    reader = read_anew(run_dir)
    before = counters(reader.series)

    path = newest(run_dir)
    content = path.read_bytes()[:size]
    path.unlink()
    path.write_bytes(content)
    reader.update()
    assert counters(reader.series) == before

    with Journal(run_dir, attempt=3) as writer:
        writer.record("step", images=10**9)
    reader.update()
    assert counters(reader.series)["univip_train_images_total", ()] == 10**9


def test_files_that_are_deleted_take_nothing_back(run_dir: Path) -> None:
    reader = read_anew(run_dir)
    before = shown(reader.series)

    newest(run_dir).unlink()
    reader.update()
    assert counters(reader.series)["univip_train_images_total", ()] > 0
    shutil.rmtree(run_dir)
    reader.update()

    assert counters(reader.series) == counters(reader.series)
    assert before["univip_train_images_total"] == shown(reader.series)["univip_train_images_total"]


def test_what_cannot_be_read_is_told_and_the_rest_is_read(run_dir: Path) -> None:
    broken = run_dir / "journal" / "0004.00-rank0000.jsonl"
    broken.mkdir()
    reader = read_anew(run_dir)
    before = counters(reader.series)
    assert not reader.is_readable
    assert before["univip_train_images_total", ()] > 0

    broken.rmdir()
    write_round(run_dir, 4, steps=1, images=10**9)
    reader.update()

    assert reader.is_readable
    assert counters(reader.series)["univip_train_images_total", ()] == 10**9 + 64


def test_foreign_files_in_the_folder_are_left_alone(run_dir: Path) -> None:
    expected = shown(read_anew(run_dir).series)
    for name in ("notes.txt", "x.jsonl", "0009.00-rank0000.jsonl.swp", "0009.00-Rank0.jsonl", "..jsonl"):
        (run_dir / "journal" / name).write_bytes(b"x\n")

    reader = read_anew(run_dir)
    assert (shown(reader.series), reader.damaged) == (expected, 0)


def test_a_round_after_the_9999th_attempt_is_newer(tmp_path: Path) -> None:
    for attempt in (9999, 10_000):
        write_round(tmp_path, attempt, steps=1, images=attempt)

    assert counters(read_anew(tmp_path).series)["univip_train_images_total", ()] == 10_064
    assert [record["kind"] for record in read(tmp_path)].count("round") == 2


def test_a_journal_that_is_a_file_is_unreadable_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"")

    assert not read_anew(tmp_path).is_readable
