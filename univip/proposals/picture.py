"""A picture of an image and its proposals, so that a person sees what was found before training on it.

Panels over the dimmed photograph: the boxes of each list; one pair of scenes with their overlap and the K
boxes chosen in it; and the raw boxes that were dropped, by reason. Below, how many of each there are. Colours
are those of Okabe and Ito, which stay apart for colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import PIL.ImageColor
from PIL import ImageDraw, ImageFont

from univip.proposals.fates import Fate, fates

if TYPE_CHECKING:
    from univip.data.views import SampledViews
    from univip.types import Boxes, Image

SKY, ORANGE, GREEN, YELLOW = "#56b4e9", "#e69f00", "#009e73", "#f0e442"
VERMILION, PURPLE, GREY, INK = "#d55e00", "#cc79a7", "#8c8c8c", "#1a1a1a"
FATE_COLOURS = {Fate.kept: SKY, Fate.small: YELLOW, Fate.elongated: PURPLE, Fate.overlapping: VERMILION}

_COLUMNS = 3
_PANEL_PX = 560  # longer edge of the photograph in a panel
_LEAST_WIDTH_PX = 330  # room for a title
_LARGEST_SCALE = 4.0
_MARGIN_PX = 14
_TITLE_PX, _TEXT_PX = 17, 14
_BAR_PX = 22
_DIM = 0.5  # of the photograph's brightness: lines stay visible on bright skies
_MANY = 30  # boxes; more are drawn with thinner or fainter lines


def draw(
    image: Image,
    raw: Boxes,
    lists: Mapping[int, Boxes],
    views: SampledViews,
    *,
    max_ratio: float,
    caption: str,
) -> Image:
    """Draw what is known of one image.

    Args:
        image: uint8 [H, W, 3] RGB.
        raw: All boxes, int32 [N, 4] xywh.
        lists: The filtered lists by smallest edge in px.
        views: One sample of the image.
        max_ratio: Longest edge over shortest of the lists.
        caption: Line above the panels.

    Returns:
        uint8 [H', W', 3] RGB.
    """
    height, width = image.shape[:2]
    scale = min(_PANEL_PX / max(width, height), _LARGEST_SCALE)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    bright = PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.LANCZOS)
    dark = PIL.Image.fromarray((np.asarray(bright) * _DIM).astype(np.uint8))
    named = {
        least: fates(raw, boxes, min_size_px=least, max_ratio=max_ratio)
        for least, boxes in sorted(lists.items(), reverse=True)
    }

    panels, larger = [], raw[:0]
    for least in named:
        panel, kept = dark.copy(), lists[least]
        is_shared = _is_in(kept, larger)
        line = 2 if len(kept) <= _MANY else 1
        _outline(panel, kept[~is_shared], ORANGE if len(larger) else SKY, scale, width=line)
        _outline(panel, kept[is_shared], SKY, scale, width=line)
        words = "blue: also in the list before; orange: only here" if len(larger) else "kept boxes"
        panels.append((f"list of {least} px: {_count(len(kept), 'box', 'boxes')}", words, panel))
        larger = kept
    panels.append(_scene_panel(bright, dark, views, lists, scale))
    least = min(named)
    for fate, rule in _RULES.items():
        found = named[least][fate]
        words = rule.format(least=least, ratio=f"{max_ratio:g}")
        title = f"dropped from the list of {least} px: {len(found):,}"
        panels.append((title, words, _faint(dark, found, FATE_COLOURS[fate], scale)))
    return _compose(panels, named, caption)


_RULES = {
    Fate.small: "too small: an edge below {least} px",
    Fate.elongated: "too elongated: one edge more than {ratio} times the other",
    Fate.overlapping: "overlaps a kept box too much",
}


def _scene_panel(
    bright: PIL.Image.Image,
    dark: PIL.Image.Image,
    views: SampledViews,
    lists: Mapping[int, Boxes],
    scale: float,
) -> tuple[str, str, PIL.Image.Image]:
    panel = dark.copy()
    overlap = _scaled(views.overlap, scale)
    if len(views.boxes):
        panel.paste(bright.crop(overlap), overlap[:2])
    for scene, colour in zip(views.scenes, (SKY, ORANGE), strict=True):
        _outline(panel, scene[None], colour, scale, width=3)
    is_proposal = _is_in(views.boxes, np.concatenate([*lists.values(), views.boxes[:0]]))
    colours = ["white" if found else PURPLE for found in is_proposal]
    for box, colour in zip(views.boxes, colours, strict=True):
        _outline(panel, box[None], colour, scale)
    for number, (scene, colour) in enumerate(zip(views.scenes, (SKY, ORANGE), strict=True), 1):
        _label(panel, scene, f"scene {number}", colour, scale)
    for number, (box, colour) in enumerate(zip(views.boxes, colours, strict=True), 1):
        _label(panel, box, str(number), colour, scale)
    statistics, num_random = views.statistics, int((~is_proposal).sum())
    if statistics.too_small:
        return "one sample: no boxes", "the photograph is too small for them", panel
    trials = _count(statistics.trials, "trial", "trials")
    title = f"one sample: {_count(len(views.boxes), 'box', 'boxes')}, {trials}"
    words = f"bright: overlap; white: {len(views.boxes) - num_random} of {statistics.inside} proposals inside"
    return title, f"{words}; purple: {num_random} random" if num_random else words, panel


def _compose(
    panels: Sequence[tuple[str, str, PIL.Image.Image]],
    named: Mapping[int, Mapping[Fate, Boxes]],
    caption: str,
) -> Image:
    """Put caption, panels and bars on one white sheet."""
    title, text = ImageFont.load_default(_TITLE_PX), ImageFont.load_default(_TEXT_PX)
    width, height = panels[0][2].size
    cell_width = max(width, _LEAST_WIDTH_PX) + _MARGIN_PX
    cell_height = _TITLE_PX + _TEXT_PX + height + 2 * _MARGIN_PX
    rows = -(-len(panels) // _COLUMNS)
    top = _TITLE_PX + 2 * _MARGIN_PX
    below = top + rows * cell_height
    bars = (len(named) + 1) * (_BAR_PX + 8) + 2 * _MARGIN_PX
    sheet_width = _MARGIN_PX + _COLUMNS * cell_width
    sheet = PIL.Image.new("RGB", (sheet_width, below + bars), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN_PX, _MARGIN_PX), caption, fill=INK, font=title)
    for number, (name, words, panel) in enumerate(panels):
        row, column = divmod(number, _COLUMNS)
        x, y = _MARGIN_PX + column * cell_width, top + row * cell_height
        pen.text((x, y), name, fill=INK, font=title)
        pen.text((x, y + _TITLE_PX + 4), words, fill=GREY, font=text)
        sheet.paste(panel, (x, y + _TITLE_PX + _TEXT_PX + 12))
    _draw_bars(pen, named, below, sheet_width, text)
    return np.asarray(sheet).copy()


def _draw_bars(
    pen: ImageDraw.ImageDraw,
    named: Mapping[int, Mapping[Fate, Boxes]],
    top: int,
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """One bar per list, divided by what became of the raw boxes, and the legend of its colours."""
    x = _MARGIN_PX
    for fate, colour in FATE_COLOURS.items():
        pen.rectangle((x, top, x + _TEXT_PX, top + _TEXT_PX), fill=colour)
        pen.text((x + _TEXT_PX + 6, top - 1), str(fate), fill=INK, font=font)
        x += _TEXT_PX + 30 + round(font.getlength(str(fate)))
    left, right = _MARGIN_PX + 60, width - _MARGIN_PX
    for number, (least, found) in enumerate(named.items(), 1):
        y = top + number * (_BAR_PX + 8)
        pen.text((_MARGIN_PX, y + 2), f"{least} px", fill=INK, font=font)
        total = sum(map(len, found.values()))
        start = float(left)
        for fate, colour in FATE_COLOURS.items():
            end = start + (right - left) * len(found[fate]) / max(total, 1)
            if end > start:
                pen.rectangle((start, y, end, y + _BAR_PX), fill=colour)
            words = f"{len(found[fate]):,}"
            if end - start > font.getlength(words) + 8:
                pen.text((start + 4, y + 3), words, fill=INK, font=font)
            start = end


def _outline(panel: PIL.Image.Image, boxes: Boxes, colour: str, scale: float, *, width: int = 2) -> None:
    """Large boxes first, so that small ones lie on top; a dark rim keeps lines apart from the photograph."""
    pen = ImageDraw.Draw(panel)
    for box in boxes[np.argsort(-boxes[:, 2:].astype(np.int64).prod(1), kind="stable")]:
        left, top, right, bottom = _scaled(box, scale)
        corners = (left, top, right - 1, bottom - 1)
        if width > 1 and min(right - left, bottom - top) > 2 * width + 2:
            pen.rectangle(corners, outline="black", width=width + 1)
        pen.rectangle(corners, outline=colour, width=width)


def _label(panel: PIL.Image.Image, box: Boxes, words: str, colour: str, scale: float) -> None:
    """Dark words on a patch of the box's colour, in its top-left corner."""
    pen = ImageDraw.Draw(panel)
    font = ImageFont.load_default(_TEXT_PX)
    left, top, _, _ = _scaled(box, scale)
    pen.rectangle((left, top, left + font.getlength(words) + 7, top + _TEXT_PX + 3), fill=colour)
    pen.text((left + 4, top + 1), words, fill="black", font=font)


