"""A job as submitit starts it on a node: what a signal or a kill does to it is ours, and none of submitit's.

sbatch and scontrol are stand-ins; the process is the one of the script, and is signalled as SLURM does it:
each process of the step.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from jobs.attempts import read_attempts
from jobs.config import ClusterConfig, ClusterKind, Config, RunHeader, RunKind, store
from jobs.requests import Stage
from launcher.sbatch import SlurmJob, submit_slurm
from univip.config import DataConfig, DataFormat, ProposalsConfig, SearchEngine, SearchMode
from univip.data.scan import scan

ROOT = Path(__file__).resolve().parents[2]
# Waits instead of working, as long as there is a file that says so.
WAITS = """
import os, time
from jobs import proposals
work = proposals.prepare
def prepare(*arguments, **more):
    if os.path.exists(os.environ["WAITS"]):
        open(os.environ["WAITS"] + ".begun", "w").close()
        time.sleep(60)
    return work(*arguments, **more)
proposals.prepare = prepare
"""
START = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose first stage is job 100."""
    photographs, run_dir = tmp_path / "photographs", tmp_path / "proposals-1"
    photographs.mkdir()
    run_dir.mkdir()
    PIL.Image.effect_noise((80, 70), 60).save(photographs / "a.png")
    data = DataConfig(format=DataFormat.folder, root=str(photographs))
    boxes = ProposalsConfig(mode=SearchMode.single, engine=SearchEngine.opencv, min_sizes=[8], processes=1)
    config = Config(data=data, proposals=boxes, cluster=ClusterConfig(kind=ClusterKind.slurm))
    store(config, RunHeader(run_dir.name, RunKind.proposals, scan(data).fingerprint, 1), run_dir)
    (tmp_path / "bin").mkdir()
    for name, script in {
        "sbatch": "echo Submitted batch job 100",
        "srun": "exit 0",
        "scontrol": f'echo "$@" >> {tmp_path}/asked',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    job = SlurmJob(Stage("prepare", run_dir.name), run_dir, ["prepare"], {}, [sys.executable])
    assert submit_slurm([job], ROOT) == ["100"]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WAITS)
    return run_dir


@pytest.fixture
def start(run_dir: Path, tmp_path: Path) -> START:
    """Starts the job as the script does; it has begun its work when this comes back."""

    def begin(*, restart: int, waits: bool) -> subprocess.Popen[bytes]:
        flag, begun = tmp_path / "waits", tmp_path / "waits.begun"
        flag.touch() if waits else flag.unlink(missing_ok=True)
        begun.unlink(missing_ok=True)
        environment = os.environ | {
            "PYTHONPATH": str(tmp_path / "site"),
            "WAITS": str(flag),
            "SUBMITIT_EXECUTOR": "slurm",
            "SLURM_JOB_ID": "100",
            "SLURM_RESTART_COUNT": str(restart),
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_NTASKS": "1",
            "SLURM_JOB_NUM_NODES": "1",
            **{f"SLURM_{name}": "0" for name in ("NODEID", "PROCID", "LOCALID")},
        }
        command = [sys.executable, "-I", "-S", str(ROOT / "jobs" / "blocked.py"), "-u", "-m"]
        process = subprocess.Popen(
            [*command, "submitit.core._submit", str(run_dir / "submitit")],
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 60
        while waits and not begun.exists():
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    return begin


def pickles(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_dir / "submitit").glob("*.pkl*")}


@pytest.mark.parametrize(
    "number",
    [signal.SIGUSR2, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=["USR2", "TERM"],
)
def test_a_signal_to_every_process_is_one_requeue_and_submitit_takes_no_part_in_it(
    run_dir: Path, start: START, tmp_path: Path, number: signal.Signals
) -> None:
    submitted = pickles(run_dir)
    job = start(restart=0, waits=True)

    os.killpg(job.pid, number)
    _, said = job.communicate(timeout=60)

    assert job.returncode == 75, said.decode()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line for line in asked if line.startswith("requeue")] == ["requeue 100"]
    assert pickles(run_dir) == submitted  # no countdown in it, no result beside it
    [attempt] = read_attempts(run_dir)
    assert (attempt.exit_code, attempt.slurm_job_id) == (75, "100")


@pytest.mark.slow
def test_a_job_that_died_with_its_node_begins_anew_from_what_was_submitted(
    run_dir: Path, start: START
) -> None:
    """What submitit leaves of a write that was cut off must not keep the next execution from its end."""
    submitted = pickles(run_dir)
    job = start(restart=0, waits=True)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate(timeout=60)
    for name in ("100_submitted.pkl.save_tmp", "100_0_result.pkl.save_tmp", "100_0_result.pkl"):
        (run_dir / "submitit" / name).write_bytes(b"cut off")
    before = pickles(run_dir)

    job = start(restart=1, waits=False)
    _, said = job.communicate(timeout=60)

    assert job.returncode == 0, said.decode()
    first, second = read_attempts(run_dir)
    assert (first.exit_code, second.exit_code, second.slurm_restart) == (None, 0, 1)
    assert pickles(run_dir) == before
    assert submitted.items() <= before.items()
