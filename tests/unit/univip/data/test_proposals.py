"""The store gives back the boxes it was given, by image id, and notices damage."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from univip.data.proposals import ProposalStore, file_sha256, make_rows, write_store
from univip.errors import ConfigError, DataError
from univip.types import Boxes

IDS = [40, 7, 2**62, 8]
STATUSES = ["ok", "corrupt", "ok", "missing"]
NONE: Boxes = np.empty((0, 4), np.int32)
RAW: list[Boxes] = [
    np.array([[0, 0, 1, 1], [3, 4, 32767, 6]], np.int32),
    NONE,
    np.array([[1, 2, 3, 4]], np.int32),
    NONE,
]
LARGE: list[Boxes] = [RAW[0][1:], NONE, NONE, NONE]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = make_rows(np.array(IDS), np.array([[9, 8]] * 4, np.int32), STATUSES, {"raw": RAW, "min_64": LARGE})
    path = tmp_path / "proposals.arrow"
    write_store(path, rows, {"mode": "fast", "fingerprint": "abc", "min_sizes": [64]})
    path.with_suffix(".json").write_text(json.dumps({"sha256": file_sha256(path)}))
    return path


def test_boxes_come_back_by_image_id(path: Path) -> None:
    store = ProposalStore.open(path)

    assert len(store) == 4
    for image_id, raw, large in zip(IDS, RAW, LARGE, strict=True):
        np.testing.assert_array_equal(store[image_id], raw)
        np.testing.assert_array_equal(store.filtered(image_id, 64), large)
        assert store[image_id].dtype == np.int32
        assert store[image_id].shape == raw.shape


def test_boxes_may_be_changed_without_changing_the_store(path: Path) -> None:
    store = ProposalStore.open(path)
    store[40][:] = 0

    np.testing.assert_array_equal(store[40], RAW[0])


def test_status_and_failures_name_the_images(path: Path) -> None:
    store = ProposalStore.open(path)

    assert [store.status(image_id) for image_id in IDS] == STATUSES
    assert store.failed() == {"corrupt": [7], "missing": [8]}


def test_counts_follow_the_order_of_the_index(path: Path) -> None:
    store = ProposalStore.open(path)

    assert store.ids.tolist() == IDS
    assert store.counts().tolist() == [2, 0, 1, 0]
    assert store.counts("min_64").tolist() == [1, 0, 0, 0]


def test_provenance_is_kept(path: Path) -> None:
    store = ProposalStore.open(path)

    assert store.provenance["mode"] == "fast"
    assert store.fingerprint == "abc"
    assert store.min_sizes == [64]


def test_a_list_that_was_not_made_is_refused_with_the_ones_there_are(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one of \[64\] px, but is 96") as caught:
        ProposalStore.open(path).filtered(40, 96)

    assert caught.value.fix == "proposals.min_sizes=[64,96]"


def test_an_unknown_image_is_refused(path: Path) -> None:
    with pytest.raises(DataError, match="image 41 must be in the data set"):
        ProposalStore.open(path)[41]


def test_a_copy_for_another_process_maps_the_same_file(path: Path) -> None:
    content = pickle.dumps(ProposalStore.open(path))

    assert len(content) < 500
    np.testing.assert_array_equal(pickle.loads(content)[40], RAW[0])


def test_a_sound_store_passes_verification(path: Path) -> None:
    ProposalStore.verify(path)


def test_one_flipped_bit_fails_verification(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(DataError, match="must have the SHA-256"):
        ProposalStore.verify(path)


def test_a_store_without_its_checksum_fails_verification(path: Path) -> None:
    path.with_suffix(".json").unlink()

    with pytest.raises(DataError, match=r"checksum in `proposals.json`"):
        ProposalStore.verify(path)


def test_equal_rows_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    store = ProposalStore.open(path)
    write_store(tmp_path / "again.arrow", store.rows, dict(reversed(store.provenance.items())))

    assert (tmp_path / "again.arrow").read_bytes() == path.read_bytes()


def test_a_store_of_no_boxes_can_be_read(tmp_path: Path) -> None:
    rows = make_rows(np.array([1]), np.array([[9, 8]], np.int32), ["corrupt"], {"raw": [NONE]})
    write_store(tmp_path / "a.arrow", rows, {"fingerprint": "", "min_sizes": []})

    assert ProposalStore.open(tmp_path / "a.arrow")[1].shape == (0, 4)
