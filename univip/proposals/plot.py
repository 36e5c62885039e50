"""The statistics of a store as a picture: boxes per image, and how many trials a sample takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import ImageDraw, ImageFont

from univip.proposals.picture import GREY, INK, ORANGE, SKY, VERMILION

if TYPE_CHECKING:
    from univip.proposals.statistics import BoxStatistics
    from univip.types import Image

_WIDTH_PX, _HEIGHT_PX = 560, 300  # of one plot, labels included
_LEFT_PX, _BOTTOM_PX, _TOP_PX, _RIGHT_PX = 64, 34, 56, 18
_MARGIN_PX = 16
_TITLE_PX, _TEXT_PX = 17, 13
_BINS = 40
_TICKS = 5


def draw_statistics(found: BoxStatistics, *, title: str, max_trials: int) -> Image:
    """Draw one histogram per list, and one of the trials.

    Args:
        found: What was measured.
        title: Line above the plots.
        max_trials: After which a sample falls back to random boxes.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    facts = found.to_json()
    plots = []
    for name, counts in found.counts.items():
        spread = facts["boxes_per_image"][name]
        words = "all boxes" if name == "raw" else f"list of {name.removeprefix('min_')} px"
        told = (
            f"median {spread.get('median', 0):,.0f}; {spread.get('share_below_k', 0):.1%} of images below K"
        )
        edges = _edges(counts)
        heights, _ = np.histogram(counts, edges)
        labels = [(edge, f"{edge:,.0f}") for edge in _ticks(float(edges[-1]))]
        colours = [SKY] * len(heights)
        marked = float(found.num_boxes)
        plots.append(
            _plot(f"boxes per image, {words}", told, heights, edges, colours, labels, "images", marked)
        )
    samples = facts["samples"]
    low, high = samples["fallback_margin"]
    told = f"fallback {samples['fallback_rate']:.2%} of {samples['number']:,} samples "
    told += f"(95 %: {low:.2%} to {high:.2%})"
    fallback = sum(s.random_boxes > 0 for s in found.samples)
    heights = np.append(np.bincount(found.trials, minlength=max_trials + 1)[1 : max_trials + 1], fallback)
    borders = np.arange(max_trials + 2, dtype=np.float64) + 0.5
    labels = [(float(n), str(n)) for n in (1, *range(5, max_trials, 5)) if n <= max_trials - 2]
    labels.append((max_trials + 1.0, "random"))
    colours = [ORANGE] * max_trials + [VERMILION]
    name = f"trials until an overlap holds K = {found.num_boxes} proposals"
    plots.append(_plot(name, told, heights, borders, colours, labels, "samples"))
    return _sheet(plots, title)


def _edges(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Borders of the bins: whole numbers, so that no bin holds more of them than another."""
    step = max(1, -(-(int(counts.max(initial=0)) + 1) // _BINS))
    bins = max(8, -(-(int(counts.max(initial=0)) + 1) // step))
    return np.arange(bins + 1, dtype=np.float64) * step


def _ticks(end: float) -> list[float]:
    """About five round numbers from 0."""
    raw = max(end, 1.0) / _TICKS
    size = 10.0 ** np.floor(np.log10(raw))
    step = max(1.0, next(size * nice for nice in (1, 2, 5, 10) if size * nice >= raw))
    return [float(tick) for tick in np.arange(0, end + step / 2, step) if tick <= end]


def _plot(
    title: str,
    told: str,
    heights: npt.NDArray[np.int64],
    edges: npt.NDArray[np.float64],
    colours: list[str],
    labels: list[tuple[float, str]],
    unit: str,
    marked: float | None = None,
) -> PIL.Image.Image:
    """A histogram with axes; `marked` is where K lies."""
    panel = PIL.Image.new("RGB", (_WIDTH_PX, _HEIGHT_PX), "white")
    pen = ImageDraw.Draw(panel)
    head, text = ImageFont.load_default(_TITLE_PX), ImageFont.load_default(_TEXT_PX)
    pen.text((0, 0), title, fill=INK, font=head)
    pen.text((0, _TITLE_PX + 4), told, fill=GREY, font=text)
    left, right = _LEFT_PX, _WIDTH_PX - _RIGHT_PX
    top, bottom = _TOP_PX + 8, _HEIGHT_PX - _BOTTOM_PX
    most = max(1, int(heights.max(initial=0)))
    for tick in _ticks(float(most)):
        y = bottom - (bottom - top) * tick / most
        pen.line((left, y, right, y), fill="#e4e4e4")
        pen.text((left - 8, y), f"{tick:,.0f}", fill=GREY, font=text, anchor="rm")
    span = edges[-1] - edges[0]

    def across(value: float) -> float:
        return float(left + (right - left) * (value - edges[0]) / span)

    for height, start, end, colour in zip(heights, edges[:-1], edges[1:], colours, strict=True):
        if height:
            y = min(bottom - 1, bottom - (bottom - top) * height / most)
            pen.rectangle((across(start), y, max(across(start), across(end) - 2), bottom), fill=colour)
    pen.line((left, bottom, right, bottom), fill=INK)
    for value, words in labels:
        pen.text((across(value), bottom + 6), words, fill=GREY, font=text, anchor="ma")
    pen.text((left - 8, top - 14), unit, fill=GREY, font=text, anchor="rm")
    if marked is not None:
        pen.line((across(marked), top - 6, across(marked), bottom), fill=VERMILION, width=2)
        pen.text((across(marked) + 4, top - 8), "K", fill=VERMILION, font=text, anchor="lm")
    return panel


def _sheet(plots: list[PIL.Image.Image], title: str) -> Image:
    """Plots two by two below a title."""
    head = ImageFont.load_default(_TITLE_PX)
    top = _TITLE_PX + 2 * _MARGIN_PX
    size = (
        _MARGIN_PX + 2 * (_WIDTH_PX + _MARGIN_PX),
        top + -(-len(plots) // 2) * (_HEIGHT_PX + _MARGIN_PX),
    )
    sheet = PIL.Image.new("RGB", size, "white")
    ImageDraw.Draw(sheet).text((_MARGIN_PX, _MARGIN_PX), title, fill=INK, font=head)
    for number, plot in enumerate(plots):
        row, column = divmod(number, 2)
        place = (_MARGIN_PX + column * (_WIDTH_PX + _MARGIN_PX), top + row * (_HEIGHT_PX + _MARGIN_PX))
        sheet.paste(plot, place)
    return np.asarray(sheet).copy()
