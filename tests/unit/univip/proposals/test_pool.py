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

from univip.errors import UnivipError
from univip.proposals.filters import filter_boxes
from univip.proposals.pool import SearchSettings, SearchTask, search_image, search_images
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

    results = dict(search_images(tasks, SETTINGS, processes=2))

    assert sorted(results) == [0, 1, 2, 3, 4]
    for position, task in enumerate(tasks):
        np.testing.assert_array_equal(results[position].raw, search_image(task, SETTINGS).raw)


def test_a_process_that_dies_is_an_error_that_names_the_images(tmp_path: Path) -> None:
    tasks = [make_task(tmp_path, 0), *(make_task(tmp_path, number, edge=640) for number in range(1, 5))]
    results = search_images(tasks, SETTINGS, processes=1)
    next(results)

    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGKILL)

    with pytest.raises(UnivipError, match="a searching process died") as caught:
        list(results)
    assert ".png" in caught.value.where
    assert "proposals.processes" in caught.value.fix


def test_processes_leave_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = f"""
import multiprocessing
from pathlib import Path
from univip.proposals.pool import SearchSettings, SearchTask, search_images

settings = {SETTINGS!r}
tasks = [SearchTask(Path({str(make_task(tmp_path, 0).path)!r}), 0, (64, 64))] * 10_000
for _ in search_images(tasks, settings, processes=2):
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
