"""The store gives back the boxes it was given, by image id, and notices damage."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from univip.data import arrow
from univip.data.proposals import BATCH_ROWS, ProposalStore, file_sha256, make_rows, write_store
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
    write_store(path, [rows], {"mode": "fast", "fingerprint": "abc", "min_sizes": [64]})
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
    write_store(tmp_path / "again.arrow", store.batches, dict(reversed(store.provenance.items())))

    assert (tmp_path / "again.arrow").read_bytes() == path.read_bytes()


def test_a_store_of_no_boxes_can_be_read(tmp_path: Path) -> None:
    rows = make_rows(np.array([1]), np.array([[9, 8]], np.int32), ["corrupt"], {"raw": [NONE]})
    write_store(tmp_path / "a.arrow", [rows], {"fingerprint": "", "min_sizes": []})

    assert ProposalStore.open(tmp_path / "a.arrow")[1].shape == (0, 4)


def many_rows(num_images: int) -> pa.RecordBatch:
    rng = np.random.default_rng(0)
    raw = [rng.integers(0, 99, (rng.integers(0, 4), 4), dtype=np.int32) for _ in range(num_images)]
    lists = {"raw": raw, "min_64": [boxes[:1] for boxes in raw]}
    return make_rows(np.arange(num_images), np.full((num_images, 2), 99), ["ok"] * num_images, lists)


@given(st.lists(st.integers(1, 2499), unique=True, max_size=6))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_how_rows_were_cut_leaves_no_trace_in_the_bytes(tmp_path: Path, borders: list[int]) -> None:
    rows, provenance = many_rows(2500), {"fingerprint": "", "min_sizes": [64]}
    cut = [rows.slice(start, stop - start) for start, stop in pairwise([0, *sorted(borders), 2500])]
    write_store(tmp_path / "whole.arrow", [rows], provenance)
    write_store(tmp_path / "cut.arrow", iter(cut), provenance)

    assert (tmp_path / "whole.arrow").read_bytes() == (tmp_path / "cut.arrow").read_bytes()


def test_a_store_of_many_batches_finds_every_image(tmp_path: Path) -> None:
    rows = many_rows(2 * BATCH_ROWS + 1)
    write_store(tmp_path / "a.arrow", [rows], {"fingerprint": "", "min_sizes": [64]})
    store = ProposalStore.open(tmp_path / "a.arrow")

    assert [len(batch) for batch in store.batches] == [BATCH_ROWS, BATCH_ROWS, 1]
    expected = [np.array(boxes, np.int32).reshape(-1, 4) for boxes in rows["raw"].to_pylist()]
    for image_id in (0, BATCH_ROWS - 1, BATCH_ROWS, 2 * BATCH_ROWS):
        np.testing.assert_array_equal(store[image_id], expected[image_id])
        np.testing.assert_array_equal(store.filtered(image_id, 64), expected[image_id][:1])
    assert store.counts().tolist() == [len(boxes) for boxes in expected]


def test_a_store_is_mapped_not_copied(tmp_path: Path) -> None:
    boxes: Boxes = np.ones((2_000_000, 4), np.int32)
    rows = make_rows(np.array([1]), np.array([[9, 8]]), ["ok"], {"raw": [boxes]})
    write_store(tmp_path / "a.arrow", [rows], {"fingerprint": "", "min_sizes": []})
    del rows
    before = pa.total_allocated_bytes()

    store = ProposalStore.open(tmp_path / "a.arrow")

    assert pa.total_allocated_bytes() - before < 100_000  # of 16 MB
    assert len(store[1]) == 2_000_000


def test_any_flipped_bit_and_any_cut_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="must have the SHA-256"):
            ProposalStore.verify(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"`proposals.arrow` (cannot be read|must have the SHA-256)"):
            ProposalStore.verify(path)
        if length < len(whole) - 6:  # without its last bytes, which say where everything is
            with pytest.raises(DataError, match=r"cannot be read"):
                ProposalStore.open(path)


def test_a_damaged_header_is_refused_or_gives_a_store(path: Path) -> None:
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            ProposalStore.open(path)
        except DataError:  # and nothing else
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("format", "metadata", "columns", "message"),
    [
        ("univip-images/1", {}, {"id": [1]}, "format `univip-proposals/2`, but has `univip-images/1`"),
        ("univip-proposals/3", {}, {"id": [1]}, "format `univip-proposals/2`, but has `univip-proposals/3`"),
        ("univip-proposals/2", {}, {"id": [1]}, "must be a sound proposal store"),
        ("univip-proposals/2", {"provenance": "{"}, {"id": [1]}, "must be a sound proposal store"),
        ("univip-proposals/2", {"provenance": "{}"}, {"id": [1]}, "must be a sound proposal store"),
        (
            "univip-proposals/2",
            {"provenance": '{"fingerprint": "", "min_sizes": []}'},
            {"id": [1]},
            "its columns are not those of a proposal store",
        ),
    ],
)
def test_a_foreign_file_is_refused_with_what_is_wrong(
    tmp_path: Path, format: str, metadata: dict[str, str], columns: dict[str, list[int]], message: str
) -> None:
    batch = pa.record_batch(columns)
    arrow.write(tmp_path / "a.arrow", batch.schema, [batch], format=format, metadata=metadata)

    with pytest.raises(DataError, match=message):
        ProposalStore.open(tmp_path / "a.arrow")


def test_a_picture_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(b"\x89PNG\r\n" + bytes(1000))

    with pytest.raises(DataError, match=r"`a.arrow` cannot be read: Not an Arrow file"):
        ProposalStore.open(tmp_path / "a.arrow")
