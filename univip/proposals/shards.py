"""Proposals of a data set, shard by shard, and their merge into one store.

A shard is a range of rows of the index, searched by one job; its file appears whole or not at all, so
whatever ends a job costs at most that shard. A shard counts as finished if its report says it was made from
the same rows in the same way and its checksum holds; anything else is searched again. The merged store does
not tell how it was cut: its bytes are the same for any number of shards and processes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import pyarrow as pa

from univip.atomic import remove_leftovers, replacing
from univip.config import DataConfig, ProposalsConfig
from univip.data import proposals as store_format
from univip.data.images import ImageIndex
from univip.data.proposals import OK, RAW, STORE_NAME, ProposalStore, column, file_sha256, report_path
from univip.errors import DataError, UnivipError
from univip.observe import Observer
from univip.proposals.cut import FOLDER, count_shards, cut, search_seconds, shard_file
from univip.proposals.pool import SearchResult, SearchSettings, SearchTask, search_images
from univip.proposals.search import VERSION

_RECORD_EVERY_S = 2.0

Report = dict[str, Any]


class ShardedSearch:
    """Selective search over all images of an index, cut into shards.

    Every method may be called again at any time and does only what is missing.

    Attributes:
        shards: Rows of the index that each shard searches.
        provenance: What decides the boxes: equal provenance and rows give equal boxes in equal order.
    """

    def __init__(
        self,
        index: ImageIndex,
        data: DataConfig,
        proposals: ProposalsConfig,
        run_dir: Path,
        borders: Sequence[int] | None = None,
    ) -> None:
        """Shards lie in `run_dir/shards`, the store in `run_dir`; photographs in `data.root`.

        `borders` says where shards begin and end, as `univip.proposals.cut.cut` has it; by default it is
        asked, for the cores of this machine.
        """
        self._index = index
        self._root = Path(data.root)
        self._processes = proposals.processes
        self._timeout_s = proposals.image_timeout_s
        self._run_dir = run_dir
        self._settings = SearchSettings(
            mode=str(proposals.mode),
            engine=str(proposals.engine),
            min_sizes=tuple(proposals.min_sizes),
            max_ratio=proposals.max_ratio,
            max_iou=proposals.max_iou,
            exif=index.exif,
            max_pixels=data.max_pixels,
        )
        if borders is None:
            borders = make_borders(index, proposals)
        self.shards = [range(start, stop) for start, stop in pairwise(borders)]
        self.provenance: dict[str, Any] = {
            "store": store_format.FORMAT,
            "mode": str(proposals.mode),
            "engine": str(proposals.engine),
            "min_sizes": list(proposals.min_sizes),
            "max_ratio": proposals.max_ratio,
            "max_iou": proposals.max_iou,
            "fingerprint": index.fingerprint,
            "exif": index.exif,
            "search_version": VERSION,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
        }

    def run(self, shard: int, observer: Observer) -> Report:
        """Search the images of one shard and write its file and report.

        Args:
            shard: Number of the shard, from 0.
            observer: Receives `proposals` every 2 s and at the end, `image_failed` once per bad image.

        Raises:
            UnivipError: If a searching process dies.
        """
        rows, path = self.shards[shard], self._shard_path(shard)
        report = self._finished(path, rows)
        # A shard without one usable photograph is searched again: its data may have been out of reach.
        if report is None or _num_failed(report) == len(rows):
            path.parent.mkdir(exist_ok=True)
            start = time.perf_counter()
            results = self._search(shard, observer)
            core_seconds = sum(result.seconds for result in results)
            report = self._finish(
                path, rows, [self._to_rows(rows, results)], time.perf_counter() - start, core_seconds
            )
        failed = {reason: len(paths) for reason, paths in report["failed"].items()}
        _record(observer, shard, len(rows), len(rows), report["boxes"][RAW], failed)
        return report

    def merge(self) -> Report:
        """Join all shards to one store with its report beside it.

        Returns:
            The report: images, boxes per list, failed images by reason, images without a box per list,
            seconds of all shards, provenance, checksum.

        Raises:
            UnivipError: If shards are unfinished.
            DataError: If no image at all could be used.
        """
        path, everything = self._run_dir / STORE_NAME, range(len(self._index))
        done = self._finished(path, everything)
        if done is not None:
            return done
        reports = self._finished_shards()
        self.refuse_useless(reports)
        seconds, core_seconds = (
            sum(report[name] for report in reports) for name in ("seconds", "core_seconds")
        )
        return self._finish(path, everything, self._shard_rows(), seconds, core_seconds)

    def _shard_rows(self) -> Iterator[pa.RecordBatch]:
        """Rows of all shards in order; only one shard is mapped at a time."""
        for shard in range(len(self.shards)):
            yield from ProposalStore.open(self._shard_path(shard)).batches

    def refuse_useless(self, reports: Sequence[Report]) -> None:
        """Look at the reports of all shards.

        Raises:
            DataError: If no image at all could be used.
        """
        failed = Counter(
            reason for report in reports for reason, paths in report["failed"].items() for _ in paths
        )
        if failed.total() == len(self._index):
            for shard in range(len(self.shards)):  # so that each is searched again
                report_path(self._shard_path(shard)).unlink(missing_ok=True)
            raise DataError(
                f"at least one of the {len(self._index)} images must be usable, but none is: "
                f"{', '.join(f'{number} {reason}' for reason, number in failed.items())}.",
                where=f"{self._root}, such as {self._index.path(0)}",
                fix="restore the photographs, or data.root=/path/to/photographs, and submit again",
            )

    def _shard_path(self, shard: int) -> Path:
        return self._run_dir / FOLDER / shard_file(shard)

    def _search(self, shard: int, observer: Observer) -> list[SearchResult]:
        """Results of a shard in the order of its rows, reporting on the way."""
        rows, index = self.shards[shard], self._index
        tasks = []
        for row in rows:
            width, height = index.sizes[row].tolist()
            tasks.append(SearchTask(self._root / index.path(row), int(index.ids[row]), (width, height)))
        results: dict[int, SearchResult] = {}
        boxes, failed, recorded = 0, Counter[str](), time.monotonic()
        # Closed at once when a signal ends the loop; else the pool would search the rest before we may exit.
        searching = search_images(tasks, self._settings, processes=self._processes, timeout_s=self._timeout_s)
        with closing(searching) as finished:
            for position, result in finished:
                results[position] = result
                boxes += len(result.raw)
                if result.reason:
                    failed[result.reason] += 1
                    image_id, path = tasks[position].image_id, index.path(rows[position])
                    observer.record("image_failed", image_id=image_id, path=path, reason=result.reason)
                if time.monotonic() - recorded >= _RECORD_EVERY_S:
                    recorded = time.monotonic()
                    _record(observer, shard, len(results), len(rows), boxes, failed)
        return [results[position] for position in range(len(rows))]

    def _to_rows(self, rows: range, results: Sequence[SearchResult]) -> pa.RecordBatch:
        lists = {RAW: [result.raw for result in results]}
        for number, min_size_px in enumerate(self._settings.min_sizes):
            lists[column(min_size_px)] = [result.filtered[number] for result in results]
        part = slice(rows.start, rows.stop)
        statuses = [result.reason or OK for result in results]
        return store_format.make_rows(self._index.ids[part], self._index.sizes[part], statuses, lists)

    def _finish(
        self, path: Path, rows: range, boxes: Iterable[pa.RecordBatch], seconds: float, core_seconds: float
    ) -> Report:
        """Write a store, then the report that makes it count as finished."""
        for each in (path, report_path(path)):
            remove_leftovers(each)
        # The version of the code is told and not compared: a new release keeps what an old one has made.
        made_by = {"code_version": importlib.metadata.version("univip")}
        store_format.write_store(path, boxes, self.provenance | made_by)
        store = ProposalStore.open(path)
        failed = store.failed()
        lost = {image_id for ids in failed.values() for image_id in ids}
        filtered = [column(min_size_px) for min_size_px in store.min_sizes]
        empty = {name: store.ids[store.counts(name) == 0].tolist() for name in filtered}
        report = {
            "rows": [rows.start, rows.stop],
            "images": len(store),
            "boxes": {name: int(store.counts(name).sum()) for name in (RAW, *filtered)},
            "failed": {reason: self._paths(ids) for reason, ids in failed.items()},
            "without_boxes": {
                name: self._paths(i for i in ids if i not in lost) for name, ids in empty.items()
            },
            "seconds": round(seconds, 3),
            "core_seconds": round(core_seconds, 3),
            "provenance": self.provenance,
            "sha256": file_sha256(path),
        }
        with replacing(report_path(path)) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return report

    def _finished(self, path: Path, rows: range) -> Report | None:
        """The report beside `path` if it speaks of these rows, made in this way, and of the file's bytes."""
        try:
            report: Report = json.loads(report_path(path).read_text(encoding="utf-8"))
            is_same = report["rows"] == [rows.start, rows.stop] and report["provenance"] == self.provenance
            return report if is_same and report["sha256"] == file_sha256(path) else None
        except (FileNotFoundError, ValueError, KeyError):
            return None  # Never written, or not by us: the shard is searched again.

    def _finished_shards(self) -> list[Report]:
        """Reports of all shards, if all are finished."""
        found = [self._finished(self._shard_path(shard), rows) for shard, rows in enumerate(self.shards)]
        unfinished = [str(shard) for shard, report in enumerate(found) if report is None]
        for shard in unfinished:  # what does not count any more must not look finished to the next request
            report_path(self._shard_path(int(shard))).unlink(missing_ok=True)
        if unfinished:
            raise UnivipError(
                f"all {len(found)} shards must be finished before the merge, but {len(unfinished)} are not.",
                where=f"{self._run_dir}, shard {', '.join(unfinished[:10])}{' ...' * (len(unfinished) > 10)}",
                fix="submit the same request again: only these are searched",
            )
        return [report for report in found if report is not None]

    def _paths(self, image_ids: Iterable[int]) -> list[str]:
        return [self._index.path(self._index.row(image_id)) for image_id in image_ids]


def make_borders(index: ImageIndex, proposals: ProposalsConfig, num_shards: int = 0) -> list[int]:
    """Borders of the shards of an index.

    Args:
        index: The photographs.
        proposals: Search engine and mode, and how large a shard is to be.
        num_shards: How many; 0 asks for shards of `shard_minutes` on as many cores as this machine has.
    """
    pixels = index.sizes.astype(np.int64).prod(1).tolist()
    if not num_shards:
        cores = proposals.processes or len(os.sched_getaffinity(0))
        num_shards = count_shards(
            len(index),
            search_seconds(sum(pixels), str(proposals.engine), str(proposals.mode)),
            shard_core_seconds=60 * proposals.shard_minutes * cores,
            most_images=proposals.shard_images,
        )
    return cut(pixels, min(num_shards, len(index)))


def _num_failed(report: Report) -> int:
    return sum(map(len, report["failed"].values()))


def _record(
    observer: Observer, shard: int, done: int, images: int, boxes: int, failed: Mapping[str, int]
) -> None:
    """Say how far a shard is; numbers are totals of the shard."""
    observer.record(
        "proposals", shard=shard, images_done=done, images=images, boxes=boxes, failed=dict(failed)
    )
