"""A picture of one sample, so that a person sees what the method sees.

Left the photograph with both scenes, their overlap (bright) and the boxes; right the pixels of scenes and
instances, first as they were cut, then as T1 and T2 left them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont

from univip.config import InstanceViews
from univip.data.augment import MEAN, STD
from univip.data.batch import make_views
from univip.data.samples import SampleReader
from univip.types import Boxes, Image

_MARGIN_PX = 8
_TEXT_PX = 14
_DIM = 0.45  # of the photograph's brightness outside the overlap
_SCENE_COLOURS = ("#4cc9f0", "#f78c6b")
_BOX_COLOURS = ("#ffd166", "#06d6a0", "#ef476f", "#c77dff")


def draw_sample(reader: SampleReader, epoch: int, row: int) -> Image:
    """Draw the sample of image `row` in `epoch`: any sample of a run, from its seed and two numbers.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    sample = reader.sample(epoch, row)
    batch = reader.batch(np.array([epoch]), np.array([row]))
    views = make_views(batch, InstanceViews.two, torch.device("cpu"))
    shown = [
        ("cut", batch.scenes[0], [batch.instances[0]]),
        (
            "augmented",
            pixels_of(views.scenes[0]),
            [pixels_of(views.online_instances[0]), pixels_of(views.target_instances[0])],
        ),
    ]

    marked = _marked(reader.photo(sample.row), sample.views.scenes, sample.views.overlap, sample.views.boxes)
    scene, instance = reader.views.scene_size, reader.views.instance_size
    step = _MARGIN_PX
    line = _TEXT_PX + step
    row_height = line + max(scene, 2 * instance + step) + step
    left = step + marked.width + step
    width = left + 2 * (scene + step) + len(batch.instances[0]) * (instance + step)
    canvas = PIL.Image.new("RGB", (width, line + step + max(line + marked.height, 2 * row_height)), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_TEXT_PX)
    facts = ", ".join(f"{name} {value}" for name, value in sample.views.statistics._asdict().items() if value)
    title = f"image {sample.image_id}, epoch {epoch}, seed {reader.seed}: {facts}"
    pen.text((step, step), title, fill="black", font=font)
    canvas.paste(marked, (step, line + step + line))
    for number, (name, scenes, instances) in enumerate(shown):
        top = line + step + number * row_height
        pen.text((left, top), name, fill="black", font=font)
        _paste(canvas, scenes, left, top + line, _SCENE_COLOURS)
        for place, tiles in enumerate(instances):
            x, y = left + 2 * (scene + step), top + line + place * (instance + step)
            _paste(canvas, tiles, x, y, _BOX_COLOURS)
    return np.asarray(canvas).copy()


def _marked(photo: Image, scenes: Boxes, overlap: Boxes, boxes: Boxes) -> PIL.Image.Image:
    bright = PIL.Image.fromarray(photo)
    marked = PIL.Image.fromarray((photo * _DIM).astype(np.uint8))
    x, y, w, h = overlap.tolist()
    marked.paste(bright.crop((x, y, x + w, y + h)), (x, y))
    pen = ImageDraw.Draw(marked)
    outlines = [*zip(scenes.tolist(), _SCENE_COLOURS, strict=True)]
    outlines += [(box, _BOX_COLOURS[i % len(_BOX_COLOURS)]) for i, box in enumerate(boxes.tolist())]
    for (x, y, w, h), colour in outlines:
        pen.rectangle((x, y, x + w - 1, y + h - 1), outline=colour, width=2)
    return marked


def pixels_of(views: torch.Tensor) -> torch.Tensor:
    """Augmented views [N, 3, H, W] with the normalisation taken back, as uint8."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return ((views * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _paste(canvas: PIL.Image.Image, tiles: torch.Tensor, x: int, y: int, colours: Iterable[str]) -> None:
    """Put tiles [N, 3, H, W] side by side, each framed in its colour."""
    pen = ImageDraw.Draw(canvas)
    edge = tiles.shape[-1]
    palette = list(colours)
    for number, tile in enumerate(tiles):
        left = x + number * (edge + _MARGIN_PX)
        canvas.paste(PIL.Image.fromarray(tile.permute(1, 2, 0).numpy().copy()), (left, y))
        frame = (left - 2, y - 2, left + edge + 1, y + edge + 1)
        pen.rectangle(frame, outline=palette[number % len(palette)], width=2)
