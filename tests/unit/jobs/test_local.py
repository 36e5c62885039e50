"""The supervisor, with shell scripts as stages: what it starts, in which order, and when it stops."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from jobs import local
from jobs.attempts import attempt
from jobs.outcomes import write_json
from jobs.requests import Request, Stage
from jobs.slurm import Execution

# Stands in for `python -m jobs.base KIND RUN_DIR`: writes what it was asked for, then does what the file
# named after its kind says.
STAGE = """#!/bin/sh
echo "$3" >> "$4/../started"
[ -f "$4/../$3.sh" ] && . "$4/../$3.sh"
exit 0
"""
DRIVER = """
import sys
from pathlib import Path
executable, run_dir = sys.argv[1:]
sys.executable = executable
from jobs.local import supervise
raise SystemExit(supervise(Path(run_dir)))
"""
KINDS = ["prepare", "shards", "merge", "train", "evaluate"]


class Lab:
    """A folder of runs, and supervisors on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running: list[subprocess.Popen[str]] = []
        self.stage = root / "stage"
        self.stage.write_text(STAGE)
        self.stage.chmod(0o755)

    def request(self, run: str = "train-1") -> Path:
        for name in (run, "boxes"):
            (self.root / name).mkdir(exist_ok=True)
        stages = [Stage(kind, "boxes" if kind in KINDS[:3] else run) for kind in KINDS]
        Request("pipeline", stages).save(self.root / run)
        return self.root / run

    def supervise(self, run_dir: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, str(self.stage), str(run_dir)]
        process = subprocess.Popen(command, text=True, stderr=subprocess.PIPE)
        self.running.append(process)
        return process

    def script(self, kind: str, text: str) -> None:
        (self.root / f"{kind}.sh").write_text(text)

    def started(self) -> list[str]:
        path = self.root / "started"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    for process in lab.running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def told(run_dir: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run_dir / "supervisor.json").read_text())
    return document


def states(run_dir: Path) -> list[str]:
    return [stage["state"] for stage in told(run_dir)["stages"]]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_stages_run_in_order_to_the_end(lab: Lab) -> None:
    run_dir = lab.request()

    assert lab.supervise(run_dir).wait(20) == 0

    assert lab.started() == KINDS
    assert told(run_dir)["outcome"] == "done"
    assert states(run_dir) == ["done"] * 5
    assert (lab.root / "boxes" / "logs" / "merge.log").exists()


@pytest.mark.parametrize(("end", "outcome"), [("exit 0", "done"), ("exit 77", "failed")])
def test_every_run_that_was_worked_on_is_told_of_the_end(lab: Lab, end: str, outcome: str) -> None:
    lab.script("train", end)
    run_dir = lab.request()

    lab.supervise(run_dir).wait(20)

    assert told(run_dir)["outcome"] == outcome
    assert told(lab.root / "boxes") == told(run_dir)


def test_boxes_that_another_supervisor_works_on_by_then_are_not_told_of_the_end(lab: Lab) -> None:
    theirs = '{"host": "elsewhere", "pid": 7}'
    lab.script("train", f"echo '{theirs}' > \"$4/../boxes/supervisor.json\"")
    run_dir = lab.request()

    assert lab.supervise(run_dir).wait(20) == 0

    assert told(lab.root / "boxes") == json.loads(theirs)


def test_a_stage_that_asks_for_it_is_started_again(lab: Lab) -> None:
    lab.script("train", 'if [ ! -f "$4/once" ]; then touch "$4/once"; exit 75; fi')
    run_dir = lab.request()

    assert lab.supervise(run_dir).wait(20) == 0

    assert lab.started() == ["prepare", "shards", "merge", "train", "train", "evaluate"]


@pytest.mark.parametrize(("end", "code", "cause"), [("exit 77", 77, "refused"), ("kill -9 $$", -9, "killed")])
def test_the_chain_stops_at_the_first_failure_with_its_cause(
    lab: Lab, end: str, code: int, cause: str
) -> None:
    lab.script("merge", end)
    run_dir = lab.request()

    assert lab.supervise(run_dir).wait(20) == code % 256

    assert lab.started() == ["prepare", "shards", "merge"]
    assert told(run_dir)["outcome"] == "failed"
    failed = told(run_dir)["stages"][2]
    assert (failed["state"], failed["exit_code"], failed["cause"]) == ("failed", code, cause)
    assert states(run_dir)[3:] == ["waiting", "waiting"]


def test_finished_stages_are_not_started_again(lab: Lab) -> None:
    run_dir = lab.request()
    attempt = {"number": 1, "host": "x", "pid": 1, "start_ticks": 1, "slurm_job_id": "", "started": 1.0}
    for number, kind in enumerate(["prepare", "merge"], start=1):
        (lab.root / "boxes" / "attempts" / f"{number:04d}").mkdir(parents=True)
        write_json(
            lab.root / "boxes" / "attempts" / f"{number:04d}" / "attempt.json",
            {**attempt, "stage": kind, "ended": 2.0, "exit_code": 0, "cause": "done"},
        )

    assert lab.supervise(run_dir).wait(20) == 0

    assert lab.started() == ["train", "evaluate"]


