"""The history of a run: what it holds, that it grows by what was appended, and that no line upsets it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitoring.catalog import METRICS
from monitoring.journal import Journal, read
from monitoring.series import RunSeries
from monitoring.web.history import History


def history_of(run_dir: Any) -> History:
    history = History(run_dir)
    history.update()
    return history


def test_a_curve_over_data_steps_is_the_line_that_led_to_the_present(eventful: Any) -> None:
    history = history_of(eventful.run_dir)

    rows, _ = history.rows("step")

    steps = history.x("step")[rows].tolist()
    assert steps == list(range(10, 401, 10))
    gone = history.x("step")[history.is_superseded()].tolist()
    assert gone == [*range(110, 151, 10), *range(110, 201, 10)]


def test_a_curve_over_time_holds_every_record(eventful: Any) -> None:
    history = history_of(eventful.run_dir)

    rows, _ = history.rows("time")

    assert len(rows) == sum(record["kind"] == "step" for record in read(eventful.run_dir))
    assert (np.diff(history.x("time")[rows]) >= 0).all()


def test_a_value_that_is_not_finite_keeps_its_place_and_its_name(eventful: Any) -> None:
    column = history_of(eventful.run_dir).column("loss")

    [(row, name)] = column.bad.items()
    assert name == "NaN"
    assert math.isnan(column.values[row])
    assert np.isfinite(np.delete(column.values, row)).all()


def test_rates_are_taken_within_a_round(eventful: Any) -> None:
    """Between two rounds nobody worked; a rate across the gap would be of nothing."""
    rate = history_of(eventful.run_dir).column("images_per_s").values

    assert np.isnan(rate).sum() == 3  # the first record of each round
    assert np.nanmax(rate) == pytest.approx(8.0)


def test_what_is_counted_is_what_the_metrics_count(eventful: Any) -> None:
    history = history_of(eventful.run_dir)
    series = RunSeries()
    for record in read(eventful.run_dir):
        series.add(record)

    def total(name: str) -> float:
        [metric] = [metric for metric in METRICS if metric.name == name]
        return sum(value for _, value in series.samples(metric))

    for kind, name in {
        "skip": "univip_fault_skipped_steps_total",
        "rollback": "univip_fault_rollbacks_total",
        "restart": "univip_fault_restarts_total",
        "corruption": "univip_checkpoint_corruptions_total",
        "image_failed": "univip_data_decode_errors_total",
        "restore": "univip_checkpoint_restores_total",
    }.items():
        assert history.counts[kind] == total(name) > 0, kind
    saves = history.counts["checkpoint"] + history.counts["checkpoint_failed"]
    assert saves == total("univip_checkpoint_saves_total") == 3


def test_only_what_was_appended_is_read(new_run: Callable[[str], Any]) -> None:
    run = new_run("a-1")
    with Journal(run.run_dir) as first:
        run.steps(first, 10, 5000)
    history = history_of(run.run_dir)
    [path] = (run.run_dir / "journal").iterdir()
    [file] = history._files.values()
    size_before, read_before = path.stat().st_size, file.bytes_read
    assert read_before >= size_before > 100_000

    history.update()
    assert file.bytes_read == read_before

    with Journal(run.run_dir) as second:
        run.steps(second, 5010, 5050)
    history.update()

    grown = path.stat().st_size - size_before
    assert 0 < file.bytes_read - read_before <= 2 * grown
    assert len(history) == 505


def test_growing_line_by_line_ends_like_reading_at_once(eventful: Any) -> None:
    """Also where an older file grows after a newer one was read."""
    folder = eventful.run_dir / "journal"
    lines = [(path, line) for path in sorted(folder.iterdir()) for line in path.read_bytes().splitlines(True)]
    for path in folder.iterdir():
        path.unlink()
    growing = History(eventful.run_dir)
    for path, line in sorted(lines, key=lambda each: hash(each[0]) % 7):
        with path.open("ab") as file:
            file.write(line)
        growing.update()

    whole = history_of(eventful.run_dir)

    assert growing.counts == whole.counts
    keys = whole.keys()
    assert len(keys) > 10
    for key in keys:
        grown, read_at_once = growing.column(key), whole.column(key)
        np.testing.assert_array_equal(grown.values, read_at_once.values)
        assert grown.bad == read_at_once.bad
    assert growing.rows("step")[0].tolist() == whole.rows("step")[0].tolist()


def test_a_file_that_became_shorter_is_another_one(new_run: Callable[[str], Any]) -> None:
    run = new_run("a-1")
    with Journal(run.run_dir) as first:
        run.steps(first, 10, 500)
    history = history_of(run.run_dir)
    before = history.id
    [path] = (run.run_dir / "journal").iterdir()
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:5]))

    history.update()

    assert len(history) == 5
    assert history.id != before


def test_a_run_without_a_journal_has_an_empty_history(new_run: Callable[[str], Any]) -> None:
    history = history_of(new_run("a-1").run_dir)

    assert len(history) == 0
    assert history.keys() == []
    assert history.rows("step")[0].tolist() == history.rows("time")[0].tolist() == []


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "x", "NaN", "\ud800"])
)
json_values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from("abc"), scalars)
_FIELDS = (
    "data_step loss terms phases statistics counts time attempt round shard state images_done failed target "
    "rank seconds images checkpoint_time"
)
fields = st.sampled_from(_FIELDS.split())


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["step", "run", "shard", "proposals", "skip", "rollback", "evaluate", "checkpoint"]
            ),
            st.dictionaries(fields, json_values, max_size=6),
        ),
        max_size=12,
    )
)
def test_no_record_upsets_it(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> None:
    run_dir = tmp_path_factory.mktemp("hostile")
    (run_dir / "journal").mkdir()
    lines = [json.dumps({"v": 1, "time": 1.0, "rank": 0, **found, "kind": kind}) for kind, found in records]
    (run_dir / "journal" / "0001.00-rank0000.jsonl").write_text("".join(line + "\n" for line in lines))

    history = history_of(run_dir)

    assert [history.column(key) for key in [*history.keys(), "nothing"]]
    history.rows("step")
    history.rows("time")


def test_of_each_node_the_newest_reading_of_its_gpus_is_kept(new_run: Callable[[str], Any]) -> None:
    run = new_run("a-1")
    for node in (1, 0):
        with Journal(run.run_dir, source=f"agent{node}") as journal:
            for celsius in (50, 60 + node):
                run.now += 30
                journal.record(
                    "gpu",
                    node=node,
                    host=f"host{node}",
                    busy_ratio={"0": 0.9, "1": float("nan")},
                    temperature_celsius={"1": celsius},
                )
            journal.record("gpu", node="x", busy_ratio=3)  # damaged
    history = History(run.run_dir)
    history.update()

    assert {node: found["gpus"] for node, found in history.gpus.items()} == {
        node: [
            {"gpu": "0", "busy_ratio": 0.9, "temperature_celsius": None},
            {"gpu": "1", "busy_ratio": None, "temperature_celsius": 60.0 + node},
        ]
        for node in (0, 1)
    }
    assert history.gpus[1]["host"] == "host1"
