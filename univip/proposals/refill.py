"""A store made from boxes that are known already: filtered, written part by part, and joined.

    blocks of raw boxes ─▶ filter ─▶ parts/part-*.arrow ─▶ proposals.arrow

A part is a small store of some images that appears whole or not at all and remembers where its input can go
on, so whatever ends the work costs one part; the bytes of the store do not tell how often that happened.
Memory is bounded by a part. Shapes: N images, M boxes.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from univip.atomic import write_text
from univip.data import proposals as store_format
from univip.data.images import ImageIndex
from univip.data.proposals import OK, RAW, STORE_NAME, ProposalStore, column, file_sha256, report_path
from univip.errors import DataError
from univip.proposals.filters import filter_lists

if TYPE_CHECKING:
    from univip.types import Boxes

_PART_BOXES = 500_000  # some 30 MB while they are filtered and written

Report = dict[str, Any]


class StoreWriter:
    """Writes the store of a run from raw boxes, in the order of the index.

    Attributes:
        done: Images written so far, also by an earlier process.
        mark: What `add` was told with the last of them; empty at the start.
    """

    def __init__(self, index: ImageIndex, provenance: Mapping[str, Any], run_dir: Path) -> None:
        """`provenance` decides the boxes; `min_sizes`, `max_ratio` and `max_iou` in it are the filter's."""
        self._index = index
        self._provenance = dict(provenance)
        self._run_dir = run_dir
        self._folder = run_dir / "parts"
        self._start = time.perf_counter()
        self._held: list[tuple[Boxes, npt.NDArray[np.int64], Sequence[str]]] = []
        self.done = 0
        self.mark: list[int] = []
        while (part := self._part(self.done)) is not None and len(part):
            self.done, self.mark = self.done + len(part), part.provenance["mark"]

    def report(self) -> Report | None:
        """The report of a store that is there and was made from the same in the same way."""
        path = self._run_dir / STORE_NAME
        try:
            report: Report = json.loads(report_path(path).read_text(encoding="utf-8"))
            is_same = report["provenance"] == self._provenance and report["sha256"] == file_sha256(path)
        except (FileNotFoundError, ValueError, KeyError):
            return None  # never written, or not by us: written anew
        return report if is_same else None

    def add(
        self,
        boxes: Boxes,
        counts: npt.NDArray[np.int64],
        *,
        mark: Sequence[int] = (),
        statuses: Sequence[str] | None = None,
    ) -> None:
        """Append the next images.

        Args:
            boxes: Raw boxes, int32 [M, 4] xywh.
            counts: Boxes of each image, int64 [N].
            mark: Where the input goes on behind them.
            statuses: `OK` or a reason, per image; None means all are.
        """
        self._held.append((boxes, counts, statuses or [OK] * len(counts)))
        self.mark = list(mark)
        if sum(len(boxes) for boxes, _, _ in self._held) >= _PART_BOXES:
            self._flush()

    def finish(self) -> Report:
        """Join the parts to the store with its report beside it, and remove them.

        Returns:
            The report, as `ShardedSearch.merge` makes it.
        """
        self._flush()
        assert self.done == len(self._index), (self.done, len(self._index))
        path = self._run_dir / STORE_NAME
        made_by = {"code_version": importlib.metadata.version("univip")}
        store_format.write_store(path, self._rows(), self._provenance | made_by)
        report = self._describe(ProposalStore.open(path))
        write_text(report_path(path), json.dumps(report, indent=1) + "\n")
        shutil.rmtree(self._folder, ignore_errors=True)
        return report

    def _path(self, first: int) -> Path:
        return self._folder / f"part-{first:010d}.arrow"

    def _part(self, first: int) -> ProposalStore | None:
        """The part that begins with this image, if it is there and was made in this way."""
        try:
            part = ProposalStore.open(self._path(first))
        except DataError:
            return None  # not written yet, or not readable: written anew
        made = {key: value for key, value in part.provenance.items() if key != "mark"}
        return part if made == self._provenance else None

    def _flush(self) -> None:
        """Filter and write what is held as one part."""
        if not self._held:
            return
        boxes = np.concatenate([boxes for boxes, _, _ in self._held])
        counts = np.concatenate([counts for _, counts, _ in self._held])
        statuses = [status for _, _, some in self._held for status in some]
        offsets = np.concatenate([[0], counts.cumsum()])
        lists = {RAW: np.split(boxes, offsets[1:-1])}
        limits = {name: self._provenance[name] for name in ("max_ratio", "max_iou")}
        sizes = self._provenance["min_sizes"]
        with ThreadPoolExecutor() as pool:  # a list on every core: they are filtered without Python's lock
            found = pool.map(lambda size: filter_lists(boxes, offsets, min_size_px=size, **limits), sizes)
            for size, (kept, ends) in zip(sizes, found, strict=True):
                lists[column(size)] = np.split(kept, ends[1:-1])
        images = slice(self.done, self.done + len(counts))
        rows = store_format.make_rows(self._index.ids[images], self._index.sizes[images], statuses, lists)
        self._folder.mkdir(exist_ok=True)
        store_format.write_store(self._path(self.done), [rows], self._provenance | {"mark": self.mark})
        self.done, self._held = self.done + len(counts), []

    def _rows(self) -> Iterator[pa.RecordBatch]:
        """Rows of all parts in order; only one part is mapped at a time."""
        first = 0
        while first < self.done:
            part = ProposalStore.open(self._path(first))
            yield from part.batches
            first += len(part)

    def _describe(self, store: ProposalStore) -> Report:
        failed = store.failed()
        lost = {image_id for ids in failed.values() for image_id in ids}
        filtered = [column(min_size_px) for min_size_px in store.min_sizes]
        empty = {name: store.ids[store.counts(name) == 0].tolist() for name in filtered}
        return {
            "rows": [0, len(store)],
            "images": len(store),
            "boxes": {name: int(store.counts(name).sum()) for name in (RAW, *filtered)},
            "failed": {reason: self._paths(ids) for reason, ids in failed.items()},
            "without_boxes": {
                name: self._paths(i for i in ids if i not in lost) for name, ids in empty.items()
            },
            "seconds": round(time.perf_counter() - self._start, 3),
            "core_seconds": round(time.process_time(), 3),
            "provenance": self._provenance,
            "sha256": file_sha256(store.source),
        }

    def _paths(self, image_ids: Any) -> list[str]:
        return [self._index.path(self._index.row(image_id)) for image_id in image_ids]
