"""Series of one run: counters go on through restarts and rollbacks, in whatever order files are read."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.catalog import METRICS
from monitoring.kinds import KINDS, TOTALS, Kind
from monitoring.lines import Record, decode, encode
from monitoring.series import MAX_CELLS, Labels, RunSeries, merged

METRIC = {metric.name: metric for metric in METRICS}


def record(kind: str, time: float = 1.0, **fields: Any) -> Record:
    return {"v": 1, "kind": kind, "seq": 0, "time": time, "attempt": 1, "round": 0, "rank": 0} | fields


def values(series: RunSeries, name: str) -> dict[Labels, float]:
    return dict(series.samples(METRIC[name]))


def of(*records: Record) -> RunSeries:
    series = RunSeries()
    for each in records:
        series.add(each)
    return series


def test_of_two_sources_the_newest_value_of_a_gauge_wins() -> None:
    old, new = of(record("run", 1.0, state="training")), of(record("run", 2.0, state="done"))

    for series in (merged([old, new]), merged([new, old])):
        assert values(series, "univip_run_state")["done",] == 1.0


def test_within_a_source_the_last_value_of_a_gauge_wins_whatever_the_clock_says() -> None:
    series = of(record("step", 9.0, loss=5.0), record("step", 2.0, loss=3.0))

    assert values(series, "univip_train_loss") == {(): 3.0}
    assert values(series, "univip_train_last_step_timestamp_seconds") == {(): 2.0}


def test_a_rollback_moves_the_step_back_but_no_counter() -> None:
    series = of(
        record("step", 1.0, step=90, data_step=100, steps=90, images=900),
        record("rollback", 2.0, where="state", reason="nonfinite", steps_discarded=60, data_step=100),
        record("step", 3.0, step=45, data_step=50, steps=95, images=960),
    )

    assert values(series, "univip_train_step") == {(): 45.0}
    assert values(series, "univip_train_data_step") == {(): 50.0}
    assert values(series, "univip_train_steps_total") == {(): 95.0}
    assert values(series, "univip_train_images_total") == {(): 960.0}
    assert values(series, "univip_fault_rolled_back_steps_total") == {(): 60.0}
    assert values(series, "univip_fault_rollbacks_total")["nonfinite",] == 1.0


def test_a_counter_that_a_new_attempt_begins_lower_stays_where_it_was() -> None:
    series = of(
        record("step", 1.0, images=900, phases={"data": 9.0}),
        record("step", 2.0, images=800, phases={"data": 8.0}, attempt=2),
    )

    assert values(series, "univip_train_images_total") == {(): 900.0}
    assert values(series, "univip_train_phase_seconds_total")["data",] == 9.0


def test_counters_begin_at_zero_for_every_known_label() -> None:
    restarts = values(RunSeries(), "univip_fault_restarts_total")

    assert restarts["hang",] == 0.0
    assert set(restarts.values()) == {0.0}
    assert values(RunSeries(), "univip_train_loss") == {}


def test_an_unforeseen_cause_is_shown_not_hidden() -> None:
    series = of(record("restart", cause="crash"), record("restart", cause="meteor"), record("restart"))

    restarts = values(series, "univip_fault_restarts_total")
    assert (restarts["crash",], restarts["meteor",], restarts["unknown",]) == (1.0, 1.0, 1.0)


def test_each_bad_step_is_one_nonfinite_step() -> None:
    series = of(
        record("skip", where="loss", reason="nonfinite"),
        record("skip", where="loss", reason="nonfinite"),
        record("rollback", where="state", reason="nonfinite"),
    )

    assert values(series, "univip_fault_nonfinite_total") == {
        ("state",): 1.0,
        ("loss",): 2.0,
        ("gradient",): 0.0,
    }
    assert values(series, "univip_fault_skipped_steps_total") == {("nonfinite",): 2.0}


def test_repetitions_by_other_ranks_do_not_count() -> None:
    series = of(*(record("skip", rank=rank, where="loss", reason="nonfinite") for rank in range(4)))

    assert values(series, "univip_fault_skipped_steps_total") == {("nonfinite",): 1.0}


def test_bad_photographs_of_every_rank_count() -> None:
    series = of(*(record("image_failed", rank=rank, reason="corrupt") for rank in (0, 1, None)))

    assert values(series, "univip_data_decode_errors_total")["corrupt",] == 3.0


def test_a_stall_is_told_by_the_rank_that_stalls() -> None:
    series = of(record("stall", rank=3, phase="data", seconds=9.0), record("stall", rank=0, phase="data"))

    assert values(series, "univip_fault_stalls_total")["data",] == 2.0


def test_only_a_durable_checkpoint_has_an_age() -> None:
    series = of(
        record(
            "checkpoint", 10.0, outcome="success", data_step=500, bytes=7, blocked_s=0.5, background_s=2.0
        ),
        record("checkpoint", 20.0, outcome="failure", data_step=600, blocked_s=0.25, background_s=1.0),
    )

    assert values(series, "univip_checkpoint_last_success_timestamp_seconds") == {(): 10.0}
    assert values(series, "univip_checkpoint_last_success_data_step") == {(): 500.0}
    assert values(series, "univip_checkpoint_size_bytes") == {(): 7.0}
    assert values(series, "univip_checkpoint_saves_total") == {("success",): 1.0, ("failure",): 1.0}
    assert values(series, "univip_checkpoint_blocked_seconds_total") == {(): 0.75}
    assert values(series, "univip_checkpoint_last_blocked_seconds") == {(): 0.25}


def test_shards_add_up_and_a_shard_begun_again_counts_once() -> None:
    series = of(
        record("proposals", 1.0, shard=0, images_done=100, images=200, boxes=1000, failed={"corrupt": 2}),
        record("proposals", 2.0, shard=1, images_done=50, images=150, boxes=700, failed={}),
        record("proposals", 3.0, shard=0, images_done=20, images=200, boxes=180, failed={}, attempt=2),
        record("shard", 1.0, shard=0, state="running"),
        record("shard", 2.0, shard=1, state="running"),
        record("shard", 3.0, shard=1, state="done"),
    )

    assert values(series, "univip_proposals_images_total") == {(): 150.0}
    assert values(series, "univip_proposals_boxes_total") == {(): 1700.0}
    assert values(series, "univip_proposals_target_images") == {(): 350.0}
    assert values(series, "univip_proposals_failed_images_total")["corrupt",] == 2.0
    assert values(series, "univip_proposals_shards") == {("running",): 1.0, ("done",): 1.0, ("failed",): 0.0}


def test_a_run_is_in_one_state() -> None:
    series = of(record("run", 1.0, state="training"), record("run", 2.0, state="evaluating"))

    states = values(series, "univip_run_state")
    assert sum(states.values()) == states["evaluating",] == 1.0
    assert states["training",] == 0.0


def test_epochs_are_images_passed_over_images_of_the_data_set() -> None:
    series = of(record("run", num_images=1000, global_batch=32), record("step", data_step=125))

    assert values(series, "univip_train_epoch") == {(): 4.0}


def test_later_records_of_a_kind_need_not_repeat_every_field() -> None:
    series = of(
        record("run", 1.0, state="training", experiment="demo", method="univip", config_hash="0a1b2c3d"),
        record("run", 2.0, state="done"),
    )

    assert series.info(METRIC["univip_run_info"]) == {
        "experiment": "demo",
        "method": "univip",
        "config_hash": "0a1b2c3d",
    }


def test_both_networks_of_an_evaluation_are_told_apart() -> None:
    series = of(
        record("evaluate", protocol="knn", trained={"top1": 0.5}, untrained={"top1": 0.25}, split=["val"]),
    )

    assert values(series, "univip_eval_top1_accuracy_ratio") == {
        ("knn", "trained"): 0.5,
        ("knn", "untrained"): 0.25,
    }


def test_a_loss_that_is_not_finite_is_shown_as_it_is() -> None:
    [loss] = values(of(record("step", loss=math.nan)), "univip_train_loss").values()

    assert math.isnan(loss)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 1e300, "12", None, [1], {"a": 1}, True, 10**400])
def test_no_value_spoils_a_counter(bad: object) -> None:
    good = record("step", images=5, phases={"data": 1.0})
    series = of(good, record("step", 2.0, images=bad, phases={"data": bad}), record("step", 3.0, phases=bad))
    series.add(record("dropped", records=bad))

    assert values(series, "univip_train_images_total") == {(): 5.0}
    assert values(series, "univip_train_phase_seconds_total")["data",] == 1.0
    assert values(series, "univip_monitoring_dropped_records_total") == {(): 0.0}


@given(st.permutations([0.1, 0.2, 0.3, 0.7, 1e-9, 1e9 / 3]))
def test_sums_do_not_depend_on_the_order_of_the_files(order: list[float]) -> None:
    saves = [record("checkpoint", outcome="success", blocked_s=seconds) for seconds in order]

    [total] = values(merged(map(of, saves)), "univip_checkpoint_blocked_seconds_total").values()
    # Each is rounded to a millionth.
    assert total == 333333334.633333


def full_series() -> RunSeries:
    return of(
        record("run", 1.0, state="training", experiment="demo", num_images=100, global_batch=10),
        record("step", 2.0, loss=math.nan, images=900, phases={"data": 1.5}, data_step=7, terms={"scene": 1}),
        record("checkpoint", 3.0, outcome="success", blocked_s=0.1, background_s=1e-7, bytes=10),
        record("checkpoint", 4.0, outcome="failure", blocked_s=0.2),
        record("restart", 5.0, cause="hang"),
        record("proposals", 6.0, shard=3, images_done=5, images=8, boxes=70, failed={"corrupt": 1}),
        record("shard", 7.0, shard=3, state="running"),
        record("evaluate", 8.0, protocol="knn", trained={"top1": 0.5}, checkpoint_data_step=7),
    )


def shown(series: RunSeries) -> dict[str, str]:
    """Everything a run shows, as text: NaN differs from itself."""
    return {
        metric.name: repr(series.info(metric) if metric.type == "info" else sorted(series.samples(metric)))
        for metric in METRICS
        if metric.take != "exporter"
    }


def test_a_totals_record_tells_all_that_was_known() -> None:
    line = encode(record(TOTALS) | full_series().totals())

    again = RunSeries()
    told = decode(line)
    assert told is not None
    again.add(told)

    assert shown(again) == shown(full_series())
    # And what is added afterwards counts on.
    again.add(record("restart", cause="hang"))
    assert values(again, "univip_fault_restarts_total")["hang",] == 2.0


def test_a_totals_record_that_knows_less_takes_nothing_back() -> None:
    series = of(record("restart", cause="hang"), record("restart", cause="hang"), record("step", images=9))
    series.add(record(TOTALS) | of(record("restart", cause="hang"), record("step", images=5)).totals())

    assert values(series, "univip_fault_restarts_total")["hang",] == 2.0
    assert values(series, "univip_train_images_total") == {(): 9.0}


@pytest.mark.parametrize(
    "nonsense",
    [
        5,
        {"univip_nothing": [[[], "", 1.0]]},
        {"univip_train_images_total": 5},
        {"univip_train_images_total": [5, [], [[]], [["x"], "", 1.0], [[], "", "9"], [[], None, 9.0]]},
        {
            "univip_train_images_total": [
                [[], "", -1.0],
                [[], "", math.nan],
                [[], "", 10**400],
                [[], "", 1, 2],
            ]
        },
        {"univip_train_loss": [[[], "", 1.0, "x"], [[], "", "x", 1.0], [[], "", 1.0, 10**400]]},
    ],
)
def test_nonsense_in_a_totals_record_is_left_out(nonsense: object) -> None:
    series = of(record("step", images=5, loss=2.0))
    series.add(record(TOTALS, newest=nonsense, counts=nonsense))

    assert values(series, "univip_train_images_total") == {(): 5.0}
    assert values(series, "univip_train_loss") == {(): 2.0}


def test_a_journal_of_endless_labels_does_not_fill_the_memory() -> None:
    series = of(*(record("restart", cause=f"cause{number}") for number in range(MAX_CELLS + 10)))

    assert len(series.totals()["counts"]["univip_fault_restarts_total"]) == MAX_CELLS


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(KINDS),
    times=st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=3),
)
def test_whatever_a_field_holds_nothing_raises_and_labels_are_utf8(
    data: st.DataObject, kind: Kind, times: list[float]
) -> None:
    series = RunSeries()
    for time in times:
        fields = {name.removesuffix("{}"): data.draw(anything) for name in kind.fields}
        series.add(record(kind.name, time) | fields)
    series = merged([series, of(record(TOTALS) | series.totals())])

    for metric in METRICS:
        if metric.type == "info":
            "".join(series.info(metric).values()).encode("utf-8")
        elif metric.take != "exporter":
            for labels, value in series.samples(metric):
                assert isinstance(value, float)
                assert len(labels) == len(metric.labels)
                "".join(labels).encode("utf-8")