def test_sigterm_lets_the_stage_save_and_ends_the_chain(lab: Lab) -> None:
    lab.script(
        "train", 'trap \'touch "$4/saved"; exit 75\' TERM; touch "$4/ready"; while :; do sleep 0.05; done'
    )
    run_dir = lab.request()
    supervisor = lab.supervise(run_dir)
    wait_until((run_dir / "ready").exists)

    supervisor.send_signal(signal.SIGTERM)
    supervisor.wait(20)

    assert (run_dir / "saved").exists()
    assert told(run_dir)["outcome"] == "cancelled"
    assert lab.started()[-1] == "train"
    assert states(run_dir)[3:] == ["cancelled", "waiting"]


def test_sigint_kills_the_stage_and_all_it_started(lab: Lab) -> None:
    lab.script("train", 'trap \'\' TERM INT; sleep 60 & echo $! > "$4/child"; touch "$4/ready"; wait')
    run_dir = lab.request()
    supervisor = lab.supervise(run_dir)
    wait_until((run_dir / "ready").exists)
    child = Path("/proc") / (run_dir / "child").read_text().strip()
    assert child.exists()

    supervisor.send_signal(signal.SIGINT)
    supervisor.wait(20)

    wait_until(lambda: not child.exists() or "(sleep) Z" in (child / "stat").read_text())
    assert told(run_dir)["outcome"] == "cancelled"


def test_a_run_has_one_supervisor(lab: Lab) -> None:
    lab.script("train", 'touch "$4/ready"; while [ ! -f "$4/go" ]; do sleep 0.05; done')
    run_dir = lab.request()
    first = lab.supervise(run_dir)
    wait_until((run_dir / "ready").exists)

    second = lab.supervise(run_dir)

    assert second.wait(20) == 5
    assert told(run_dir)["pid"] == first.pid
    (run_dir / "go").touch()
    assert first.wait(20) == 0


def test_a_second_request_waits_for_boxes_that_another_one_makes(lab: Lab) -> None:
    lab.script("shards", 'touch "$4/ready"; while [ ! -f "$4/go" ]; do sleep 0.05; done')
    one, two = lab.request("train-1"), lab.request("train-2")
    first = lab.supervise(one)
    wait_until((lab.root / "boxes" / "ready").exists)

    second = lab.supervise(two)
    wait_until((two / "supervisor.json").exists)
    time.sleep(0.4)

    assert states(two) == ["waiting"] * 5
    assert lab.started() == ["prepare", "shards"]
    (lab.root / "boxes" / "go").touch()
    assert (first.wait(20), second.wait(20)) == (0, 0)


def test_a_supervisor_that_was_killed_leaves_the_run_free(lab: Lab) -> None:
    lab.script("train", 'touch "$4/ready"; while [ ! -f "$4/go" ]; do sleep 0.05; done')
    run_dir = lab.request()
    first = lab.supervise(run_dir)
    wait_until((run_dir / "ready").exists)

    first.kill()
    first.wait(20)
    (run_dir / "go").touch()

    with (run_dir / "supervisor.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_second_request_waits_for_a_stage_whose_supervisor_was_killed(lab: Lab) -> None:
    run_dir = lab.request()
    with attempt(lab.root / "boxes", "shards"):
        supervisor = lab.supervise(run_dir)
        wait_until((run_dir / "supervisor.json").exists)
        time.sleep(0.4)
        assert lab.started() == []

    assert supervisor.wait(20) == 0
    assert lab.started() == KINDS


def test_waiting_keeps_no_file_open(lab: Lab) -> None:
    run_dir = lab.request()
    with ExitStack() as owner, ExitStack() as other:
        assert local._lock(run_dir, owner)
        before = len(list(Path("/proc/self/fd").iterdir()))

        assert not any(local._lock(run_dir, other) for _ in range(50))

        assert len(list(Path("/proc/self/fd").iterdir())) == before
        owner.close()
        assert local._lock(run_dir, other)


def test_a_full_disk_ends_no_stage(lab: Lab) -> None:
    run_dir = lab.request()
    (run_dir / "supervisor.json").mkdir()  # can be written as little as on a full disk

    supervisor = lab.supervise(run_dir)

    assert supervisor.wait(20) == 0
    assert lab.started() == KINDS
    assert supervisor.stderr is not None
    assert supervisor.stderr.read().count("is not up to date") == 1


def test_a_stage_in_an_allocation_of_several_nodes_works_on_its_own(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.script("train", 'env > "$4/seen"')
    for name, value in {"JOB_ID": "7", "NNODES": "2", "NODEID": "1", "JOB_NODELIST": "node[1-2]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    run_dir = lab.request()

    assert lab.supervise(run_dir).wait(20) == 0

    lines = (run_dir / "seen").read_text().splitlines()
    seen = dict(line.split("=", 1) for line in lines if line.startswith("SLURM_"))
    assert Execution.here(seen) == Execution("7", restart=0, node=0, num_nodes=1)
    assert "SLURM_JOB_NODELIST" not in seen


def test_a_stage_sees_the_gpus_of_the_shell_that_submitted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.script("train", 'echo "${CUDA_VISIBLE_DEVICES-unset}" > "$4/gpus"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as submitit leaves it

    for visible, seen in (("all", "unset"), ("2,3", "2,3")):
        monkeypatch.setenv("UNIVIP_VISIBLE_GPUS", visible)
        run_dir = lab.request(f"train-{seen}")
        assert lab.supervise(run_dir).wait(20) == 0
        assert (run_dir / "gpus").read_text().strip() == seen
