"""The proposal store: boxes of every image in one memory-mapped Arrow file, found by image id.

One row per image of the index, in index order: image_id, width, height, status (`ok`, or why the image has no
boxes), `raw` (all boxes of selective search, in their pinned order) and one list per minimum size (`min_64`,
`min_96`), each filtered from the raw boxes on its own: a 64 px box may suppress a 96 px one, so neither list
holds the other. A shard is a small store with some of the rows. Boxes are int16 xywh on disk and int32 in the
hand.

Every `BATCH_ROWS` rows are a record batch of their own, so that a store of any size is written with the
memory of one batch, and row i is found by division. Opening maps the file once and copies nothing but the
image ids; `verify` reads all of it. Shapes: N images, M boxes.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from univip.data import arrow
from univip.data.images import find_row
from univip.errors import ConfigError, DataError

if TYPE_CHECKING:
    from univip.types import Boxes

FORMAT = "univip-proposals/2"
OK = "ok"
STORE_NAME = "proposals.arrow"  # in the directory of a run
RAW = "raw"
BATCH_ROWS = 1024  # about 16 MB with the raw boxes of the fast mode

_BOX = pa.list_(pa.int16(), 4)
_IMAGE = {"image_id": pa.int64(), "width": pa.int32(), "height": pa.int32(), "status": pa.large_string()}


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
    columns = [
        pa.array(ids, pa.int64()),
        pa.array(np.ascontiguousarray(sizes[:, 0]), pa.int32()),
        pa.array(np.ascontiguousarray(sizes[:, 1]), pa.int32()),
        pa.array(statuses, pa.large_string()),
    ]
    for per_image in lists.values():
        # 64-bit offsets, as Arrow needs for views of a mapped file of any size.
        offsets = np.cumsum([0, *map(len, per_image)], dtype=np.int64)
        flat = np.concatenate([np.empty((0, 4), np.int16), *per_image]).astype(np.int16).ravel()
        boxes = pa.FixedSizeListArray.from_arrays(flat, type=_BOX)
        columns.append(pa.LargeListArray.from_arrays(offsets, boxes))
    return pa.record_batch(columns, schema=_schema(lists))


def write_store(path: Path, rows: Iterable[pa.RecordBatch], provenance: Mapping[str, Any]) -> None:
    """Write a store, whole or not at all, holding a few megabytes of it at a time.

    Args:
        path: The file to create or replace.
        rows: Of `make_rows`, in index order; how they are cut leaves no trace in the bytes.
        provenance: What decides the boxes; `min_sizes` names the filtered lists.
    """
    schema = _schema([RAW, *map(column, provenance["min_sizes"])])
    metadata = {"provenance": json.dumps(provenance, sort_keys=True)}
    arrow.write(path, schema, _recut(rows, schema), format=FORMAT, metadata=metadata)


def _schema(lists: Iterable[str]) -> pa.Schema:
    return pa.schema({**_IMAGE, **{name: pa.large_list(_BOX) for name in lists}})


def _recut(rows: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `BATCH_ROWS`; the last one may be shorter."""
    held: list[pa.RecordBatch] = []
    room = BATCH_ROWS
    for batch in rows:
        start = 0
        while start < len(batch):
            held.append(batch.slice(start, room))
            start, room = start + len(held[-1]), room - len(held[-1])
            if room == 0:
                yield _joined(held, schema)
                held, room = [], BATCH_ROWS
    if held:
        yield _joined(held, schema)


def _joined(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.concat_arrays([batch[name] for batch in batches]) for name in schema.names]
    return pa.record_batch(columns, schema=schema)


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

    def __init__(self, source: Path, batches: Sequence[pa.RecordBatch], provenance: dict[str, Any]) -> None:
        self.source = source
        self.batches = batches
        self.provenance = provenance
        self.fingerprint: str = provenance["fingerprint"]
        self.min_sizes: list[int] = provenance["min_sizes"]
        self.ids: npt.NDArray[np.int64] = np.concatenate(
            [np.empty(0, np.int64), *(batch["image_id"].to_numpy() for batch in batches)]
        )
        self._by_id = np.argsort(self.ids)
        self._lists = {
            name: [_views(batch[name]) for batch in batches] for name in (RAW, *map(column, self.min_sizes))
        }

    @classmethod
    def open(cls, path: Path) -> ProposalStore:
        """Map a store or a shard; looks at its structure, not at every byte.

        Raises:
            DataError: If the file is absent, damaged or no proposal store.
        """
        batches, metadata = arrow.read(path, format=FORMAT)
        try:
            provenance = json.loads(metadata["provenance"])
            expected = _schema([RAW, *map(column, provenance["min_sizes"])])
            lengths = [len(batch) for batch in batches]
            # The schema of all batches is that of the file.
            is_sound = not batches or batches[0].schema.equals(expected)
            is_sound = is_sound and all(length == BATCH_ROWS for length in lengths[:-1])
            if not is_sound or not isinstance(provenance["fingerprint"], str):
                raise ValueError("its columns are not those of a proposal store")
            return cls(path, batches, provenance)
        except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"`{path.name}` must be a sound proposal store, but is damaged: {error}.",
                where=str(path),
                fix=arrow.FIX,
            ) from error

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
                fix=_restore(path),
            ) from error
        if found != expected:
            raise DataError(
                f"`{path.name}` must have the SHA-256 {expected}, but has {found}: it is cut or damaged.",
                where=str(path),
                fix=_restore(path),
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
        batch, row = divmod(self._row(image_id), BATCH_ROWS)
        return str(self.batches[batch]["status"][row])

    def failed(self) -> dict[str, list[int]]:
        """Ids of the images without boxes, by reason."""
        failed: dict[str, list[int]] = {}
        for batch in self.batches:
            lost = batch.filter(pc.not_equal(batch["status"], OK))
            for image_id, status in zip(
                lost["image_id"].to_pylist(), lost["status"].to_pylist(), strict=True
            ):
                failed.setdefault(status, []).append(image_id)
        return failed

    def counts(self, name: str = RAW) -> npt.NDArray[np.int64]:
        """Number of boxes per image in one column, int64 [N], in index order."""
        return np.concatenate(
            [np.empty(0, np.int64), *(np.diff(offsets) for offsets, _ in self._lists[name])]
        )

    def _row(self, image_id: int) -> int:
        return find_row(self.ids, self._by_id, image_id, self.source)

    def _boxes(self, name: str, image_id: int) -> Boxes:
        batch, row = divmod(self._row(image_id), BATCH_ROWS)
        offsets, boxes = self._lists[name][batch]
        return boxes[offsets[row] : offsets[row + 1]].astype(np.int32)


def _views(lists: pa.LargeListArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int16]]:
    """Offsets [N + 1] and boxes [M, 4] of a column, without a copy."""
    return lists.offsets.to_numpy(), lists.values.values.to_numpy().reshape(-1, 4)


def _restore(path: Path) -> str:
    """Command that merges the store of a run again, from its shards."""
    files = shlex.join([str(path), str(report_path(path))])
    return f"rm -f {files}; univip resume {shlex.quote(str(path.parent))}"
