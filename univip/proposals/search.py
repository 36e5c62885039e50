"""Selective search: one image to the boxes of its regions, in an order that can be repeated.

Two engines give the same set of boxes, that of OpenCV: `fast`, our own, and `opencv`, the reference. A search
makes a hierarchy of regions for every colour image, every k of the segmentation and every similarity, and
returns the boxes of all of them.

OpenCV ranks a region by U(0, 1) x level with numbers from C `rand()`, so its order tells how much work the
process did before. Filters keep the first of two overlapping boxes, hence the order must be pinned: `fast`
ranks by U(0, 1) x level too, but draws a number for (image id, region), regions counted in the order in which
they are made. `opencv` does not tell levels: it ranks by U(0, 1) x (w x h)^(1/4), which over the deciles of
box area gives the mean ranks of OpenCV's order within 0.02 - 0.04 of the list (uniform ranks: 0.10 - 0.13).
Shapes: H, W the image, N boxes, R regions, xywh with x, y the top-left pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from univip.errors import ConfigError

if TYPE_CHECKING:
    from univip.types import Boxes, Image

# Raised whenever the same image would get other boxes or another order; stores record it.
VERSION = 2

_PURPOSE = 0x5E1EC7  # the second half of the Philox key: these words are used for nothing else


class _Mode(NamedTuple):
    """What a mode of OpenCV goes through; every combination is one hierarchy."""

    colour_images: int  # how many of those of `_colour_images`
    ks: tuple[int, ...]
    strategies: int  # how many of those of `grouping.py`


_MODES = {
    "single": _Mode(1, (200,), 1),
    "fast": _Mode(2, (150, 300, 450), 2),
    "quality": _Mode(5, (150, 300, 450, 600, 750), 4),
}


def selective_search(image: Image, *, mode: str = "fast", engine: str = "fast", key: int = 0) -> Boxes:
    """Boxes of an image at its own resolution.

    Args:
        image: uint8 [H, W, 3] RGB.
        mode: `single`, `fast` or `quality`, as OpenCV defines them.
        engine: `fast`, or `opencv` for the reference: the same set in another order.
        key: Fixes the order, not the set; the image id.

    Returns:
        int32 [N, 4] xywh without duplicates, small boxes mostly first; at least the box of the whole image.

    Raises:
        ConfigError: If there is no such mode or engine, or OpenCV comes without its contrib modules.
    """
    if mode not in _MODES:
        raise ConfigError(
            f"`proposals.mode` must be single, fast or quality, but is {mode!r}.", fix="proposals.mode=fast"
        )
    # OpenCV's channel order: the segmentation weighs the channels alike, but Lab and HSV do not.
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    if engine == "fast":
        boxes, levels = _regions(bgr, _MODES[mode])
        return ranked_order(boxes, levels, key=key)
    if engine == "opencv":
        return pinned_order(_opencv(bgr, mode), key=key)
    raise ConfigError(
        f"`proposals.engine` must be fast or opencv, but is {engine!r}.", fix="proposals.engine=fast"
    )


def prepare_engine(engine: str) -> None:
    """Load what an engine needs, so that the first image takes no longer than the others.

    The first call of a user on a kind of machine compiles the fast engine, half a minute, and caches it.
    """
    if engine == "fast":
        from univip.proposals import grouping  # noqa: F401


def ranked_order(boxes: Boxes, levels: npt.NDArray[np.int32], *, key: int) -> Boxes:
    """Distinct boxes int32 [N, 4] of regions [R, 4] by U(0, 1) x level, each where its first region is."""
    order = np.argsort(_uniform(len(boxes), key) * levels, kind="stable")
    x, y, w, h = boxes[order].T.astype(np.int64)
    width, height = (x + w).max() + 1, (y + h).max() + 1
    # Fits into 63 bits for images of up to 3e9 pixels.
    _, first = np.unique(((x * width + w) * height + y) * height + h, return_index=True)
    return boxes[order[np.sort(first)]]


def pinned_order(boxes: Boxes, *, key: int) -> Boxes:
    """The same boxes, int32 [N, 4], in the order that `key` fixes whatever order they come in."""
    canonical = boxes[np.lexsort(boxes.T[::-1])]
    # Square roots are rounded alike by every processor and library; pow and log are not.
    edge = np.sqrt(np.sqrt(canonical[:, 2].astype(np.float64) * canonical[:, 3]))
    return canonical[np.argsort(_uniform(len(boxes), key) * edge, kind="stable")]


def _uniform(count: int, key: int) -> npt.NDArray[np.floating[Any]]:
    """Numbers in [0, 1) that the key fixes."""
    words = np.random.Philox(key=np.array([key, _PURPOSE], np.uint64)).random_raw(count)
    return (words >> np.uint64(11)) * 2.0**-53


def _regions(bgr: npt.NDArray[np.uint8], mode: _Mode) -> tuple[Boxes, npt.NDArray[np.int32]]:
    """Boxes [R, 4] and levels [R] of the regions of all hierarchies, by the fast engine."""
    from univip.proposals.grouping import group  # numba: a second to load
    from univip.proposals.regions import histograms, texture
    from univip.proposals.segmentation import SegmentationGraph

    found = []
    for image in _colour_images(bgr, mode.colour_images):
        codes = texture(image)  # before the graph: the two together would take a quarter more memory
        graph = SegmentationGraph(image)
        for k in mode.ks:
            segments = graph.segment(k)
            features = histograms(image, codes, segments)
            found += [group(segments, features, strategy) for strategy in range(mode.strategies)]
    boxes, levels = zip(*found, strict=True)
    return np.concatenate(boxes), np.concatenate(levels)


def _colour_images(bgr: npt.NDArray[np.uint8], count: int) -> list[npt.NDArray[np.uint8]]:
    """HSV, Lab, intensity, blue, and red with green and intensity: uint8 [H, W, C].

    Blue stands where OpenCV's documentation has hue: OpenCV splits hue off into a buffer, and then splits the
    photograph into the same one before anything has looked at it.
    """
    images = [cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)]
    if count > 1:
        images.append(cv2.cvtColor(bgr, cv2.COLOR_BGR2Lab))
    if count > 2:
        intensity = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)[:, :, None]
        images += [intensity, bgr[:, :, :1], np.concatenate([bgr[:, :, 2:], bgr[:, :, 1:2], intensity], 2)]
    return [np.ascontiguousarray(image) for image in images]


def _opencv(bgr: npt.NDArray[np.uint8], mode: str) -> Boxes:
    """Boxes of OpenCV's own search, in an order that tells its history."""
    if not hasattr(cv2, "ximgproc"):
        raise ConfigError(
            "proposals.engine=opencv needs OpenCV with its contrib modules, but OpenCV "
            f"{cv2.__version__} has none.",
            where=str(cv2.__file__),
            fix="uninstall the other OpenCV packages, pip install opencv-contrib-python-headless",
        )
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(bgr)
    if mode == "single":
        search.switchToSingleStrategy()
    elif mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    return np.asarray(search.process(), dtype=np.int32).reshape(-1, 4)
