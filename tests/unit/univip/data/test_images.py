"""The image index holds what was scanned, and refuses what is no index."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from univip.atomic import replacing
from univip.data import arrow
from univip.data.images import ImageIndex, write_index
from univip.data.scan import Row, Scan, fingerprint
from univip.errors import DataError

ROWS = [Row(2**63 - 1, "b/süd.jpg", 640, 480), Row(0, "a.png", 1, 32767), Row(25, "c.jpg", 7, 5)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    scan = Scan(ROWS, {"corrupt": ["x.jpg"]}, fingerprint(ROWS), exif=True)
    write_index(scan, tmp_path / "images.arrow")
    return tmp_path / "images.arrow"


def test_everything_scanned_is_read_back_in_order(path: Path) -> None:
    index = ImageIndex.open(path)

    assert len(index) == 3
    assert index.ids.dtype == np.int64
    assert index.sizes.dtype == np.int32
    assert [Row(int(index.ids[i]), index.path(i), *index.sizes[i].tolist()) for i in range(3)] == ROWS
    assert index.fingerprint == fingerprint(ROWS)
    assert index.exif
    assert index.refused == {"corrupt": ["x.jpg"]}


def test_rows_are_found_by_id(path: Path) -> None:
    index = ImageIndex.open(path)

    assert [index.row(row.id) for row in ROWS] == [0, 1, 2]


@pytest.mark.parametrize("image_id", [1, 26, 2**63 - 2, -1])
def test_an_unknown_id_is_refused(path: Path, image_id: int) -> None:
    with pytest.raises(DataError, match=f"image {image_id} must be in the data set"):
        ImageIndex.open(path).row(image_id)


def test_a_copy_for_another_process_maps_the_same_file(path: Path) -> None:
    content = pickle.dumps(ImageIndex.open(path))

    assert len(content) < 500
    assert pickle.loads(content).path(0) == "b/süd.jpg"


def test_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`images.arrow` cannot be read"):
        ImageIndex.open(tmp_path / "images.arrow")


@pytest.mark.parametrize("size", [0, 7, 100, -8])
def test_a_cut_index_is_refused(path: Path, size: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:size])

    with pytest.raises(DataError, match="cannot be read"):
        ImageIndex.open(path)


def test_another_arrow_file_is_refused(tmp_path: Path) -> None:
    batch = pa.record_batch({"id": [1]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    arrow.write(tmp_path / "b.arrow", batch.schema, [batch], format="univip-images/2", metadata={})

    for name, found in (("a", "unknown"), ("b", "univip-images/2")):
        with pytest.raises(DataError, match=f"format `univip-images/1`, but has `{found}`"):
            ImageIndex.open(tmp_path / f"{name}.arrow")


def test_a_failed_write_leaves_the_old_file_alone(path: Path) -> None:
    before = path.read_bytes()

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()

    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
