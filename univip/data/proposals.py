"""The proposal store: boxes of every image in one memory-mapped Arrow file, found by image id.

One row per image of the index, in index order: image_id, width, height, status (`ok`, or why the image has no
boxes), `raw` (all boxes of selective search, in their pinned order) and one list per minimum size (`min_64`,
`min_96`), each filtered from the raw boxes on its own: a 64 px box may suppress a 96 px one, so neither list
holds the other. A shard is a small store with some of the rows. Boxes are int16 xywh on disk and int32 in the
hand. Shapes: N images, M boxes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from univip.data import arrow
from univip.data.images import find_row
from univip.errors import ConfigError, DataError

if TYPE_CHECKING:
    from univip.types import Boxes

FORMAT = "univip-proposals/1"
OK = "ok"
RAW = "raw"

_BOX = pa.list_(pa.int16(), 4)


def column(min_size_px: int) -> str:
    """Column name of the list filtered with a minimum size."""
    return f"min_{min_size_px}"


def make_rows(
    ids: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int32],
    statuses: Sequence[str],
    lists: Mapping[str, Sequence[Boxes]],
) -> pa.RecordBatch:
    """Rows of a store.

    Args:
        ids: Image ids [N].
        sizes: Width and height in pixels [N, 2].
        statuses: `OK` or a reason, per image.
        lists: For each box column, N box lists.
    """
    columns = {
        "image_id": pa.array(ids, pa.int64()),
        "width": pa.array(np.ascontiguousarray(sizes[:, 0]), pa.int32()),
        "height": pa.array(np.ascontiguousarray(sizes[:, 1]), pa.int32()),
        "status": pa.array(statuses, pa.large_string()),
    }
    for name, per_image in lists.items():
        # 64-bit offsets: raw lists of a million images pass 2^31 boxes.
        offsets = np.cumsum([0, *map(len, per_image)], dtype=np.int64)
        flat = np.concatenate([np.empty((0, 4), np.int32), *per_image]).astype(np.int16).ravel()
        columns[name] = pa.LargeListArray.from_arrays(
            offsets, pa.FixedSizeListArray.from_arrays(flat, type=_BOX)
        )
    return pa.record_batch(columns)


def write_store(path: Path, rows: pa.RecordBatch, provenance: Mapping[str, Any]) -> None:
    """Write a store, whole or not at all; equal rows and provenance give equal bytes."""
    arrow.write(path, rows, format=FORMAT, metadata={"provenance": json.dumps(provenance, sort_keys=True)})


def report_path(path: Path) -> Path:
    """The JSON file beside a store: counts, failed images, provenance and the checksum of the store."""
    return path.with_suffix(".json")


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ProposalStore:
    """Boxes by image id.

    Attributes:
        ids: Image ids, int64 [N], in index order.
        min_sizes: Minimum box edges of the filtered lists, in pixels.
        provenance: Search mode, versions, filter limits and the fingerprint of the index.
        fingerprint: Of the index these boxes belong to.
    """

    def __init__(self, source: Path, rows: pa.RecordBatch, provenance: dict[str, Any]) -> None:
        self.source = source
        self.rows = rows
        self.provenance = provenance
        self.fingerprint: str = provenance["fingerprint"]
        self.min_sizes: list[int] = provenance["min_sizes"]
        self.ids: npt.NDArray[np.int64] = rows["image_id"].to_numpy()
        self._by_id = np.argsort(self.ids)
        self._lists = {name: _views(rows[name]) for name in (RAW, *map(column, self.min_sizes))}

    @classmethod
    def open(cls, path: Path) -> ProposalStore:
        """Map a store or a shard.

        Raises:
            DataError: If the file is absent, damaged or no proposal store.
        """
        rows, metadata = arrow.read(path, format=FORMAT)
        return cls(path, rows, json.loads(metadata["provenance"]))

    @staticmethod
    def verify(path: Path) -> None:
        """Compare a store with the checksum in the JSON file beside it; reads the whole file.

        Raises:
            DataError: If the checksum is missing or differs.
        """
        sidecar = report_path(path)
        try:
            expected = json.loads(sidecar.read_text(encoding="utf-8"))["sha256"]
            found = file_sha256(path)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"`{path.name}` must have a checksum in `{sidecar.name}`, but it cannot be read: {error!r}.",
                where=str(path),
                fix="remove both and submit again",
            ) from error
        if found != expected:
            raise DataError(
                f"`{path.name}` must have the SHA-256 {expected}, but has {found}.",
                where=str(path),
                fix="remove it and submit again",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that gets a copy maps the same file.
        return ProposalStore.open, (self.source,)

    def __getitem__(self, image_id: int) -> Boxes:
        """All boxes of an image, int32 [M, 4] xywh, in their pinned order; none unless its status is `OK`."""
        return self._boxes(RAW, image_id)

    def filtered(self, image_id: int, min_size_px: int) -> Boxes:
        """Boxes of an image in the list of a minimum size, int32 [M, 4] xywh.

        Raises:
            ConfigError: If the store was made without that list.
        """
        if min_size_px not in self.min_sizes:
            raise ConfigError(
                f"minimum box size must be one of {self.min_sizes} px, but is {min_size_px}.",
                where=str(self.source),
                fix=f"proposals.min_sizes=[{','.join(map(str, sorted({*self.min_sizes, min_size_px})))}]",
            )
        return self._boxes(column(min_size_px), image_id)

    def status(self, image_id: int) -> str:
        """`OK`, or the reason why the image has no boxes."""
        return str(self.rows["status"][self._row(image_id)])

    def failed(self) -> dict[str, list[int]]:
        """Ids of the images without boxes, by reason."""
        failed: dict[str, list[int]] = {}
        for image_id, status in zip(self.ids.tolist(), self.rows["status"].to_pylist(), strict=True):
            if status != OK:
                failed.setdefault(status, []).append(image_id)
        return failed

    def counts(self, name: str = RAW) -> npt.NDArray[np.int64]:
        """Number of boxes per image in one column, int64 [N], in index order."""
        offsets, _ = self._lists[name]
        return np.diff(offsets)

    def _row(self, image_id: int) -> int:
        return find_row(self.ids, self._by_id, image_id, self.source)

    def _boxes(self, name: str, image_id: int) -> Boxes:
        offsets, boxes = self._lists[name]
        row = self._row(image_id)
        return boxes[offsets[row] : offsets[row + 1]].astype(np.int32)


def _views(lists: pa.LargeListArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int16]]:
    """Offsets [N + 1] and boxes [M, 4] of a column, without a copy."""
    return lists.offsets.to_numpy(), lists.values.values.to_numpy().reshape(-1, 4)
