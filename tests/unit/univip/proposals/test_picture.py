"""The picture shows every list over the photograph."""

from __future__ import annotations

import numpy as np
import pytest

from univip.proposals.picture import draw


@pytest.mark.parametrize("shape", [(60, 400), (60, 20), (1, 1)])
def test_panels_lie_side_by_side_whatever_the_image_is_like(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    none = np.empty((0, 4), np.int32)

    one, two = (
        draw(image, dict.fromkeys(titles, none), caption="a.jpg") for titles in (("64",), ("64", "96"))
    )

    assert one.shape[0] == two.shape[0] >= shape[0]
    assert two.shape[1] == 2 * one.shape[1] - 8  # both have the left margin
    assert one.shape[1] >= shape[1] + 16


def test_a_box_is_drawn_where_it_is_and_nowhere_else() -> None:
    image = np.zeros((100, 300, 3), np.uint8)
    box = np.array([[10, 20, 30, 40]], np.int32)

    with_box, without = (draw(image, {"64": boxes}, caption="") for boxes in (box, box[:0]))

    panel_top, panel_left = with_box.shape[0] - 100 - 8, 8
    changed = (with_box != without).any(axis=2)[panel_top : panel_top + 100, panel_left : panel_left + 300]
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 59, 10, 39)
    assert not changed[22:58, 12:38].any()


def test_a_box_has_the_same_colour_in_every_panel() -> None:
    image = np.zeros((100, 300, 3), np.uint8)
    boxes = np.array([[10, 20, 30, 40], [5, 5, 6, 7]], np.int32)

    picture = draw(image, {"64": boxes[::-1], "96": boxes[:1]}, caption="")

    top, width = picture.shape[0] - 100 - 8, (picture.shape[1] - 8) // 2
    assert picture[top + 59, 8 + 20].tolist() == picture[top + 59, 8 + width + 20].tolist() != [0, 0, 0]
