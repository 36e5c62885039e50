"""Images are searched in processes that no accident leaves behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from univip.proposals.filters import filter_boxes
from univip.proposals.pool import (
    CRASHED,
    TIMED_OUT,
    TRIES,
    SearchSettings,
    SearchTask,
    search_image,
    search_images,
)
from univip.proposals.search import selective_search

SETTINGS = SearchSettings(
    mode="single",
    engine="fast",
    min_sizes=(8, 16),
    max_ratio=3.0,
    max_iou=0.5,
    exif=True,
    max_pixels=1_000_000,
)


def make_task(folder: Path, number: int, *, edge: int = 64) -> SearchTask:
    rng = np.random.default_rng(number)
    pixels = (
        rng.integers(0, 256, (edge // 8, edge // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    )
    path = folder / f"{number}.png"
    PIL.Image.fromarray(pixels).save(path)
    return SearchTask(path, number, (edge, edge))


def environment() -> dict[str, str]:
    """For a script elsewhere that imports this package."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}


def test_each_list_is_filtered_from_the_raw_boxes_on_its_own(tmp_path: Path) -> None:
    task = make_task(tmp_path, 3)

    result = search_image(task, SETTINGS)

    raw = selective_search(np.asarray(PIL.Image.open(task.path)), mode="single", key=3)
    assert result.reason == ""
    np.testing.assert_array_equal(result.raw, raw)
    for size, boxes in zip((8, 16), result.filtered, strict=True):
        np.testing.assert_array_equal(boxes, filter_boxes(raw, min_size_px=size, max_ratio=3.0, max_iou=0.5))


def test_a_bad_image_is_a_reason_and_no_boxes(tmp_path: Path) -> None:
    result = search_image(SearchTask(tmp_path / "nowhere.png", 1, (8, 8)), SETTINGS)

    assert result.reason == "missing"
    assert [boxes.shape for boxes in (result.raw, *result.filtered)] == [(0, 4)] * 3


def test_every_image_is_yielded_once_with_its_position(tmp_path: Path) -> None:
    tasks = [make_task(tmp_path, number) for number in range(5)]

    results = dict(search_images(tasks, SETTINGS, processes=2, timeout_s=60))

    assert sorted(results) == [0, 1, 2, 3, 4]
    for position, task in enumerate(tasks):
        np.testing.assert_array_equal(results[position].raw, search_image(task, SETTINGS).raw)


def test_a_killed_process_costs_nothing_but_time(tmp_path: Path) -> None:
    tasks = [make_task(tmp_path, number, edge=320) for number in range(4)]
    results = {}

    for position, result in search_images(tasks, SETTINGS, processes=2, timeout_s=60):
        results[position] = result
        if len(results) == 1:
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGKILL)

    assert sorted(results) == list(range(4))
    for position, task in enumerate(tasks):
        np.testing.assert_array_equal(results[position].raw, search_image(task, SETTINGS).raw)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("poison", "reason"), [("os.abort()", CRASHED), ("1 / 0", CRASHED), ("time.sleep(1000)", TIMED_OUT)]
)
def test_a_poisoned_image_is_given_up_and_the_others_are_searched(
    tmp_path: Path, poison: str, reason: str
) -> None:
    """Search processes read a module that plants the poison; it is spawned, so nothing here reaches it."""
    tasks = [make_task(tmp_path, number) for number in range(4)]
    code = f"""
import os, sys, time
from pathlib import Path
import univip.proposals.pool as pool

real = pool.selective_search
def search(image, *, mode, engine, key):
    if key == 2:
        print("try", flush=True)
        {poison}
    return real(image, mode=mode, engine=engine, key=key)
pool.selective_search = search  # in every process: each runs this file when it starts

if __name__ == "__main__":
    tasks = {[(str(task.path), task.image_id, task.size) for task in tasks]!r}
    tasks = [pool.SearchTask(Path(path), image_id, size) for path, image_id, size in tasks]
    settings = pool.{SETTINGS!r}
    # Long enough for the others, and for a new process to begin, where the machine is busy.
    for position, result in pool.search_images(tasks, settings, processes=2, timeout_s=6):
        print(position, result.reason or len(result.raw), flush=True)
"""
    script = tmp_path / "poisoned.py"
    script.write_text(code)

    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=environment()
    )

    lines = done.stdout.splitlines()
    expected = {f"{n} {len(search_image(task, SETTINGS).raw)}" for n, task in enumerate(tasks) if n != 2}
    assert lines.count("try") == TRIES
    assert set(lines) - {"try"} == {*expected, f"2 {reason}"}
    assert lines[-1] == f"2 {reason}"  # after the others
    assert done.returncode == 0


def test_an_image_is_given_up_only_after_many_times_its_usual_cost(tmp_path: Path) -> None:
    """A time limit of nothing still leaves what the size of the image allows for."""
    results = dict(search_images([make_task(tmp_path, 0, edge=640)], SETTINGS, processes=1, timeout_s=0.001))

    assert results[0].reason == ""


def test_a_search_that_works_for_no_image_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(f"""
import os
from pathlib import Path
import univip.proposals.pool as pool

pool.search_image = lambda task, settings: os.abort()
if __name__ == "__main__":
    tasks = [pool.SearchTask(Path("a.png"), number, (8, 8)) for number in range(100)]
    list(pool.search_images(tasks, pool.{SETTINGS!r}, processes=2, timeout_s=60))
""")

    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=environment()
    )

    assert "10 processes in a row did nothing" in done.stderr
    assert "exit code -6" in done.stderr


def test_a_request_that_cannot_be_carried_out_is_raised_not_counted(tmp_path: Path) -> None:
    script = tmp_path / "refused.py"
    script.write_text(f"""
from pathlib import Path
import univip.proposals.pool as pool
from univip.errors import ConfigError

def refuse(task, settings):
    raise ConfigError("no contrib modules", where="cv2", fix="pip install")
pool.search_image = refuse
if __name__ == "__main__":
    try:
        list(pool.search_images([pool.SearchTask(Path("a.png"), 1, (8, 8))], pool.{SETTINGS!r}, processes=1,
             timeout_s=60))
    except ConfigError as error:
        print(error)
""")

    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=environment()
    )

    assert done.stderr == ""
    assert done.stdout == "no contrib modules\n  where: cv2\n  fix:   pip install\n"


def test_processes_leave_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = f"""
import multiprocessing
from pathlib import Path
from univip.proposals.pool import SearchSettings, SearchTask, search_images

settings = {SETTINGS!r}
tasks = [SearchTask(Path({str(make_task(tmp_path, 0).path)!r}), 0, (64, 64))] * 10_000
for _ in search_images(tasks, settings, processes=2, timeout_s=60):
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()

    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert len(children) == 2
    assert not [pid for pid in children if is_running(pid)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
