"""The picture shows every list over the photograph, what was dropped, and one sample."""

from __future__ import annotations

import numpy as np
import pytest

from univip.config import ViewsConfig
from univip.data.draws import SampleKey
from univip.data.views import SampledViews, sample_views
from univip.proposals.picture import draw
from univip.types import Boxes, Image

NONE: Boxes = np.empty((0, 4), np.int32)


def views_of(image: Image, lists: dict[int, Boxes]) -> SampledViews:
    height, width = image.shape[:2]
    return sample_views((width, height), lists, key=SampleKey(0, 0, 1), views=ViewsConfig(min_overlap=16))


def picture_of(image: Image, raw: Boxes, lists: dict[int, Boxes], views: SampledViews | None = None) -> Image:
    return draw(image, raw, lists, views or views_of(image, lists), max_ratio=3.0, caption="a.jpg")


@pytest.mark.parametrize("shape", [(60, 400), (400, 60), (20, 60), (1, 1), (1, 3000)])
def test_photographs_of_any_shape_can_be_drawn_with_any_number_of_lists(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)

    one, two, five = (
        picture_of(image, NONE, dict.fromkeys(sizes, NONE))
        for sizes in ([16], [16, 32], [16, 20, 24, 28, 32])
    )

    assert one.shape[1] == two.shape[1] == five.shape[1]  # three panels side by side
    assert one.shape[0] < two.shape[0] < five.shape[0]  # a bar more, and another row of panels


def test_a_kept_box_is_drawn_where_it_is_and_nowhere_else() -> None:
    image = np.zeros((280, 560, 3), np.uint8)  # drawn at its own size
    box = np.array([[100, 40, 90, 120]], np.int32)
    views = views_of(image, {64: NONE})

    with_box, without = (picture_of(image, NONE, {64: boxes}, views) for boxes in (box, NONE))

    changed = (with_box != without).any(2)
    columns = np.flatnonzero(changed[100:380].any(0))
    assert columns.max() - columns.min() + 1 == 90
    rows = np.flatnonzero(changed[:, columns.min() : columns.max() + 1].any(1))
    rows = rows[rows > 80]  # below the title, which counts the boxes
    assert rows.max() - rows.min() + 1 == 120
    inside = changed[rows.min() + 4 : rows.max() - 3, columns.min() + 4 : columns.max() - 3]
    assert not inside.any()


def test_dropped_boxes_change_their_own_panel_and_the_bars_only() -> None:
    image = np.zeros((280, 560, 3), np.uint8)
    views = views_of(image, {64: NONE})
    small, elongated = np.array([[10, 10, 20, 20]], np.int32), np.array([[10, 10, 400, 70]], np.int32)

    nothing = picture_of(image, NONE, {64: NONE}, views)
    panels = []
    for raw in (small, elongated):
        changed = (picture_of(image, raw, {64: NONE}, views) != nothing).any(2)
        panel_rows = changed[:-120]  # without the bars
        panels.append(np.flatnonzero(panel_rows.any(0)))

    # One list: kept, sample and too small in the first row, elongated and overlapping in the second.
    third = nothing.shape[1] // 3
    assert panels[0].min() > 2 * third
    assert panels[1].max() < third + 100


def test_a_random_box_has_another_colour_than_a_proposal() -> None:
    image = np.zeros((280, 560, 3), np.uint8)
    white = np.array([255, 255, 255])
    purple = np.array([0xCC, 0x79, 0xA7])
    views = views_of(image, {64: NONE})
    assert len(views.boxes) == views.statistics.random_boxes == 4

    invented = picture_of(image, NONE, {64: NONE}, views)
    found = picture_of(image, views.boxes, {64: views.boxes}, views)

    def pixels(picture: Image, colour: np.ndarray) -> int:
        return int((picture[90:370, 560:1140] == colour).all(2).sum())

    assert pixels(invented, purple) > 500 > pixels(found, purple)
    assert pixels(found, white) > pixels(invented, white) + 500
