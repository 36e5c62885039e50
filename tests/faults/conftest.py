"""Real runs to break: a small data set of real pixels, and the training job as the processes it really is.

Every job runs in a session of its own, so that a test can kill all of it and see that nothing survives.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from jobs import proposals
from jobs.audit import audit
from jobs.compose import compose
from jobs.config import RunHeader, RunKind, store
from monitoring import journal
from univip.checkpoint import layout
from univip.observe import NullObserver

ROOT = Path(__file__).resolve().parents[2]
TARGET = 20  # data steps of every run
TIMEOUT_S = 240.0  # of one attempt, start included; unloaded it takes 10 s
POLL_S = 0.02
PHOTOGRAPHS = ("coffee.png", "rocket.jpg", "astronaut.png", "chelsea.png")
CROPS = 4  # of each photograph
WIDTH, HEIGHT = 128, 96
SPLIT = "mini"


@dataclass(frozen=True)
class Run:
    """A run directory and what is read from it."""

    directory: Path

    def records(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in journal.read(self.directory) if record["kind"] == kind]

    def reached(self) -> int:
        """The greatest data step that the journal tells of."""
        return max((record["data_step"] for record in self.records("step")), default=-1)

    def ledger(self, kind: str) -> list[dict[str, Any]]:
        path = self.directory / "ledger.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def lost(self) -> list[int]:
        """Data steps that were left out by decision; every other one was applied once, as planned."""
        found = audit(self.directory)
        assert found["is_proved"], found
        lost = [step for each in found["lost"] for step in range(each["start"], each["stop"])]
        assert found["applied"] == TARGET - len(lost)
        return lost

    def digest(self) -> str:
        assert layout.data_steps(self.checkpoints)[-1] == TARGET
        return layout.digest(self.checkpoints / layout.name_of(TARGET))


class Job:
    """`python -m jobs.base KIND RUN_DIR`, all of its processes."""

    def __init__(self, run: Run, *, kind: str = "train", plant: str = "") -> None:
        self.run = run
        self.output = run.directory / f"{kind}-{time.monotonic_ns()}"
        with self.output.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.base", kind, str(run.directory)],
                cwd=ROOT,
                env={**os.environ, "UNIVIP_PLANT": plant},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def stderr(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def processes(self) -> list[int]:
        """Living processes of the session, the job's own included."""
        return [pid for pid, session in _sessions() if session == self.process.pid]

    def ranks(self) -> dict[int, int]:
        """Process id of every living rank, known by the log it writes to."""
        ranks: dict[int, int] = {}
        for pid in self.processes():
            try:
                log = str(Path(f"/proc/{pid}/fd/1").readlink())
            except OSError:  # ended in between
                continue
            if match := re.fullmatch(rf"{re.escape(str(self.run.directory))}/.*/rank-(\d+)\.log", log):
                ranks.setdefault(int(match[1]), pid)
        return ranks

    def readers(self) -> list[int]:
        """Processes that read photographs for the ranks, oldest first, after the servers that fork them."""
        return sorted(pid for pid in self.processes() if "univip.data.loader" in _command(pid))

    def until(
        self,
        condition: Callable[[], Any],
        what: str,
        *,
        timeout_s: float = TIMEOUT_S,
        poll_s: float = POLL_S,
    ) -> Any:
        """The first true value of `condition`; fails if that does not come in time."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"waited {timeout_s:.0f} s for {what}: {self.stderr}\n{self._logs()}")
            time.sleep(poll_s)
        return value

    def wait(self) -> int:
        """The exit code, once all processes are gone."""
        try:
            code = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the job did not end: {self.stderr}\n{self._logs()}")
        self.until(lambda: not self.processes(), "the last process to end", timeout_s=20)
        return code

    def kill(self) -> None:
        """SIGKILL of everything at once."""
        if self.processes():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.until(lambda: not self.processes(), "killed processes to end", timeout_s=10)

    def _logs(self) -> str:
        rounds = sorted(self.run.directory.glob("attempts/*/round-*"))[-1:]
        logs = [log for each in rounds for log in sorted(each.glob("rank-*.log"))]
        return "\n".join(f"{log}: {log.read_text(encoding='utf-8')[-2000:]}" for log in logs)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:  # ended in between
        return ""


def _sessions() -> Iterator[tuple[int, int]]:
    """Process id and session of every process that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # ended in between
            continue
        if fields[0] != "Z":
            yield int(entry.name), int(fields[3])


