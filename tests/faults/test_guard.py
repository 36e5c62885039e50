"""What the guard does in real runs of several ranks, seen from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Job, Run, Runs

pytestmark = pytest.mark.slow
START = Callable[..., "Job"]
QUICK = ["resilience.spike_window=4", "resilience.max_consecutive_spikes=2", "resilience.calm_steps=8"]


def replayed(run: Run, data_step: int) -> dict[str, Any]:
    """What `univip replay --json` prints, computed by fresh processes."""
    command = [sys.executable, "-m", "jobs.replay", str(run.directory), str(data_step), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_persistent_spike_costs_one_rollback_and_can_be_replayed_bit_by_bit(
    runs: Runs, start: START
) -> None:
    run = runs.new("spiking", workers=2, overrides=QUICK)
    job = start(run, plant="spike:loss@8,spike:loss@9")

    assert job.wait() == 0, job.stderr
    (rollback,) = run.records("rollback")
    assert (rollback["reason"], rollback["data_step"], rollback["window_stop"]) == ("spike", 9, 10)
    assert [record["data_step"] for record in run.records("spike")][:1] == [8]
    assert run.reached() == runs.target
    found = replayed(run, 9)
    assert found["same_bits"]
    assert found["replayed"]["reason"] == "spike"


def test_a_bad_value_on_one_of_two_ranks_is_replayed_bit_by_bit(runs: Runs, start: START) -> None:
    run = runs.new("replayed", workers=2)
    job = start(run, plant="nan:activation@7")

    assert job.wait() == 0, job.stderr
    found = replayed(run, 7)
    assert found["same_bits"]
    assert (found["rank"], found["world_size"]) == (0, 2)
    capsule = json.loads((run.directory / "anomalies" / "000000007" / "capsule.json").read_text())
    assert found["images"] == capsule["ranks"][0]["image_ids"][:1]
    # The ranks hold different parts of the batch, and each knows its own losses.
    first, second = capsule["ranks"]
    assert set(first["image_ids"]).isdisjoint(second["image_ids"])
    assert (run.directory / "anomalies" / "000000007" / "images.png").stat().st_size > 0


def test_a_kill_in_the_calm_stretch_changes_nothing_about_what_is_learnt(runs: Runs, start: START) -> None:
    plant = "nan:parameter@6,nan:parameter@9"
    calm = runs.undisturbed(2, plant=plant, overrides=QUICK)
    run = runs.new("calm", workers=2, overrides=QUICK)
    job = start(run, plant=plant)
    job.until(lambda: any(record["calm"] for record in run.records("step")), "a calm step")
    job.kill()
    killed_at = run.reached()

    job = start(run, plant=plant)
    assert job.wait() == 0, job.stderr
    assert killed_at < runs.target
    assert [record["calm_steps"] for record in run.ledger("rollback")] == [0, 8]
    assert run.ledger("rollback")[1]["target"] < run.ledger("rollback")[0]["target"]
    assert run.digest() == calm.digest()


def test_a_bit_that_flips_on_one_rank_is_found_and_the_rank_named(runs: Runs, start: START) -> None:
    run = runs.new("flipped", workers=3)
    job = start(run, plant="flip:1@7")

    assert job.wait() == 0, job.stderr
    (rollback,) = run.records("rollback")
    assert rollback["reason"] == "replicas_differ"
    assert rollback["what"].startswith("rank 1 differs from the other 2 ranks in `online.backbone.")
    # No data were at fault, so none are jumped over: the run ends as if nothing had happened.
    assert rollback["window_start"] == rollback["window_stop"]
    assert run.digest() == runs.undisturbed(3).digest()


def test_two_ranks_take_the_same_bits_from_the_memory_of_one_and_from_the_disk(
    runs: Runs, start: START
) -> None:
    cadence = ["checkpoint.every_steps=10"]  # so that the newest checkpoint is the target
    from_memory = runs.undisturbed(2, plant="nan:parameter@15", overrides=cadence)
    run = runs.new("forgot", workers=2, overrides=cadence)
    job = start(run, plant="kill:1@14,nan:parameter@15")  # the processes that wrote it are gone by then

    assert job.wait() == 0, job.stderr
    assert [record["source"] for record in from_memory.records("restore")] == ["memory"] * 2
    assert [record["source"] for record in run.records("restore")] == ["disk"] * 4
    assert [each["target"] for each in [*from_memory.ledger("rollback"), *run.ledger("rollback")]] == [10, 10]
    assert run.digest() == from_memory.digest()
