"""Class labels of images from a COCO-style instances file (COCO itself, or VOC in that layout).

An image is positive for every class it holds an object of. A crowd counts: its class is in the image, if not
countable. An object marked `difficult` or `ignore` (VOC) decides nothing: an image whose only objects of a
class are such is neither positive nor negative for it, and is left out when that class is scored, as the VOC
protocol has it.

Legend: N images, C classes in order of category id.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from univip.errors import DataError


class Labels(NamedTuple):
    """Multi-hot labels of the images that were asked for."""

    names: list[str]  # [C]
    positive: Tensor  # bool [N, C]
    known: Tensor  # bool [N, C]; False where only difficult objects speak for the class


def read_labels(paths: Sequence[Path], image_ids: Sequence[int]) -> Labels:
    """Labels of images, from one annotation file per split.

    Args:
        paths: Instances files; all must define the same categories.
        image_ids: Images in the order of the rows wanted. Other images of the files are passed over; an image
            without objects is negative for every class.

    Raises:
        DataError: If a file is no instances file, the files disagree on the categories, or an image is in
            none of them.
    """
    categories: dict[int, str] = {}
    listed: set[int] = set()
    annotations: list[dict[str, Any]] = []
    for path in paths:
        document = _read(path)
        here = {category["id"]: category["name"] for category in document["categories"]}
        if categories and here != categories:
            raise DataError(
                "The annotation files must define the same categories, but do not.",
                where=f"{paths[0]} and {path}",
                fix="evaluate splits of one data set",
            )
        categories = here
        listed.update(image["id"] for image in document["images"])
        annotations += document["annotations"]
    missing = [image_id for image_id in image_ids if image_id not in listed]
    if missing:
        raise DataError(
            f"{len(missing)} images have no entry in the annotations, the first with id {missing[0]}.",
            where=", ".join(map(str, paths)),
            fix="evaluate.split=<the split these annotations describe>",
        )
    return _mark(annotations, categories, image_ids)


def _mark(annotations: list[dict[str, Any]], categories: dict[int, str], image_ids: Sequence[int]) -> Labels:
    """Enter every object into the two matrices."""
    rows = {image_id: row for row, image_id in enumerate(image_ids)}
    columns = {category_id: column for column, category_id in enumerate(sorted(categories))}
    positive = torch.zeros(len(rows), len(columns), dtype=torch.bool)
    doubtful = torch.zeros_like(positive)
    for annotation in annotations:
        if annotation["image_id"] in rows:
            is_doubtful = annotation.get("difficult") or annotation.get("ignore")
            matrix = doubtful if is_doubtful else positive
            matrix[rows[annotation["image_id"]], columns[annotation["category_id"]]] = True
    return Labels([categories[key] for key in sorted(categories)], positive, positive | ~doubtful)


def _read(path: Path) -> dict[str, Any]:
    """The parsed file, if it has the three lists that are used."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"The annotation file cannot be read: {error}.",
            where=str(path),
            fix="check the file and data.root",
        ) from error
    keys = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in keys):
        raise DataError(
            "`images`, `annotations` and `categories` must be lists of an instances file, but are not here.",
            where=str(path),
            fix="name a split that has labels: evaluate.split=val2017",
        )
    return document
