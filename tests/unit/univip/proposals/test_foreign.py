"""Boxes from files end at the images they belong to, and those of other images do not pass."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from univip.data.images import ImageIndex, write_index
from univip.data.scan import Row, Scan, fingerprint
from univip.errors import DataError
from univip.proposals.foreign import ForeignBoxes, Mark, examine, source_key

# Of five photographs of the annotations three are used: one is too large, one beyond `data.max_images`.
LISTED = [Row(10 * n, f"images/{n}.jpg", 100 + n, 80) for n in range(5)]
USED = [LISTED[0], LISTED[2], LISTED[3]]
ROWS = [[[n, 0, 100, 80], [0, n, 5, 6]] for n in range(5)]


@pytest.fixture
def index(tmp_path: Path) -> ImageIndex:
    write_index(Scan(USED, {}, fingerprint(USED), exif=False), tmp_path / "images.arrow")
    return ImageIndex.open(tmp_path / "images.arrow")


def boxes_of(index: ImageIndex, *paths: Path, mark: Mark = Mark()) -> list[list[list[int]]]:  # noqa: B008
    """Boxes of the used images, from files."""
    found: list[list[list[int]]] = []
    for block in ForeignBoxes(examine(paths, lambda done: None), index, LISTED).blocks(
        mark, lambda done: None
    ):
        found += [boxes.tolist() for boxes in np.split(block.boxes, block.counts.cumsum()[:-1])]
    return found


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        path.write_text(json.dumps(content))
    return path


EXPECTED = [ROWS[0], ROWS[2], ROWS[3]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"bbox": ROWS}),
        ("a.pkl", {"bbox": ROWS}),
        ("a.pkl", [np.array(row) for row in ROWS]),
        ("a.pkl", {"bbox": dict(enumerate(ROWS))}),
        ("a.pkl", {"bbox": {f"{n}.jpg": ROWS[n] for n in (3, 0, 2, 1, 4)}}),
        ("a.pkl", {f"images/{n}.jpg": ROWS[n] for n in range(5)}),
        (
            "a.json",
            [
                {"image_id": 10 * n, "bbox": box, "score": -i}
                for i in range(2)
                for n in (3, 0, 2, 1, 4)
                for box in [ROWS[n][i]]
            ],
        ),
    ],
)
def test_every_kind_of_file_gives_the_used_images_their_boxes(
    index: ImageIndex, tmp_path: Path, name: str, content: Any
) -> None:
    assert boxes_of(index, write(tmp_path / name, content)) == EXPECTED


@pytest.mark.parametrize("suffix", ["json", "pkl"])
def test_several_files_follow_each_other(index: ImageIndex, tmp_path: Path, suffix: str) -> None:
    first = write(tmp_path / f"a.{suffix}", {"bbox": ROWS[:3]})
    second = write(tmp_path / f"b.{suffix}", {"bbox": ROWS[3:]})

    assert boxes_of(index, first, second) == EXPECTED


def test_reading_goes_on_behind_any_block(index: ImageIndex, tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.json", {"bbox": ROWS[:1]}), write(tmp_path / "b.json", {"bbox": ROWS[1:]})]
    foreign = ForeignBoxes(examine(paths, lambda done: None), index, LISTED)
    first, second = foreign.blocks(Mark(), lambda done: None)

    assert boxes_of(index, *paths, mark=first.mark) == EXPECTED[1:]
    assert boxes_of(index, *paths, mark=second.mark) == []


def test_images_that_a_file_does_not_name_have_no_boxes(index: ImageIndex, tmp_path: Path) -> None:
    assert boxes_of(index, write(tmp_path / "a.pkl", {"2.jpg": ROWS[2]})) == [[], ROWS[2], []]
    detection = {"file_name": "3.jpg", "bbox": [1, 1, 5, 5], "score": 1}
    assert boxes_of(index, write(tmp_path / "a.json", [detection])) == [[], [], [[1, 1, 5, 5]]]


@pytest.mark.parametrize("name", ["a.json", "a.pkl"])
@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (ROWS[:4], "the annotations list 5 images, the proposals have 4 rows"),
        ([*ROWS, []], "the annotations list 5 images, the proposals have"),
        (
            [[], [], [[3, 0, 100, 80]], [], []],
            "box [3, 0, 100, 80] of row 2 is not inside image `images/2.jpg` of 102 x 80",
        ),
        ([[], [], [], [[1, 1, 2, 2], [0, 1, 100, 80]], []], "of row 3 is not inside image `images/3.jpg`"),
        ([[[-1, 0, 5, 5]], [], [], [], []], "box [-1, 0, 5, 5] of row 0"),
        ([[[1, 0, 0, 5]], [], [], [], []], "box [1, 0, 0, 5] of row 0"),
        ([[[1, 0, 999_999_999, 5]], [], [], [], []], "box [1, 0, 999999999, 5] of row 0"),
    ],
)
def test_boxes_of_other_images_do_not_pass(
    index: ImageIndex, tmp_path: Path, name: str, rows: list[Any], says: str
) -> None:
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        boxes_of(index, write(tmp_path / name, {"bbox": rows}))

    assert len(str(caught.value).splitlines()) == 3


def test_a_name_that_is_not_in_the_annotations_is_refused(index: ImageIndex, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`5\.jpg` is no image of the data set"):
        boxes_of(index, write(tmp_path / "a.pkl", {"5.jpg": []}))


def test_files_of_two_kinds_are_refused(index: ImageIndex, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of one kind, but are orl and pickle"):
        boxes_of(index, write(tmp_path / "a.pkl", ROWS[:2]), write(tmp_path / "a.json", {"bbox": ROWS[2:]}))


def test_a_file_that_changes_while_it_is_read_is_refused(index: ImageIndex, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"bbox": ROWS})
    sources = examine([path], lambda done: None)
    os.utime(path, ns=(1, 1))

    with pytest.raises(DataError, match="must not change while it is read"):
        list(ForeignBoxes(sources, index, LISTED).blocks(Mark(), lambda done: None))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "but is none of them"),
        (b"1, 2, 3", "but is none of them"),
        (b"\x1f\x8b\x08", "but is packed"),
        (b"PK\x03\x04", "but is packed"),
    ],
)
def test_a_file_of_no_known_kind_is_refused(
    index: ImageIndex, tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "a.json").write_bytes(content)

    with pytest.raises(DataError, match=says):
        boxes_of(index, tmp_path / "a.json")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="must be there and readable"):
            examine([path], lambda done: None)


def test_the_key_follows_the_bytes_and_the_order_of_the_files(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.json", ROWS), write(tmp_path / "b.json", [])
    key = source_key(examine([one], lambda done: None))
    one.rename(tmp_path / "c.json")
    one = tmp_path / "c.json"

    assert re.fullmatch("[0-9a-f]{12}", key)
    assert source_key(examine([one], lambda done: None)) == key
    keys = {
        source_key(examine(paths, lambda done: None))
        for paths in ([one], [other], [one, other], [other, one])
    }
    assert len(keys) == 4