def _faint(dark: PIL.Image.Image, boxes: Boxes, colour: str, scale: float) -> PIL.Image.Image:
    """Thin lines, the fainter the more there are; they add up where many boxes run."""
    lines = np.zeros((dark.height, dark.width), np.float32)
    for left, top, right, bottom in (_scaled(box, scale) for box in boxes):
        lines[top, left:right] += 1
        lines[bottom - 1, left:right] += 1
        lines[top:bottom, left] += 1
        lines[top:bottom, right - 1] += 1
    strength = min(0.9, max(0.25, _MANY / max(len(boxes), 1)))
    share = (1 - (1 - strength) ** lines)[..., None]
    paint = np.array(PIL.ImageColor.getrgb(colour), np.float32)
    return PIL.Image.fromarray((np.asarray(dark) * (1 - share) + paint * share).astype(np.uint8))


def _scaled(box: Boxes, scale: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in the panel; at least one pixel."""
    x, y, w, h = (float(number) for number in box)
    left, top = int(x * scale), int(y * scale)
    return left, top, max(left + 1, int((x + w) * scale)), max(top + 1, int((y + h) * scale))


def _is_in(boxes: Boxes, others: Boxes) -> np.ndarray:
    """Which of boxes [N, 4] are also among others [M, 4]."""
    found: np.ndarray = (boxes[:, None] == others[None]).all(2).any(1)
    return found


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
