"""An array of shards on a real SLURM whose tasks are killed: each shard is published once, none is lost."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Run, Runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
SHARDS = 24


def test_what_is_killed_of_an_array_is_made_again_and_nothing_twice(undisturbed: Run, empty: Runs) -> None:
    """Every sixth shard loses the process that works, every sixth the whole task, as at the first attempt."""
    [_, _, *words] = empty.request("proposals.shard_images=1")
    empty.univip("submit", "proposals", *words)
    boxes = empty.boxes()
    published: dict[str, tuple[int, int]] = {}
    to_kill = {f"shard:{number}": number % 6 for number in range(SHARDS) if number % 6 in (1, 4)}

    def is_over() -> bool:
        for path in (boxes.directory / "shards").glob("shard-*.[aj]*"):
            status = path.stat()
            identity = status.st_ino, status.st_mtime_ns
            assert published.setdefault(path.name, identity) == identity, f"{path.name} was made twice"
        for kind in list(to_kill):
            works = boxes.processes("in-slurm", kind) if to_kill[kind] == 1 else boxes.tasks(kind)
            for pid in works[:1]:
                os.kill(pid, signal.SIGKILL)
                del to_kill[kind]
        return bool(boxes.status()["state"] in ("failed", "stopped", "done"))

    boxes.until(is_over, "the end of the array", 300)
    assert not to_kill
    if boxes.status()["state"] != "done":  # SLURM does not begin a task again that failed
        assert boxes.status()["stage"] == "shards"
        assert "resubmitted in shards" in empty.univip("supervise", "--once")
        boxes.until(lambda: is_over() and boxes.status()["state"] == "done", "the rest of the shards", 300)

    assert len(published) == 2 * SHARDS
    attempts = [each for number in range(SHARDS) for each in boxes.attempts(f"shard:{number}")]
    assert {each.cause for each in attempts} == {"done", "killed"}
    stores = [run.directory / "proposals.arrow" for run in (boxes, undisturbed.runs.boxes())]
    assert stores[0].read_bytes() == stores[1].read_bytes()
    assert '"jobs": []' in empty.univip("submit", "proposals", *words, "--json")
    boxes.until(lambda: boxes.processes() == [], "the end of its processes", 30)