class Runs:
    """Makes runs on one data set, whose boxes all of them share."""

    target = TARGET
    split = SPLIT

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.boxes = folder / "runs" / "boxes"
        _make_photographs(self.data)
        self.boxes.mkdir(parents=True)
        config = compose(self._overrides(1))
        index = proposals.prepare(config, self.boxes)
        for shard in range(proposals.num_shards(config, self.boxes)):
            proposals.run_shard(config, self.boxes, shard, NullObserver())
        proposals.merge(config, self.boxes)
        self.header = RunHeader(
            id="", kind=RunKind.train, fingerprint=index.fingerprint, num_images=len(index), proposals="boxes"
        )
        self._digests: dict[tuple[object, ...], Run] = {}

    def new(self, name: str, *, workers: int, overrides: Sequence[str] = ()) -> Run:
        """A run that was submitted and not started."""
        run = Run(self.folder / "runs" / f"{name}-{len(list(self.folder.glob('runs/*'))):08d}")
        run.directory.mkdir()
        store(
            compose([*self._overrides(workers), *overrides]),
            replace(self.header, id=run.directory.name),
            run.directory,
        )
        return run

    def undisturbed(self, workers: int, *, plant: str = "", overrides: Sequence[str] = ()) -> Run:
        """A run from start to end without a kill, made once."""
        key = (workers, plant, *overrides)
        if key not in self._digests:
            run = self.new("undisturbed", workers=workers, overrides=overrides)
            job = Job(run, plant=plant)
            try:
                assert job.wait() == 0, job.stderr
            finally:
                job.kill()
            self._digests[key] = run
        return self._digests[key]

    def _overrides(self, workers: int) -> list[str]:
        return [
            "debug=small",
            f"data.root={self.data}",
            f"data.split={SPLIT}",
            "data.workers=0",
            "proposals.min_sizes=[16,24]",
            "proposals.processes=1",
            "views.min_overlap=16",
            f"train.max_steps={TARGET}",
            "train.threads=1",
            "checkpoint.every_steps=3",
            "resilience.collective_timeout_s=60",
            f"cluster.workers_per_node={workers}",
            f"paths.runs={self.folder / 'runs'}",
        ]


def _make_photographs(root: Path) -> None:
    """Crops of the photographs that scikit-image ships, laid out as COCO."""
    package = importlib.util.find_spec("skimage")
    assert package is not None
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "data"
    (root / "annotations").mkdir(parents=True)
    (root / "images" / SPLIT).mkdir(parents=True)
    draws = random.Random(0)
    images: list[dict[str, Any]] = []
    for name in PHOTOGRAPHS:
        with PIL.Image.open(folder / name) as opened:
            photograph = opened.convert("RGB")
        photograph.thumbnail((320, 320))
        for _ in range(CROPS):
            x, y = draws.randint(0, photograph.width - WIDTH), draws.randint(0, photograph.height - HEIGHT)
            number = len(images) + 1
            crop = photograph.crop((x, y, x + WIDTH, y + HEIGHT))
            crop.save(root / "images" / SPLIT / f"{number}.jpg", quality=95)
            images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
    document = {"images": images, "annotations": [], "categories": []}
    path = root / "annotations" / f"instances_{SPLIT}.json"
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def start() -> Iterator[Callable[..., Job]]:
    """Starts jobs; none of their processes outlives the test."""
    jobs: list[Job] = []

    def start_job(run: Run, **arguments: str) -> Job:
        jobs.append(Job(run, **arguments))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.kill()
