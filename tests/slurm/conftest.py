"""Runs on a real SLURM: the cluster of `cluster.py`, real photographs, and commands as a user types them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.attempts import Attempt, read_attempts
from launcher.demo_data import SPLIT, make_demo_data
from monitoring import journal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
UNIVIP = [sys.executable, "-c", "from launcher.cli.main import main; main()"]
# Set where the tier must not be skipped.
NEED_CLUSTER = "UNIVIP_NEED_CLUSTER"
TARGET = 120  # data steps: long enough for something to happen meanwhile
POLL_S = 0.5


class Cluster:
    """SLURM, and what an administrator does to it."""

    def __init__(self, conf: Path) -> None:
        self.conf = conf
        self.environment = os.environ | {"SLURM_CONF": str(conf), "PYTHONPATH": str(ROOT)}

    def run(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def power(self, verb: str, *node: str) -> None:
        """`kill-node N`, `start-node N`, `restart-controller`."""
        subprocess.run(
            [sys.executable, str(HERE / "cluster.py"), verb, *node],
            env=self.environment,
            check=True,
            timeout=120,
        )

    def preempt(self, job_id: str) -> None:
        """Let something more important come to the nodes of a job, for a second."""
        nodes = self.job(job_id)["NodeList"]
        count = len(self.run("scontrol", "show", "hostnames", nodes).split())
        more_important = ["--qos=high", f"--nodelist={nodes}", f"--nodes={count}", "--exclusive"]
        self.run("sbatch", *more_important, "--wrap=sleep 1", "--output=/dev/null")

    def end_time(self, job_id: str) -> None:
        """Let the time limit of a job that runs come in half a minute; SLURM else takes whole minutes."""
        self.run("scontrol", "update", f"JobId={job_id}", "EndTime=now+30")

    def job(self, job_id: str) -> dict[str, str]:
        """What scontrol tells of a job."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job_id)
        return {name: value for name, _, value in (word.partition("=") for word in shown.split())}


