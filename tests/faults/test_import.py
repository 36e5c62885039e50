"""SIGKILL during `univip proposals import` costs a part at most; its memory is that of a part."""

from __future__ import annotations

import json
import os
import random
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
TIMEOUT_S = 120.0
WIDTH, HEIGHT = 640, 480
# Small parts, and slow enough for a kill to meet any of them.
SLOWLY = """
import sys, time
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
sys.exit(run(sys.argv[1:]))
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


def importing(root: Path, runs: Path, program: list[str]) -> subprocess.Popen[str]:
    words = ["proposals", "import", str(root / "proposals.json"), f"data.root='{root}'", "data.split=train"]
    environment = {**os.environ, "UNIVIP_RUNS": str(runs)}
    return subprocess.Popen(
        [sys.executable, *program, *words],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(process: subprocess.Popen[str], runs: Path) -> bytes:
    """The store of an import that nobody disturbs."""
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    return (runs / output.strip() / "proposals.arrow").read_bytes()


def attempts(runs: Path) -> int:
    return sum(1 for _ in runs.glob("*/attempts/[0-9]*"))


def parts(runs: Path) -> int:
    return sum(1 for _ in runs.glob("*/parts/part-*.arrow"))


@pytest.mark.slow
def test_an_import_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    make_data(tmp_path / "data", 300, 400, different_rows=300)
    program, runs = ["-c", SLOWLY], tmp_path / "runs"
    expected = finished(
        importing(tmp_path / "data", tmp_path / "undisturbed", program), tmp_path / "undisturbed"
    )
    draws = random.Random(0)
    kills = kept = 0
    while kills < KILLS:
        before, attempts_before = parts(runs), attempts(runs)
        process = importing(tmp_path / "data", runs, program)
        deadline = time.monotonic() + TIMEOUT_S
        # Until the index is made: most of a short process is its start, which nothing can harm.
        while process.poll() is None and attempts(runs) < attempts_before + 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 2.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode in (0, -signal.SIGKILL), errors
        kept += before > 0
        if process.returncode == 0:
            assert next(runs.glob("*/proposals.arrow")).read_bytes() == expected
            shutil.rmtree(runs)

    assert finished(importing(tmp_path / "data", runs, program), runs) == expected
    assert kept > KILLS // 4  # as often at least, a process went on behind the parts of another one
    ProposalStore.verify(next(runs.glob("*/proposals.arrow")))


@pytest.mark.slow
def test_the_memory_of_an_import_does_not_follow_the_size_of_the_file(tmp_path: Path) -> None:
    path = make_data(tmp_path / "data", 6000, 2200, different_rows=50)
    assert path.stat().st_size > 250e6

    program = [
        "-c",
        "import resource, sys; from launcher.cli.main import run; code = run(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)",
    ]
    process = importing(tmp_path / "data", tmp_path / "runs", program)
    output, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 0, errors
    store = ProposalStore.open(tmp_path / "runs" / output.strip() / "proposals.arrow")
    assert store.counts().sum() == 6000 * 2200
    assert int(errors.splitlines()[-1]) * 1024 < 500e6
    path.unlink()
