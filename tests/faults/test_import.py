"""SIGKILL during `univip proposals import` costs a part at most; its memory is that of a part."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from univip.data.proposals import ProposalStore

KILLS = 20
PARTS = "*/parts/part-*.arrow"
TIMEOUT_S = 120.0
WIDTH, HEIGHT = 640, 480
# Forks a child for every line it reads, after an import of its own has loaded and compiled everything: a kill
# is to meet work and not a start. Parts are small, and slow enough for a kill to meet any of them.
NURSERY = """
import os, sys, time
from launcher.cli.main import run
from univip.proposals import orl, refill
flush, write = refill.StoreWriter._flush, refill.store_format.write_store
def slow_flush(self):
    time.sleep(0.05)
    flush(self)
def slow_write(*arguments):
    time.sleep(0.02)
    write(*arguments)
    time.sleep(0.02)
refill._PART_BOXES = 6000
orl._CHUNK_BYTES = 1 << 16
refill.StoreWriter._flush = slow_flush
refill.store_format.write_store = slow_write
stdout = os.dup(1)
os.dup2(2, 1)
runs = os.environ["UNIVIP_RUNS"]
os.environ["UNIVIP_RUNS"] = runs + "-undisturbed"
assert run(sys.argv[1:]) == 0
os.environ["UNIVIP_RUNS"] = runs
os.dup2(stdout, 1)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        os._exit(run(sys.argv[1:]))
    print(child, flush=True)
    sys.stdin.readline()  # until then it keeps its id
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def random_boxes(random: np.random.Generator, number: int) -> list[list[int]]:
    sizes = np.exp(random.uniform(np.log(8), np.log([WIDTH, HEIGHT]), (number, 2))).astype(int)
    corners = (random.random((number, 2)) * ([WIDTH + 1, HEIGHT + 1] - sizes)).astype(int)
    found: list[list[int]] = np.concatenate([corners, sizes], axis=1).tolist()
    return found


def make_data(root: Path, num_images: int, boxes_per_image: int, *, different_rows: int) -> Path:
    """COCO annotations of many images, one of which is there, and the proposals in ORL's format."""
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    PIL.Image.new("RGB", (WIDTH, HEIGHT)).save(root / "train" / "0.png")
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(num_images)]
    (root / "annotations" / "instances_train.json").write_text(json.dumps({"images": images}))
    random = np.random.default_rng(0)
    rows = [json.dumps(random_boxes(random, boxes_per_image)) for _ in range(different_rows)]
    path = root / "proposals.json"
    with path.open("w") as file:
        file.write('{"bbox": [')
        for number in range(num_images):
            file.write(", " * (number > 0) + rows[number % different_rows])
        file.write("]}")
    return path


def importing(root: Path, runs: Path, program: str) -> subprocess.Popen[str]:
    words = ["proposals", "import", str(root / "proposals.json"), f"data.root='{root}'", "data.split=train"]
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "UNIVIP_RUNS": str(runs)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute on an idle machine
def test_an_import_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    make_data(tmp_path / "data", 150, 400, different_rows=150)
    runs, draws = tmp_path / "runs", random.Random(0)
    durations_s: list[float] = []  # of imports from the start to the end
    kills = went_on = 0
    with importing(tmp_path / "data", runs, NURSERY) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        while kills < KILLS or runs.exists():
            parts = list(runs.glob(PARTS))
            start, is_whole = time.monotonic(), not runs.exists()
            print("import", file=nursery.stdin, flush=True)
            child = int(nursery.stdout.readline())
            if durations_s and kills < KILLS:
                if kills % 2:  # work that is under way, however long its start takes
                    while parts == list(runs.glob(PARTS)) and not list(runs.glob("*/proposals.arrow")):
                        time.sleep(0.01)
                time.sleep(draws.uniform(0, min(durations_s) / (4 if kills % 2 else 1)))
                os.kill(child, signal.SIGKILL)
            print("wait", file=nursery.stdin, flush=True)
            code = int(nursery.stdout.readline())
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            went_on += code != 0 and bool(parts)
            if code == 0:
                durations_s += [time.monotonic() - start] * is_whole
                [store] = runs.glob("*/proposals.arrow")
                [expected] = tmp_path.glob("runs-undisturbed/*/proposals.arrow")
                assert store.read_bytes() == expected.read_bytes()
                ProposalStore.verify(store)
                shutil.rmtree(runs)
        nursery.stdin.close()
        assert nursery.stderr is not None
        assert "Traceback" not in nursery.stderr.read()
    assert went_on >= KILLS // 4  # processes that found parts of another one


def own_memory_bytes(pid: int) -> int:
    """Memory of a process, without pages of files (libraries, the store), which the kernel can take back."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:  # ended in between
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@pytest.mark.slow
def test_the_memory_of_an_import_does_not_follow_the_size_of_the_file(tmp_path: Path) -> None:
    path = make_data(tmp_path / "data", 6000, 2200, different_rows=50)
    assert path.stat().st_size > 250e6

    program = "import sys; from launcher.cli.main import run; sys.exit(run(sys.argv[1:]))"
    process = importing(tmp_path / "data", tmp_path / "runs", program)
    most_bytes = 0
    while process.poll() is None:
        most_bytes = max(most_bytes, own_memory_bytes(process.pid))
        time.sleep(0.01)
    output, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 0, errors
    store = ProposalStore.open(tmp_path / "runs" / output.strip() / "proposals.arrow")
    assert store.counts().sum() == 6000 * 2200
    assert 100e6 < most_bytes < 400e6
    path.unlink()
