"""A run that everything happens to, watched: the exporter counts what the journal and the ledger tell."""

from __future__ import annotations

import itertools
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.exporter import Exporter

if TYPE_CHECKING:
    from conftest import Job, Run, Runs

pytestmark = pytest.mark.slow
Totals = dict[str, float]


def totals(exporter: Exporter, run: Run) -> Totals:
    """Every counter of a run, summed over its labels."""
    found: Totals = {}
    for family in text_string_to_metric_families(exporter.exposition().decode()):
        for sample in family.samples:
            if sample.name.endswith("_total") and sample.labels["run"] == run.directory.name:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def outcomes(run: Run) -> list[str]:
    """Of all saves so far."""
    return [record["outcome"] for record in run.records("checkpoint")]


def test_every_fault_of_a_run_is_counted_and_no_counter_goes_back(
    runs: Runs, start: Callable[..., Job]
) -> None:
    run = runs.new("watched", workers=2)
    living = Exporter(run.directory.parent)
    seen: list[Totals] = []
    job = start(run, plant="nan:loss@3,nan:parameter@8,kill:1@14")

    def look() -> bool:
        seen.extend([totals(living, run), totals(Exporter(run.directory.parent), run)])
        return run.reached() >= 4

    job.until(look, "data step 4")
    # Room for the journal and none for a checkpoint, as on a full disk.
    writer = job.ranks()[0]
    _, hard = resource.prlimit(writer, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    job.until(lambda: look() and "failure" in outcomes(run), "a failed checkpoint")
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (hard, hard))
    job.until(lambda: look() and run.records("restart"), "the kill")
    assert job.process.wait(120) == 0, job.stderr
    last = totals(Exporter(run.directory.parent), run)
    seen.extend([totals(living, run), last])

    assert last["univip_fault_rollbacks_total"] == len(run.ledger("rollback")) == 1
    assert last["univip_fault_skipped_steps_total"] == len(run.ledger("skip")) == 1
    assert last["univip_fault_nonfinite_total"] == 2
    assert last["univip_fault_restarts_total"] == len(run.records("restart")) == 1
    assert last["univip_checkpoint_saves_total"] == len(outcomes(run))
    assert last["univip_checkpoint_restores_total"] == sum(
        not each["rank"] for each in run.records("restore")
    )
    assert last["univip_train_steps_total"] == max(record["steps"] for record in run.records("step"))
    assert len(seen) > 20
    for before, after in itertools.pairwise(seen):
        assert all(after[name] >= value for name, value in before.items())
