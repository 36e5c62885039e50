"""A picture of an image and its proposals, so that a person sees what was found before training on it.

One panel per filtered list, side by side, over the dimmed photograph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

if TYPE_CHECKING:
    from univip.types import Boxes, Image

_MARGIN_PX = 8
_TEXT_PX = 16
_DIM = 0.6  # of the photograph's brightness: lines stay visible on bright skies
_COLOURS = ("#ffd166", "#06d6a0", "#ef476f", "#4cc9f0", "#f78c6b", "#c77dff")


def draw(image: Image, lists: Mapping[str, Boxes], *, caption: str) -> Image:
    """Draw box lists side by side, each over the image.

    Args:
        image: uint8 [H, W, 3] RGB.
        lists: Boxes, int32 [M, 4] xywh, by the title of their panel.
        caption: Line above the panels.

    Returns:
        uint8 [H', W', 3] RGB: one panel per list with its title and number of boxes.
    """
    height, width = image.shape[:2]
    font = ImageFont.load_default(_TEXT_PX)
    line = _TEXT_PX + _MARGIN_PX
    # Room for the titles where the image is narrower than they are.
    panel_width = max([width, *(int(font.getlength(f"{title}: 0000 boxes")) for title in lists)])
    size = (_MARGIN_PX + len(lists) * (panel_width + _MARGIN_PX), 2 * line + height + 2 * _MARGIN_PX)
    canvas = PIL.Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((_MARGIN_PX, _MARGIN_PX), caption, fill="black", font=font)
    dimmed = PIL.Image.fromarray((image * _DIM).astype(np.uint8))
    for number, (title, boxes) in enumerate(lists.items()):
        left, top = _MARGIN_PX + number * (panel_width + _MARGIN_PX), _MARGIN_PX + 2 * line
        pen.text((left, _MARGIN_PX + line), f"{title}: {len(boxes)} boxes", fill="black", font=font)
        panel = dimmed.copy()
        panel_pen = ImageDraw.Draw(panel)
        for x, y, w, h in boxes.tolist():
            # By place and size, so that a box of both lists has one colour in both panels.
            colour = _COLOURS[(x + y + w + h) % len(_COLOURS)]
            panel_pen.rectangle((x, y, x + w - 1, y + h - 1), outline=colour, width=2)
        canvas.paste(panel, (left, top))
    return np.asarray(canvas).copy()
