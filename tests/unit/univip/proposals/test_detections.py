"""Detections become whole-pixel boxes, the best first; what is none is refused with its number."""

from __future__ import annotations

import io
import json
import re
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from univip.data import json_stream
from univip.errors import DataError
from univip.proposals.detections import read_detections
from univip.types import Boxes

SIZES = np.array([[100, 80], [50, 60]], np.int32)
ROW_OF: dict[int | str, int] = {7: 0, 9: 1, 8: -1, "a.jpg": 0, "b/c.jpg": 1}


class File(io.BytesIO):
    name = "detections.json"


def read(elements: Any, text: str = "") -> tuple[list[Boxes], int]:
    file = File((text or json.dumps(elements)).encode())
    return read_detections(file, SIZES, ROW_OF, lambda done: None)


def one(image: int | str, box: list[float], score: float = 0.5, **more: Any) -> dict[str, Any]:
    key = "image_id" if isinstance(image, int) else "file_name"
    return {key: image, "category_id": 1, "bbox": box, "score": score, **more}


def test_boxes_are_put_in_falling_order_of_score_and_equal_ones_in_that_of_the_file() -> None:
    (first, second), left_out = read(
        [
            one(9, [1, 1, 5, 5], 0.1),
            one(7, [0, 0, 10, 10], 0.5),
            one(7, [1, 0, 10, 10], 0.9, segmentation={"counts": 'x{]"\\', "size": [1, 2]}),
            one("a.jpg", [2, 0, 10, 10], 0.5),
            one("b/c.jpg", [3, 0, 10, 10], -2),
            one(8, [500, 500, 1, 1]),  # in the annotations, but not used
        ]
    )

    assert first.tolist() == [[1, 0, 10, 10], [0, 0, 10, 10], [2, 0, 10, 10]]
    assert second.tolist() == [[1, 1, 5, 5], [3, 0, 10, 10]]
    assert first.dtype == np.int32
    assert left_out == 0


@pytest.mark.parametrize(
    ("box", "becomes"),
    [
        ([1.4, 2.5, 10.2, 10.0], [1, 3, 11, 10]),  # edges 1.4 2.5 11.6 12.5
        ([0.49, 0.5, 1.0, 1.0], [0, 1, 1, 1]),
        ([-1.9, -0.4, 5.0, 5.0], [0, 0, 3, 5]),
        ([95.0, 70.0, 6.5, 11.0], [95, 70, 5, 10]),
        ([0, 0, 100, 80], [0, 0, 100, 80]),
        ([10.6, 10.6, 0.3, 30.0], None),  # both edges at pixel 11
        ([10, 10, 0, 30], None),
        ([100.0, 10.0, 1.5, 30.0], None),  # beyond the border
    ],
)
def test_edges_go_to_the_nearest_pixel_inside_the_image(box: list[float], becomes: list[int] | None) -> None:
    (first, _), left_out = read([one(7, box)])

    assert first.tolist() == ([becomes] if becomes else [])
    assert left_out == (becomes is None)


coordinates = st.floats(0, 100, allow_nan=False, width=32)


@given(st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates, st.floats(0, 1)), max_size=20))
def test_no_edge_moves_by_more_than_half_a_pixel(found: list[tuple[float, ...]]) -> None:
    boxes = [(min(x, 99), min(y, 79), *size, score) for x, y, *size, score in found]
    boxes = [(x, y, min(w, 100 - x), min(h, 80 - y), score) for x, y, w, h, score in boxes]
    ordered = sorted(boxes, key=lambda box: -box[4])

    (first, second), left_out = read([one(7, list(box[:4]), box[4]) for box in boxes])

    assert len(first) + left_out == len(boxes)
    assert len(second) == 0
    inside = (first[:, :2] >= 0).all() and (first[:, :2] + first[:, 2:] <= [100, 80]).all()
    assert inside
    kept = iter(ordered)
    for x, y, w, h in first.tolist():  # each is one of the boxes, in their order
        assert any(
            max(abs(x - a), abs(y - b), abs(x + w - a - c), abs(y + h - b - d)) <= 0.5 + 1e-6
            for a, b, c, d, _ in kept
        )


def test_a_list_cut_at_any_byte_is_refused() -> None:
    text = json.dumps([one(7, [1.5, 2, 3, 4]), one("a.jpg", [1, 2, 3, 4], 1e-3)])
    for chunk in (5, 1 << 20):
        with mock.patch.object(json_stream, "_CHUNK_BYTES", chunk):
            assert len(read(None, text)[0][0]) == 2
            for cut in range(1, len(text)):
                with pytest.raises(DataError, match="must be a list of detections"):
                    read(None, text[:cut])


@pytest.mark.parametrize(
    ("element", "says"),
    [
        (one(6, [1, 1, 5, 5]), "`6` is no image of the data set"),
        (one("c.jpg", [1, 1, 5, 5]), "`c.jpg` is no image"),
        ({"bbox": [1, 1, 5, 5], "score": 1}, "`None` is no image"),
        ({**one(7, [1, 1, 5, 5]), "image_id": True}, "`True` is no image"),
        ({**one(7, [1, 1, 5, 5]), "image_id": 7.0}, "`7.0` is no image"),
        ({**one(7, [1, 1, 5, 5]), "image_id": [7]}, "is no image"),
        (one(7, [1, 1, 5]), "`bbox` of image 7 is not four numbers"),
        (one(7, [1, 1, 5, -5]), "`bbox` of image 7 is not four numbers"),
        (one(7, [1, 1, 5, 10**400]), "`bbox` of image 7 is not four numbers"),
        (one(7, [1, 1, 5, True]), "`bbox` of image 7 is not four numbers"),
        (one(7, ["1", 1, 5, 5]), "`bbox` of image 7 is not four numbers"),
        ({"image_id": 7, "score": 1}, "`bbox` of image 7 is not four numbers"),
        ({"image_id": 7, "bbox": [1, 1, 5, 5]}, "`score` of image 7 is not a number"),
        (one(7, [90, 1, 13, 5]), "lies 3 px beyond its image of 100 x 80"),
        (one(9, [1, 58, 5, 5]), "lies 3 px beyond its image of 50 x 60"),
        (7, "it is a int"),
        ([], "it is a list"),
    ],
)
def test_what_is_no_detection_is_refused_with_its_number(element: Any, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        read([one(7, [1, 1, 5, 5]), element])

    assert caught.value.where == "detections.json, element 1"
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"image_id": 7, "bbox": [1, 1, NaN, 5], "score": 1}]', "`NaN` is no number"),
        ('[{"image_id": 7, "bbox": [1, 1, 1e999, 5], "score": 1}]', "not four numbers"),
        ('[{"image_id": 7, "bbox": [1, 1, 5, 5], "score": Infinity}]', "`Infinity` is no number"),
        ("[" + "[" * 100_000, "nested too deeply"),
        ("[] []", "the end must follow"),
    ],
)
def test_hostile_text_is_refused(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read(None, text)
