"""The image index: which photographs a run uses, as one memory-mapped Arrow file that every process shares.

JSON and folders are read once, by `scan`; everything later asks the index. Row i of the index is image i of
the sample plan. Shapes: N images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from univip.data import arrow
from univip.data.scan import Scan
from univip.errors import DataError

FORMAT = "univip-images/1"


def write_index(scan: Scan, path: Path) -> None:
    """Write the photographs of a scan, whole or not at all."""
    batch = pa.record_batch(
        {
            "id": pa.array([row.id for row in scan.rows], pa.int64()),
            "path": pa.array([row.path for row in scan.rows], pa.large_string()),
            "width": pa.array([row.width for row in scan.rows], pa.int32()),
            "height": pa.array([row.height for row in scan.rows], pa.int32()),
        }
    )
    facts = {"fingerprint": scan.fingerprint, "exif": scan.exif, "refused": scan.refused}
    metadata = {"images": json.dumps(facts, sort_keys=True)}
    arrow.write(path, batch.schema, [batch], format=FORMAT, metadata=metadata)


class ImageIndex:
    """The photographs of a run.

    Attributes:
        ids: Image ids, int64 [N].
        sizes: Width and height in pixels, int32 [N, 2], as the decoder gives them.
        fingerprint: SHA-256 (hex) over ids, names and sizes; see `univip.data.scan`.
        exif: Whether the decoder applies the EXIF orientation.
        refused: Relative paths of the images left out, by reason.
    """

    def __init__(self, source: Path, batch: pa.RecordBatch, facts: dict[str, Any]) -> None:
        self.source = source
        self.ids: npt.NDArray[np.int64] = batch["id"].to_numpy()
        self.sizes: npt.NDArray[np.int32] = np.stack(
            [batch["width"].to_numpy(), batch["height"].to_numpy()], axis=1
        )
        self.fingerprint: str = facts["fingerprint"]
        self.exif: bool = facts["exif"]
        self.refused: dict[str, list[str]] = facts["refused"]
        self._paths = batch["path"]
        self._by_id = np.argsort(self.ids)

    @classmethod
    def open(cls, path: Path) -> ImageIndex:
        """Map an index written by `write_index`.

        Raises:
            DataError: If the file is absent, damaged or no index.
        """
        batches, metadata = arrow.read(path, format=FORMAT)
        try:
            [batch] = batches
            batch.validate(full=True)
            return cls(path, batch, json.loads(metadata["images"]))
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise DataError(f"`{path.name}` is damaged: {error}.", where=str(path), fix=arrow.FIX) from error

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that gets a copy maps the same file.
        return ImageIndex.open, (self.source,)

    def path(self, row: int) -> str:
        """Path of row i, relative to `data.root`."""
        return str(self._paths[row])

    def rows_of(self, name: str) -> list[int]:
        """Rows whose path is `name`, or ends with it after a slash."""
        found = pc.or_(pc.equal(self._paths, name), pc.ends_with(self._paths, f"/{name}"))
        rows: list[int] = pc.indices_nonzero(found).to_pylist()
        return rows

    def row(self, image_id: int) -> int:
        """Row of an image id.

        Raises:
            DataError: If the index has no such image.
        """
        return find_row(self.ids, self._by_id, image_id, self.source)


def find_row(ids: npt.NDArray[np.int64], by_id: npt.NDArray[np.int64], image_id: int, source: Path) -> int:
    """Row of `image_id` by binary search; `by_id` sorts `ids`.

    Raises:
        DataError: If there is no such image.
    """
    position = int(np.searchsorted(ids, image_id, sorter=by_id))
    if position == len(ids) or ids[by_id[position]] != image_id:
        raise DataError(
            f"image {image_id} must be in the data set, but is not.",
            where=str(source),
            fix="univip show RUN config",
        )
    return int(by_id[position])
