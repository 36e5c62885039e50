"""Which work is not begun again after its time limit has ended it; the outcomes are those of `jobs.base`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import base, slurm
from jobs.attempts import read_attempts
from jobs.config import ClusterConfig, Config, ProposalJobsConfig, RunHeader, RunKind, store
from jobs.outcomes import Cause, ExitCode, Outcome
from univip.checkpoint import layout
from univip.config import DataConfig

LIMIT, PREEMPTED = Cause.TIME_LIMIT, Cause.PREEMPTION
Execute = Callable[..., int]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run_dir = tmp_path / "a-1"
    run_dir.mkdir()
    cluster = ClusterConfig(time_h=8.0, proposals=ProposalJobsConfig(time_h=1.5), signal_delay_s=100)
    config = Config(data=DataConfig(root="/x"), cluster=cluster)
    store(config, RunHeader("a-1", RunKind.train, "f" * 64, 10), run_dir)
    return run_dir


@pytest.fixture
def execute(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Runs one execution of a job of SLURM: what the stage makes, and why SLURM ends it; the exit status."""
    restarts: dict[str, int] = {}

    def once(kind: str, cause: Cause, *, makes: str = "", job: str = "17") -> int:
        def work(*_: object) -> Outcome:
            if makes:
                path = run_dir / makes
                path.parent.mkdir(exist_ok=True)
                path.touch() if path.suffix else path.mkdir()
            return Outcome(ExitCode.REQUEUE, cause, "its time is almost up")

        monkeypatch.setattr(base, "_attempted", work)
        monkeypatch.setattr(slurm, "requeue", lambda *_, **__: "")
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts.get(job, 0)))
        restarts[job] = restarts.get(job, 0) + 1
        with pytest.raises(SystemExit) as ended:
            base.run_slurm_task(kind, str(run_dir))
        return int(str(ended.value.code))

    return once


def checkpoint(data_step: int) -> str:
    return f"checkpoints/{layout.name_of(data_step)}"


@pytest.mark.parametrize(
    ("kind", "fix"),
    [
        ("prepare", "cluster.proposals.time_h=3"),
        ("shard:3", "cluster.proposals.time_h=3"),
        ("shard:1/4", "cluster.proposals.time_h=3"),
        ("merge", "cluster.proposals.time_h=3"),
        ("evaluate", "cluster.time_h=16"),
        ("train", "cluster.time_h=16, or cluster.signal_delay_s=200 if only saving takes too long"),
    ],
)
def test_what_the_time_limit_ended_twice_with_nothing_won_is_for_a_person(
    run_dir: Path, execute: Execute, capfd: pytest.CaptureFixture[str], kind: str, fix: str
) -> None:
    assert execute(kind, LIMIT) == 75
    capfd.readouterr()

    assert execute(kind, LIMIT) == 76

    first, second = read_attempts(run_dir)
    assert (first.exit_code, first.cause) == (75, "time_limit")
    assert (second.exit_code, second.cause) == (76, "time_limit")
    what, where, how = second.message.splitlines()
    assert "within its time limit" in what
    assert where == f"  where: {run_dir}, attempts 1 and 2: its time is almost up"
    assert how == f"  fix:   the same request again with {fix}"
    assert capfd.readouterr().err == second.message + "\n"


def test_a_training_that_makes_checkpoints_goes_on_for_ever(run_dir: Path, execute: Execute) -> None:
    for number in range(1, 6):
        assert execute("train", LIMIT, makes=checkpoint(number)) == 75

    assert execute("train", LIMIT) == 76


def test_an_element_of_a_long_array_goes_on_while_it_finishes_shards(run_dir: Path, execute: Execute) -> None:
    for shard in (1, 5, 9):
        assert execute("shard:1/4", LIMIT, makes=f"shards/shard-{shard:05d}.json") == 75

    another = "shards/shard-00006.json"  # of another element, which runs at the same time

    assert execute("shard:1/4", LIMIT, makes=another) == 76


def test_a_shard_that_is_made_anew_is_won(run_dir: Path, execute: Execute) -> None:
    """Of other photographs, say, and thus of no use before."""
    stale = run_dir / "shards" / "shard-00001.json"
    stale.parent.mkdir()
    stale.touch()
    os.utime(stale, (1.0, 1.0))
    assert execute("shard:1/4", LIMIT) == 75

    assert execute("shard:1/4", LIMIT, makes="shards/shard-00001.json") == 75


@pytest.mark.parametrize("kind", ["prepare", "evaluate", "train"])
def test_preemptions_are_not_counted_and_a_time_limit_counts_in_a_row_only(
    run_dir: Path, execute: Execute, kind: str
) -> None:
    causes = [PREEMPTED, PREEMPTED, PREEMPTED, LIMIT, PREEMPTED, LIMIT, Cause.STOPPED, LIMIT]

    assert {execute(kind, cause) for cause in causes} == {75}
    assert execute(kind, LIMIT) == 76


def test_another_job_another_element_and_another_stage_begin_their_own_count(
    run_dir: Path, execute: Execute
) -> None:
    assert execute("evaluate", LIMIT, job="17") == 75
    assert execute("evaluate", LIMIT, job="18") == 75
    assert execute("prepare", LIMIT, job="18") == 75
    assert execute("shard:1", LIMIT, job="19_1") == 75
    assert execute("shard:2", LIMIT, job="19_2") == 75
