"""SIGKILL of whatever makes boxes, at any moment, changes no byte of the store and leaves nothing behind.

Every stage runs as the process it is in a job, forked from a server that has everything loaded, so that a
kill costs a fraction of a second and there can be many.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jobs.base import run_slurm_task
from jobs.config import Config, PathsConfig, RunHeader, RunKind, store
from univip.config import DataConfig, DataFormat, ProposalsConfig, SearchEngine, SearchMode
from univip.data.proposals import ProposalStore
from univip.data.scan import scan

SHARDS = 2
MOST_ROUNDS = 12  # four are enough where the machine does nothing else
LEAST_KILLS = 50
LEAST_KILLS_OF_A_STAGE = 5
TIMEOUT_S = 200.0  # of a stage that takes two seconds unloaded


def make_photographs(folder: Path) -> None:
    folder.mkdir()
    for number in range(4 * SHARDS):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")


class Work:
    """A run on the photographs, and its stages as processes."""

    def __init__(self, run_dir: Path, photographs: Path) -> None:
        data = DataConfig(format=DataFormat.folder, root=str(photographs))
        boxes = ProposalsConfig(
            engine=SearchEngine.opencv,  # whose processes start sooner
            mode=SearchMode.single,
            min_sizes=[16, 24],
            shard_images=4,
            processes=1,
        )
        config = Config(data=data, proposals=boxes, paths=PathsConfig(runs=str(run_dir.parent)))
        found = scan(data)
        header = RunHeader(run_dir.name, RunKind.proposals, found.fingerprint, len(found.rows))
        run_dir.mkdir()
        store(config, header, run_dir)
        self.run_dir = run_dir
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["jobs.base", "jobs.proposals"])

    def start(self, kind: str) -> multiprocessing.process.BaseProcess:
        process = self._context.Process(target=run_slurm_task, args=(kind, str(self.run_dir)))
        process.start()
        return process

    def finish(self, kind: str) -> float:
        """Seconds that a stage takes which nobody disturbs."""
        start = time.monotonic()
        process = self.start(kind)
        process.join(TIMEOUT_S)
        assert process.exitcode == 0, kind
        return time.monotonic() - start

    def leftovers(self) -> list[Path]:
        return [path for path in self.run_dir.rglob("*.tmp") if "attempts" not in path.parts]


def searchers_of(pid: int) -> list[int]:
    """Processes that search for a shard."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # ended in between
            if entry.name.isdigit() and b"spawn_main" in (entry / "cmdline").read_bytes():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def orphans() -> list[int]:
    """Searching processes whose shard is gone: another process has adopted them."""
    return searchers_of(1)


def kill_stage(work: Work, kind: str, within_s: float, draws: random.Random) -> bool:
    """Start a stage and kill it at a random moment; False if it was through before."""
    process = work.start(kind)
    process.join(draws.uniform(0.0, within_s))
    killed = process.is_alive()
    process.kill()
    process.join(TIMEOUT_S)
    return killed and process.exitcode == -signal.SIGKILL


def kill_searchers(work: Work, kind: str, times: int, draws: random.Random) -> int:
    """Let a shard finish, killing searching processes now and then, less often than an image is tried."""
    process = work.start(kind)
    killed = 0
    while process.is_alive() and killed < times:
        process.join(draws.uniform(0.0, 1.0))
        if found := searchers_of(process.pid or 0):
            with suppress(ProcessLookupError):
                os.kill(draws.choice(found), signal.SIGKILL)
                killed += 1
    process.join(TIMEOUT_S)
    assert process.exitcode == 0
    return killed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_store_has_the_same_bytes_however_often_its_makers_were_killed(tmp_path: Path) -> None:
    make_photographs(tmp_path / "data")
    shards = [f"shard:{number}" for number in range(SHARDS)]
    calm = Work(tmp_path / "calm", tmp_path / "data")
    usual_s = {kind: calm.finish(kind) for kind in ("prepare", *shards, "merge")}
    expected = (calm.run_dir / "proposals.arrow").read_bytes()
    assert not ProposalStore.open(calm.run_dir / "proposals.arrow").failed()
    draws, kills = random.Random(0), Counter[str]()

    def are_enough() -> bool:
        each = min(kills[stage] for stage in ("prepare", "shard", "searcher", "merge"))
        return kills.total() >= LEAST_KILLS and each >= LEAST_KILLS_OF_A_STAGE

    for number in range(MOST_ROUNDS):
        if are_enough():
            break
        work = Work(tmp_path / f"killed-{number}", tmp_path / "data")
        for kind in ("prepare", *shards, "merge"):
            stage = kind.partition(":")[0]
            for _ in range(2 if stage == "shard" else 5):
                kills[stage] += kill_stage(work, kind, usual_s[kind], draws)
            if stage == "shard":
                kills["searcher"] += kill_searchers(work, kind, 2, draws)
            work.finish(kind)  # does nothing where it was through

        assert (work.run_dir / "proposals.arrow").read_bytes() == expected
        ProposalStore.verify(work.run_dir / "proposals.arrow")
        assert not work.leftovers()
        shutil.rmtree(work.run_dir)

    assert are_enough(), kills
    assert not orphans()