class Runs:
    """One folder of runs, and the command line over it.

    Attributes:
        within: Command that starts the command line elsewhere, such as srun.
    """

    def __init__(self, cluster: Cluster, folder: Path, photographs: list[str]) -> None:
        self.cluster = cluster
        self.folder = folder
        self.photographs = photographs
        self.environment = cluster.environment | {"UNIVIP_RUNS": str(folder)}
        self.within: list[str] = []

    def request(self, *overrides: str) -> list[str]:
        """A small pipeline: two elastic workers on one node; of the array of proposals two run at once."""
        return [
            "submit",
            "pipeline",
            *self.photographs,
            "debug=small",
            "cluster=slurm",
            "cluster.workers_per_node=2",
            "cluster.proposals.array_parallelism=2",
            "cluster.signal_delay_s=25",
            "train.threads=1",
            "data.workers=0",
            f"train.max_steps={TARGET}",
            "checkpoint.every_steps=40",
            "proposals.processes=1",
            "proposals.shard_images=4",
            "resilience.collective_timeout_s=60",
            *overrides,
        ]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """A command of the command line, running."""
        return subprocess.Popen(
            [*self.within, *UNIVIP, *arguments],
            env=self.environment | environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def univip(self, *arguments: str, **environment: str) -> str:
        """What a command prints; it must succeed."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out.strip()

    def submit(self, *overrides: str, **environment: str) -> Run:
        """Submit a pipeline and come back."""
        return Run(self, self.univip(*self.request(*overrides), **environment).splitlines()[-1])

    def boxes(self) -> Run:
        """The run that makes the boxes of the others."""
        [directory] = self.folder.glob("proposals-*")
        return Run(self, directory.name)


class Run:
    """One run, as files and commands show it."""

    def __init__(self, runs: Runs, name: str) -> None:
        self.runs = runs
        self.name = name
        self.directory = runs.folder / name

    def status(self) -> dict[str, Any]:
        lines = map(json.loads, self.runs.univip("status", "--json", "--all").splitlines())
        return next(line for line in lines if line["run"] == self.name)

    def attempts(self, stage: str = "train") -> list[Attempt]:
        return [attempt for attempt in read_attempts(self.directory) if attempt.stage == stage]

    def records(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in journal.read(self.directory) if record["kind"] == kind]

    def reached(self) -> int:
        """The greatest data step that the journal tells of."""
        return max((record["data_step"] for record in self.records("step")), default=-1)

    def job_id(self, stage: str) -> str:
        jobs = json.loads((self.directory / "jobs.json").read_text(encoding="utf-8"))["jobs"]
        return next(job["id"] for job in jobs if job["stage"] == stage)

    def restarts(self) -> list[str]:
        """Why attempts or rounds were needed after the first, as the journal tells it."""
        return [record["cause"] for record in self.records("restart")]

    def processes(self, *words: str) -> list[int]:
        """Process ids, as seen from outside of the nodes, of what works on the run with these arguments."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # no process, or one that has ended
                continue
            if {os.fsencode(word) for word in (*words, self.directory)}.issubset(command):
                found.append(int(entry.name))
        return found

    def tasks(self, kind: str) -> list[int]:
        """Process ids of the tasks of SLURM that keep the processes which work on `kind`."""
        stats = [Path(f"/proc/{works}/stat") for works in self.processes("in-slurm", kind)]
        return [int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1]) for stat in stats]

    def digest(self) -> str:
        return self.runs.univip("digest", self.name)

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 180) -> Any:
        """The first true value of `condition`; fails if that does not come in time."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                queue = self.runs.cluster.run("squeue", "--states=all")
                logs = self.runs.univip("logs", self.name, "-n", "20")
                pytest.fail(f"waited {timeout_s:.0f} s for {what}\n{queue}\n{logs}\n{self.attempts()}")
            time.sleep(POLL_S)
        return value

    def until_step(self, data_step: int) -> None:
        self.until(lambda: self.reached() >= data_step, f"data step {data_step}", 240)

    def until_running(self, attempts: int) -> None:
        """Wait until an attempt has done some steps of its own."""
        self.until(lambda: len(self.attempts()) >= attempts, f"attempt {attempts}")
        self.until(
            lambda: any(record["attempt"] == self.attempts()[-1].number for record in self.records("step")),
            f"steps of attempt {attempts}",
        )

    def until_done(self, timeout_s: float = 300) -> None:
        path = self.directory / "results" / "evaluate.json"
        self.until(path.exists, "the evaluation", timeout_s)
        self.until(lambda: self.status()["state"] == "done", "the end", 30)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster that is up; where it is needed one that is brought up now."""
    spec = importlib.util.spec_from_file_location("cluster", HERE / "cluster.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    conf = module.FOLDER / "etc" / "slurm.conf"
    if os.environ.get(NEED_CLUSTER):
        # By a process of its own, as `make cluster` does: the daemons are not children of the tests.
        subprocess.run([sys.executable, str(HERE / "cluster.py"), "up"], check=True, timeout=600)
    elif not conf.exists():
        pytest.skip("no cluster is up; `make cluster` brings one up, as root on Debian or Ubuntu")
    found = Cluster(conf)
    for node in range(1, module.NODES + 1):
        found.power("start-node", str(node))
    yield found
    found.run("scancel", "--user=root", "--quiet")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name real photographs: those beside the checkout, else those that scikit-image ships."""
    beside = ROOT.parent / "shared" / "data" / "dev_coco"
    if beside.is_dir():
        return [f"data.root={beside}", "data.split=train2017"]
    root = make_demo_data(tmp_path_factory.mktemp("photographs") / "data")
    return [f"data.root={root}", f"data.split={SPLIT}", "proposals.min_sizes=[16,24]", "views.min_overlap=16"]


@pytest.fixture
def empty(cluster: Cluster, photographs: list[str], tmp_path: Path) -> Runs:
    """A folder without runs or boxes."""
    return Runs(cluster, tmp_path / "empty", photographs)


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, photographs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A pipeline that ran from start to end; every other one is compared with it."""
    run = Runs(cluster, tmp_path_factory.mktemp("calm"), photographs).submit()
    run.until_done()
    return run


@pytest.fixture
def new_runs(undisturbed: Run, tmp_path: Path) -> Callable[[str], Runs]:
    """Makes folders of runs in which the boxes are made already: the same request trains anew."""

    def make(name: str) -> Runs:
        folder = tmp_path / name
        boxes = undisturbed.runs.boxes().directory
        shutil.copytree(boxes, folder / boxes.name)
        return Runs(undisturbed.runs.cluster, folder, undisturbed.runs.photographs)

    return make


@pytest.fixture
def runs(new_runs: Callable[[str], Runs]) -> Runs:
    return new_runs("runs")
