"""What a real SLURM refuses, or would let wait for ever: three lines, an exit code, and no job."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobs.attempts import read_attempts
from jobs.config import ClusterConfig, ClusterKind, Config
from launcher.sbatch import render_slurm, trial_jobs

if TYPE_CHECKING:
    from conftest import Cluster, Runs

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["cluster.partition=mian"], "`mian` is not there; there are main", "cluster.partition=main"),
        (
            ["cluster.gpus_per_node=9"],
            "no node of main has cluster.gpus_per_node=9",
            "cluster.gpus_per_node=8",
        ),
        (["cluster.gres=gpu:9"], "no node of main has cluster.gres=gpu:9", "cluster.gres="),
        (["cluster.gres=tpu:1"], "Invalid generic resource", "univip doctor"),
        (["cluster.constraint=haswell"], "Invalid feature specification", "univip doctor"),
        (["cluster.time_h=72"], "may run for 72 h, but main gives 48 h", "cluster.time_h=48"),
        (
            ["cluster.nodes.min=9", "cluster.nodes.max=9"],
            "train needs 9 nodes, but main has 4",
            "cluster.nodes.min=4",
        ),
        (
            ["cluster.proposals.partition=shrot"],
            "`shrot` is not there",
            "cluster.proposals.partition=short",
        ),
        (
            ["cluster.proposals.partition=short"],
            "prepare may run for 2 h, but short gives 1 h",
            "cluster.proposals.time_h=1",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_no_job_can_have_is_refused(
    cluster: Cluster, empty: Runs, words: list[str], what: str, fix: str
) -> None:
    before = cluster.run("squeue", "--noheader", "--format=%A")

    process = empty.start(*empty.request(*words))
    out, err = process.communicate(timeout=120)

    said = err.splitlines()[-3:]
    assert process.returncode == 2, err
    assert out == ""
    assert what in said[0]
    assert said[1].startswith("  where: ")
    assert said[2].startswith(f"  fix:   {fix}")
    assert not [line for line in err.splitlines()[:-3] if line.startswith("sbatch")]
    # One that had begun ends in order, and does not queue itself again.
    deadline = time.monotonic() + 60
    while set(cluster.run("squeue", "--noheader", "--format=%A").split()) - set(before.split()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    for run_dir in empty.folder.glob("*"):
        assert {(each.ended is None, each.cause) for each in read_attempts(run_dir)} <= {(False, "cancelled")}


NASTY = ["a b", "$(touch pwned)", "`touch pwned`", "x' ; touch pwned; '", 'x" && touch pwned "', "é # ~ *"]


@pytest.mark.parametrize("nasty", NASTY)
def test_sbatch_takes_a_nasty_value_as_it_is(cluster: Cluster, tmp_path: Path, nasty: str) -> None:
    """It reads the lines of a script by rules of its own, which no shell can stand in for."""
    asked = ClusterConfig(kind=ClusterKind.slurm, extra={"comment": nasty, "hold": ""})
    job = trial_jobs(Config(cluster=asked), tmp_path / nasty / "run")["evaluate"]
    script = tmp_path / "script"
    script.write_text(render_slurm([job], ROOT)[0])

    job_id = cluster.run("sbatch", "--parsable", str(script))

    shown = cluster.run("squeue", "--noheader", f"--jobs={job_id}", "--format=%T|%k")
    folder = cluster.run("scontrol", "show", "job", job_id).partition("StdOut=")[2].splitlines()[0]
    cluster.run("scancel", job_id)
    assert shown == f"PENDING|{nasty}"
    assert folder == f"{tmp_path}/{nasty}/run/submitit/{job_id}_0_log.out"


def test_a_folder_that_the_nodes_do_not_see_is_told_with_the_command_that_shows_it(
    cluster: Cluster, empty: Runs
) -> None:
    """It is mounted after the nodes have begun, each with mounts of its own."""
    empty.folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(empty.folder)], check=True)
    try:
        words = [word for word in empty.request() if word != "pipeline"]
        process = empty.start(words[0], "proposals", *words[1:], "--wait")
        _, err = process.communicate(timeout=200)
        shown = empty.univip("show", "@last")
    finally:
        subprocess.run(["umount", str(empty.folder)], check=True)

    assert process.returncode == 1, err
    for said in (err, shown):
        for words_of in (
            "has failed before it could leave a word",
            "scontrol show job",
            "doctor cluster",
        ):
            assert words_of in said


def test_what_needs_no_gpu_goes_to_a_partition_of_its_own(cluster: Cluster, empty: Runs) -> None:
    own = ["partition=short", "time_h=0.5", "mem_gb=3", "constraint=''"]
    words = ["+cluster.extra.begin=now+600", "+cluster.extra.exclusive=''", "cluster.mem_gb=5"]

    extra = "+cluster.proposals.extra={exclusive:null,nice:'7'}"
    run = empty.submit(*words, extra, *(f"cluster.proposals.{word}" for word in own))

    names = (run.name, empty.boxes().name)
    listed = cluster.run("squeue", "--noheader", "--format=%j|%k|%P|%l|%m|%h|%N")
    jobs = [line.split("|") for line in listed.splitlines() if line.split("|")[1] in names]
    asked = {name.removeprefix("univip-"): rest for name, _, *rest in jobs}
    boxes = ["short", "30:00", "3G", "OK", ""]
    training = ["main", "1-00:00:00", "5G", "NO", ""]
    assert asked == {
        "prepare": boxes,
        "shards": boxes,
        "merge": boxes,
        "train": training,
        "evaluate": training,
    }
    empty.univip("cancel", run.name)


def test_where_a_user_may_have_few_jobs_an_array_has_few_elements(cluster: Cluster, empty: Runs) -> None:
    words = ["cluster.qos=few", "proposals.shard_images=2", "+cluster.extra.begin=now+600"]

    run = empty.submit(*words)
    another = empty.start(*empty.request(*words, "train.seed=1"))
    _, err = another.communicate(timeout=120)

    listed = cluster.run("squeue", "--noheader", "--array", "--format=%j %k").splitlines()
    stages = [line.split()[0] for line in listed if line.split()[1] in (run.name, empty.boxes().name)]
    # Of eight jobs four are left for twelve shards, which are halved until they fit.
    assert sorted(stages) == [
        "univip-evaluate",
        "univip-merge",
        "univip-prepare",
        *3 * ["univip-shards"],
        "univip-train",
    ]
    assert another.returncode == 2
    assert "MaxSubmitJob" in err
    assert "fix:   squeue --me" in err
    empty.univip("cancel", run.name)
