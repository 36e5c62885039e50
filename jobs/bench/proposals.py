"""How fast the search for boxes is on one core, against OpenCV's on the same photographs.

One process searches every photograph with one engine and then with the other, one thread each, and compares
what they return. The memory is that of a searching process of the job: another one, which loads nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask

from jobs.bench.result import Result, one_core
from jobs.config import Config
from univip.config import DataFormat, SearchEngine
from univip.data.decode import decode
from univip.data.scan import annotation_file, scan, split_names
from univip.proposals.pool import SearchSettings, SearchTask, search_images
from univip.proposals.search import prepare_engine, selective_search
from univip.types import Boxes, Image

MAX_IMAGES = 32  # of a larger data set, a fixed choice
_FOUND_IOU = 0.5  # from here on a box finds an object

Objects = npt.NDArray[np.float64]  # [objects, 4] xywh


class Search(NamedTuple):
    """One photograph, searched by one engine."""

    seconds: float
    boxes: Boxes


def proposals(config: Config) -> Result:
    """Selective search as configured (`data`, `proposals.mode`), against `proposals.engine=opencv`.

    Recall is the share of annotated objects, crowds left out, that a box meets with an IoU of at least 0.5.
    """
    mode = str(config.proposals.mode)
    tasks, exif = _choose(config)
    settings = SearchSettings(
        mode=mode,
        engine=str(SearchEngine.fast),
        min_sizes=(),
        max_ratio=config.proposals.max_ratio,
        max_iou=config.proposals.max_iou,
        exif=exif,
        max_pixels=config.data.max_pixels,
    )
    for engine in SearchEngine:
        prepare_engine(engine)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with one_core():
            start, core_start = time.perf_counter(), time.process_time()
            ours, opencvs = zip(*_both_engines(tasks, settings), strict=True)
            core_share = (time.process_time() - core_start) / (time.perf_counter() - start)
    finally:
        cv2.setNumThreads(threads)
    value, reference = (len(tasks) / sum(each.seconds for each in side) for side in (ours, opencvs))
    objects = _objects(config)
    details: dict[str, Any] = {
        "identical_boxes": mean(_identical(*pair) for pair in zip(ours, opencvs, strict=True)),
        "mode": mode,
        "images": len(tasks),
        "boxes_per_image": mean(len(each.boxes) for each in ours),
        "median_ratio": median(b.seconds / a.seconds for a, b in zip(ours, opencvs, strict=True)),
        "worker_peak_mb": _worker_peak_mb(tasks, settings, config.proposals.image_timeout_s),
        "core_share": round(core_share, 3),  # well below 1: something else ran on this core
    }
    if objects:
        found = [objects.get(task.image_id, np.empty((0, 4))) for task in tasks]
        details["recall"], details["reference_recall"] = (_recall(side, found) for side in (ours, opencvs))
    return Result(
        name="proposals",
        value=value,
        unit="images/s",
        reference=reference,
        reference_name=f"OpenCV {cv2.__version__} with one thread",
        ratio=value / reference,
        better="higher",
        details=details,
    )


def _choose(config: Config) -> tuple[list[SearchTask], bool]:
    """The photographs to search, and whether their orientation tag counts."""
    found = scan(config.data)
    chosen = np.random.default_rng(0).permutation(len(found.rows))[:MAX_IMAGES]
    rows = [found.rows[number] for number in sorted(chosen.tolist())]
    root = Path(config.data.root)
    return [SearchTask(root / row.path, row.id, (row.width, row.height)) for row in rows], found.exif


def _both_engines(tasks: Sequence[SearchTask], settings: SearchSettings) -> Iterator[tuple[Search, Search]]:
    for task in tasks:
        image = decode(task.path, exif=settings.exif, max_pixels=settings.max_pixels, size=task.size)
        ours, opencvs = (_timed(image, settings.mode, engine, task.image_id) for engine in SearchEngine)
        yield ours, opencvs


def _timed(image: Image, mode: str, engine: SearchEngine, key: int) -> Search:
    start = time.perf_counter()
    boxes = selective_search(image, mode=mode, engine=engine, key=key)
    return Search(time.perf_counter() - start, boxes)


def _identical(ours: Search, opencvs: Search) -> float:
    """Intersection over union of two sets of boxes."""
    first, second = (set(map(tuple, each.boxes.tolist())) for each in (ours, opencvs))
    return len(first & second) / len(first | second)


def _worker_peak_mb(tasks: Sequence[SearchTask], settings: SearchSettings, timeout_s: float) -> float:
    """Peak resident memory of a process of the job that searches these photographs, in MB of 10^6 bytes."""
    peak_kib = 0
    for _ in search_images(tasks, settings, processes=1, timeout_s=timeout_s):
        for child in multiprocessing.active_children():
            # Not `ru_maxrss`, which starts with the size of the process that started this one.
            for line in Path(f"/proc/{child.pid}/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    peak_kib = max(peak_kib, int(line.split()[1]))
    return peak_kib * 1024 / 1e6


def _objects(config: Config) -> dict[int, Objects]:
    """Boxes of the annotated objects of each image; empty for a data set without any."""
    if config.data.format == DataFormat.folder:
        return {}
    found: dict[int, list[list[float]]] = {}
    for split in split_names(config.data.split):
        document = json.loads(annotation_file(Path(config.data.root), split).read_bytes())
        for each in document.get("annotations", []):
            if not each.get("iscrowd"):
                found.setdefault(each["image_id"], []).append(each["bbox"])
    return {image_id: np.array(boxes, np.float64) for image_id, boxes in found.items()}


def _recall(side: Sequence[Search], objects: Sequence[Objects]) -> float:
    """Share of all objects that a box finds."""
    num_found = num_objects = 0
    for search, boxes in zip(side, objects, strict=True):
        if len(boxes):
            overlaps = mask.iou(search.boxes.astype(np.float64), boxes, [0] * len(boxes))
            num_found += int((overlaps.max(axis=0) >= _FOUND_IOU).sum())
            num_objects += len(boxes)
    return num_found / num_objects if num_objects else 0.0
