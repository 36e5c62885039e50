"""Selective search: one image to the boxes of its regions, in an order that can be repeated.

The set of boxes is OpenCV's, exactly. Its order is not: OpenCV ranks a region by U(0, 1) × level with numbers
from C `rand()`, so the order tells how much work the process did before. Filters keep the first of two
overlapping boxes, hence the order must be pinned. Ours ranks by U(0, 1) × (w × h)^(1/4) with numbers keyed by
the image: levels are not visible from outside, and over the deciles of box area this power gives the mean
ranks of OpenCV's order within 0.02 - 0.04 of the list (uniform ranks: 0.10 - 0.13). Shapes: H, W the image, N
boxes, xywh with x, y the top-left pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from univip.errors import ConfigError

if TYPE_CHECKING:
    from univip.types import Boxes, Image

# Raised whenever the same image would get other boxes or another order; stores record it.
VERSION = 1

_PURPOSE = 0x5E1EC7  # the second half of the Philox key: these words are used for nothing else


def selective_search(image: Image, *, mode: str = "fast", key: int = 0) -> Boxes:
    """Boxes of an image at its own resolution.

    Args:
        image: uint8 [H, W, 3] RGB.
        mode: `single`, `fast` or `quality`, as OpenCV defines them.
        key: Fixes the order, not the set; the image id.

    Returns:
        int32 [N, 4] xywh without duplicates, small boxes mostly first; at least the box of the whole image.

    Raises:
        ConfigError: If OpenCV comes without its contrib modules or knows no such mode.
    """
    if not hasattr(cv2, "ximgproc"):
        raise ConfigError(
            f"selective search needs OpenCV with its contrib modules, but OpenCV {cv2.__version__} has none.",
            where=str(cv2.__file__),
            fix="uninstall the other OpenCV packages, pip install opencv-contrib-python-headless",
        )
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    # OpenCV's channel order: the segmentation weighs the channels alike, but Lab and HSV do not.
    search.setBaseImage(np.ascontiguousarray(image[:, :, ::-1]))
    if mode == "single":
        search.switchToSingleStrategy()
    elif mode == "fast":
        search.switchToSelectiveSearchFast()
    elif mode == "quality":
        search.switchToSelectiveSearchQuality()
    else:
        raise ConfigError(
            f"`proposals.mode` must be single, fast or quality, but is {mode!r}.", fix="proposals.mode=fast"
        )
    return pinned_order(np.asarray(search.process(), dtype=np.int32).reshape(-1, 4), key=key)


def pinned_order(boxes: Boxes, *, key: int) -> Boxes:
    """The same boxes, int32 [N, 4], in the order that `key` fixes whatever order they come in."""
    canonical = boxes[np.lexsort(boxes.T[::-1])]
    words = np.random.Philox(key=np.array([key, _PURPOSE], np.uint64)).random_raw(len(boxes))
    uniform = (words >> np.uint64(11)) * 2.0**-53
    # Square roots are rounded alike by every processor and library; pow and log are not.
    edge = np.sqrt(np.sqrt(canonical[:, 2].astype(np.float64) * canonical[:, 3]))
    return canonical[np.argsort(uniform * edge, kind="stable")]
