"""The photographs of `univip demo`: overlapping crops of those that scikit-image ships, as a COCO data set.

Real pixels, no download. The class of a crop is the photograph it was cut from, so that a nearest-neighbour
evaluation has something to find.
"""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from univip.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

SPLIT = "train"
_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
_FEWEST = 4
_CROPS = 9  # of each
_EDGE_PX = (160, 240)
_LONGEST_PX = 640  # a photograph is shrunk to this first, so that a crop shows things and not grain
_JPEG_QUALITY = 95


def make_demo_data(root: Path) -> Path:
    """Cut the crops into `root`, unless they are there already.

    Returns:
        `root`, in the layout of COCO: `annotations/instances_train.json` and `train/`.

    Raises:
        DataError: If scikit-image's photographs are not installed.
    """
    if root.exists():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".demo-data-", dir=root.parent))
    try:
        (unfinished / SPLIT).mkdir()
        (unfinished / "annotations").mkdir()
        document = _cut(_photographs(), unfinished / SPLIT)
        path = unfinished / "annotations" / f"instances_{SPLIT}.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        unfinished.rename(root)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return root


def copy_photographs(folder: Path) -> None:
    """Write the photographs themselves, shrunk to the size of COCO's.

    Raises:
        DataError: If scikit-image's photographs are not installed.
    """
    folder.mkdir(parents=True)
    for path in _photographs():
        _open(path).save(folder / f"{path.stem}.jpg", quality=_JPEG_QUALITY)


def _photographs() -> list[Path]:
    """Found without importing scikit-image, which would load SciPy."""
    package = importlib.util.find_spec("skimage")
    folders = (
        [Path(folder) / "data" for folder in (package.submodule_search_locations or [])] if package else []
    )
    found = [folder / name for name in _PHOTOGRAPHS for folder in folders if (folder / name).is_file()]
    if len(found) < _FEWEST:
        raise DataError(
            f"scikit-image must bring at least {_FEWEST} of its photographs, but {len(found)} are there.",
            where=", ".join(map(str, folders)) or "scikit-image is not installed",
            fix="pip install --force-reinstall scikit-image",
        )
    return found


def _open(path: Path) -> Image.Image:
    from PIL import Image

    with Image.open(path) as opened:
        photograph = opened.convert("RGB")
    photograph.thumbnail((_LONGEST_PX, _LONGEST_PX))
    return photograph


def _cut(photographs: list[Path], folder: Path) -> dict[str, Any]:
    """Write the crops; return their COCO annotations, one object per image: the whole of it."""
    draws = random.Random(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for category, path in enumerate(photographs, start=1):
        photograph = _open(path)
        for number in range(_CROPS):
            width, height = (min(draws.randint(*_EDGE_PX), limit) for limit in photograph.size)
            x, y = draws.randint(0, photograph.width - width), draws.randint(0, photograph.height - height)
            image_id, name = len(images) + 1, f"{path.stem}-{number}.jpg"
            photograph.crop((x, y, x + width, y + height)).save(folder / name, quality=_JPEG_QUALITY)
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            annotations.append(
                {
                    "id": image_id,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [0, 0, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [],
                }
            )
    categories = [{"id": category, "name": path.stem} for category, path in enumerate(photographs, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}
