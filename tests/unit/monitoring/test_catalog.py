"""The catalogue: names follow the conventions, and every metric has a source."""

from __future__ import annotations

import re

import pytest

from jobs.outcomes import Cause
from monitoring import kinds
from monitoring.catalog import METRICS, Metric, markdown_table
from monitoring.kinds import KINDS
from univip.data.decode import REASONS
from univip.engine.phases import PHASES
from univip.resilience.guard import Health

FIELDS = {kind.name: {name.removesuffix("{}") for name in kind.fields} for kind in KINDS}
ENVELOPE = {"attempt", "round", "rank", "step", "data_step"}
SUFFIX_OF_UNIT = {unit: f"_{unit}" for unit in ("seconds", "bytes", "ratio", "celsius", "watts")}

each_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


def test_every_name_is_defined_once() -> None:
    # OpenMetrics names families without these suffixes.
    families = {metric.name.removesuffix("_total").removesuffix("_info") for metric in METRICS}
    assert len(families) == len(METRICS)
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@each_metric
def test_a_name_says_its_subject_and_its_base_unit(metric: Metric) -> None:
    assert re.fullmatch(
        r"univip_(run|attempt|train|data|checkpoint|fault|proposals|eval|gpu|slurm|monitoring)(_[a-z0-9]+)+",
        metric.name,
    )
    base = metric.name.removesuffix("_total")
    for unit, suffix in SUFFIX_OF_UNIT.items():
        assert (metric.unit == unit) == base.endswith(suffix)
    assert not re.search(r"_(count|sum|bucket|created|ms|milliseconds|percent|kb|mb)\b", base)


@each_metric
def test_what_only_grows_is_a_counter_and_nothing_else_is(metric: Metric) -> None:
    grows = metric.take in ("largest", "sum", "count") or metric.name.endswith("damaged_lines_total")
    assert (metric.type == "counter") == grows


@each_metric
def test_a_help_is_a_sentence(metric: Metric) -> None:
    assert re.fullmatch(r"[A-Z0-9].*\.", metric.help)
    assert "|" not in metric.help


@each_metric
def test_a_metric_is_made_of_fields_that_exist(metric: Metric) -> None:
    assert (metric.take == "exporter") == (not metric.kinds)
    for kind in metric.kinds:
        known = FIELDS[kind] | ENVELOPE
        first = metric.path.split(".")[0]
        assert not first or first == "*" or first in known
        assert not metric.per or metric.per in known
        assert metric.when is None or metric.when[0] in known
        fields = list(metric.labels)[:-1] if "*" in metric.path else list(metric.labels)
        assert set(fields) <= known


@each_metric
def test_labels_leave_prometheus_its_own_and_show_identifiers_only_in_info(metric: Metric) -> None:
    assert not {"job", "instance", "le", "quantile", "run", "path", "checkpoint", "image_id"} & set(
        metric.labels
    )
    if metric.type != "info":
        assert not {"config_hash", "slurm_job_id", "host", "experiment"} & set(metric.labels)


def test_the_values_of_labels_are_those_the_engine_uses() -> None:
    assert kinds.PHASES == PHASES
    assert kinds.IMAGE_REASONS == REASONS
    assert Health._fields == kinds.FAULT_PLACES
    assert set(kinds.RESTART_CAUSES) <= {cause.value for cause in Cause}


def test_the_table_has_one_row_for_each_metric() -> None:
    header, rule, *rows = markdown_table().splitlines()

    assert header.count("|") == rule.count("|") == 6
    assert [row.split("`")[1] for row in rows] == [metric.name for metric in METRICS]
    assert all(row.count("|") == 6 for row in rows)
