"""Boxes of any detector: the list of results that COCO's evaluation reads.

    [{"image_id": 139, "bbox": [x, y, w, h], "score": 0.9, ...}, ...]

in any order of images; other keys are ignored. In place of `image_id`, `file_name` may name the photograph,
as the annotations do or by its path below `data.root`. The boxes of an image are put in falling order of
score, equal scores in the order of the file: the filter keeps the first of two boxes that are alike.

A detector's edges are fractions, and may reach a little beyond the image: every edge goes to the nearest
whole pixel, halves up, and is cut off at the border. Boxes without area after that are left out and counted.
Shapes: M detections.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

import numpy as np

from univip.data.json_stream import JsonStream
from univip.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from univip.types import Boxes

# How far an edge may lie beyond the image, px: more means another image, not a careless detector.
_MARGIN_PX = 2.0
_FIX = (
    'each element must be {"image_id": 139, "bbox": [x, y, w, h], "score": 0.9}, of the images in data.split'
)


def read_detections(
    file: BinaryIO, sizes: npt.NDArray[np.int32], row_of: Mapping[int | str, int], tell: Callable[[int], None]
) -> tuple[list[Boxes], int]:
    """Read all detections; they are held in memory, 24 bytes each.

    Args:
        file: Opened for reading in binary mode.
        sizes: Width and height of the images, px [N, 2].
        row_of: Row of an image in `sizes`, by id and by name; negative for one whose boxes nobody needs.
        tell: Called now and then with the bytes read so far.

    Returns:
        Boxes int32 [M, 4] xywh of each image, and how many were left out for want of area.

    Raises:
        DataError: If the file is anything else, or of other images; says which element.
    """
    rows, edges, scores = array("q"), array("d"), array("d")
    number = 0
    try:
        stream = JsonStream(file)
        for number, element in enumerate(stream.items()):
            row, box, score = _checked(element, row_of)
            if row < 0:
                continue
            width, height = sizes[row].tolist()
            x, y, w, h = box
            beyond = max(-x, -y, x + w - width, y + h - height)
            if beyond > _MARGIN_PX:
                raise ValueError(f"box {box} lies {beyond:g} px beyond its image of {width} x {height}")
            rows.append(row)
            edges.extend((x, y, x + w, y + h))
            scores.append(score)
            if number % 10_000 == 0:
                tell(file.tell())
        stream.take("")
    except ValueError as error:
        raise DataError(
            f"proposals must be a list of detections, but are not: {error}.",
            where=f"{file.name}, element {number}",
            fix=_FIX,
        ) from error
    return _grouped(np.array(rows), np.array(edges).reshape(-1, 4), np.array(scores), sizes)


def _grouped(
    rows: npt.NDArray[np.int64],
    edges: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int32],
) -> tuple[list[Boxes], int]:
    """Whole-pixel boxes of each image, the best first, and the number of those without area."""
    order = np.lexsort((-scores, rows))  # stable
    rows = rows[order]
    corners = np.floor(edges[order] + 0.5).clip(0, np.tile(sizes[rows], 2)).astype(np.int32)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    has_area = (boxes[:, 2:] > 0).all(1)
    ends = np.searchsorted(rows[has_area], np.arange(len(sizes)), side="right")
    return np.split(boxes[has_area], ends[:-1]), int((~has_area).sum())


def _checked(element: Any, row_of: Mapping[int | str, int]) -> tuple[int, list[float], float]:
    """Row, box and score of one element."""
    if not isinstance(element, dict):
        raise ValueError(f"it is a {type(element).__name__}")
    image = element.get("image_id", element.get("file_name"))
    if not isinstance(image, int | str) or isinstance(image, bool) or image not in row_of:
        raise ValueError(f"`{image}` is no image of the data set, or the name of several")
    box, score = element.get("bbox"), element.get("score")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0):
        raise ValueError(
            f"`bbox` of image {image!r} is not four numbers x, y, w, h with w and h of at least 0"
        )
    if not _is_number(score):
        raise ValueError(f"`score` of image {image!r} is not a number")
    return row_of[image], box, score


def _is_number(number: Any) -> TypeGuard[float]:
    # Beyond a billion nothing is a pixel, and whole numbers of any length would not fit the arrays.
    return type(number) in (int, float) and abs(number) < 1e9
