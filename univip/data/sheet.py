"""Some samples on one sheet for the page of a run: what the network was shown last.

A row a sample: left the photograph with both scenes, their overlap (bright) and the boxes in it; right what
became of them: scene 1 and 2, below the instances as the online and, where it sees others, the target network
sees them. No colour tells alone: scenes and boxes carry their names, scene 2 is dashed, a random box dotted.
Colours are Okabe and Ito's. The ground is transparent, so the sheet lies on a light page and on a dark one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor

from univip.config import InstanceViews
from univip.data.augment import augment
from univip.data.picture import pixels_of
from univip.data.samples import Sample, SampleReader

_SCENE_PX = 192
_PHOTO_PX = 500  # widest
_GAP_PX = 8
_ROW_GAP_PX = 24
_LINE_PX = 3
_TEXT_PX = 15
_DIM = 0.5  # of the photograph's brightness outside the overlap
_LARGEST_SCALE = 4.0
_SOLID, _DASHED, _DOTTED = (1, 0), (14, 8), (4, 5)  # drawn and left out, px
_SCENES = (("scene 1", "#56b4e9", _SOLID), ("scene 2", "#e69f00", _DASHED))
_PROPOSAL, _RANDOM = ("white", _SOLID), ("#cc79a7", _DOTTED)

_Style = tuple[str, str, tuple[int, int]]  # name, colour, dashes
_Corners = tuple[int, int, int, int]  # left, top, right, bottom; the last two are outside


def draw_sheet(reader: SampleReader, samples: Sequence[Sample]) -> npt.NDArray[np.uint8]:
    """Draw some samples, one below the other.

    Args:
        reader: Whose samples they are.
        samples: At least one.

    Returns:
        uint8 [H, W, 4] RGB and opacity.

    Raises:
        ImageError: If a photograph can no longer be read.
    """
    rows = [_row(reader, sample) for sample in samples]
    width = max(row.width for row in rows)
    height = sum(row.height + _ROW_GAP_PX for row in rows) - _ROW_GAP_PX
    sheet = PIL.Image.new("RGBA", (width, height))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + _ROW_GAP_PX
    return np.asarray(sheet).copy()


def _row(reader: SampleReader, sample: Sample) -> PIL.Image.Image:
    boxes = _box_styles(reader, sample)
    instances = [sample.online_parameters]
    if reader.views.instance_views is InstanceViews.two:
        instances.append(sample.target_parameters)
    width = 2 * _SCENE_PX + _GAP_PX
    tile = (width + _GAP_PX) // max(reader.views.num_instances, 2) - _GAP_PX
    rows_of_tiles = len(instances) if reader.views.num_instances else 0
    height = _SCENE_PX + rows_of_tiles * (_GAP_PX + tile)

    row = PIL.Image.new("RGBA", (_PHOTO_PX + 2 * _GAP_PX + width, height))
    photo = _photograph(reader, sample, boxes, height)
    row.paste(photo, ((_PHOTO_PX - photo.width) // 2, (height - photo.height) // 2))
    left = _PHOTO_PX + 2 * _GAP_PX
    scenes = augment(torch.from_numpy(sample.scenes), sample.scene_parameters)
    _tiles(row, scenes, _SCENES, left, 0, _SCENE_PX)
    if boxes:
        for number, parameters in enumerate(instances):
            seen = augment(torch.from_numpy(sample.instances[: len(boxes)]), parameters)
            _tiles(row, seen, boxes, left, _SCENE_PX + _GAP_PX + number * (tile + _GAP_PX), tile)
    return row


def _box_styles(reader: SampleReader, sample: Sample) -> list[_Style]:
    """Number and look of each box: one that the search found, or one that was drawn at random."""
    found: set[tuple[int, ...]] = set()
    if reader.store is not None:
        for size in reader.store.min_sizes:
            found.update(map(tuple, reader.store.filtered(sample.image_id, size).tolist()))
    looks = [_PROPOSAL if tuple(box) in found else _RANDOM for box in sample.views.boxes.tolist()]
    return [(str(number), *look) for number, look in enumerate(looks, 1)]


def _photograph(
    reader: SampleReader, sample: Sample, boxes: Sequence[_Style], height: int
) -> PIL.Image.Image:
    """The photograph within its part of the row, with all outlines."""
    bright = PIL.Image.fromarray(reader.photo(sample.row))
    scale = min(_PHOTO_PX / bright.width, height / bright.height, _LARGEST_SCALE)
    size = max(1, round(bright.width * scale)), max(1, round(bright.height * scale))
    bright = bright.resize(size, PIL.Image.Resampling.LANCZOS)
    marked = PIL.Image.fromarray((np.asarray(bright) * _DIM).astype(np.uint8))
    if len(boxes):
        overlap = _scaled(sample.views.overlap.tolist(), scale)
        marked.paste(bright.crop(overlap), overlap[:2])
    outlines = [
        (_scaled(box, scale), style)
        for box, style in zip(
            [*sample.views.scenes.tolist(), *sample.views.boxes.tolist()], [*_SCENES, *boxes], strict=True
        )
    ]
    for corners, style in outlines:
        _outline(marked, corners, style)
    for corners, style in outlines:  # on top of every line
        _name(marked, corners, style, at_end=style is _SCENES[1])  # scenes often share a corner
    return marked


def _tiles(
    row: PIL.Image.Image, views: Tensor, styles: Sequence[_Style], left: int, top: int, edge: int
) -> None:
    """Put augmented views [N, 3, H, W] side by side, each in the frame of its outline."""
    for number, (pixels, style) in enumerate(zip(pixels_of(views), styles, strict=True)):
        x = left + number * (edge + _GAP_PX)
        tile = PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy().copy())
        row.paste(tile.resize((edge, edge), PIL.Image.Resampling.LANCZOS), (x, top))
        corners = (x, top, x + edge, top + edge)
        _outline(row, corners, style)
        _name(row, corners, style)


def _outline(panel: PIL.Image.Image, corners: _Corners, style: _Style) -> None:
    """A rectangle in its dashes, on a dark rim that keeps it apart from any photograph."""
    _, colour, (drawn, left_out) = style
    left, top, right, bottom = corners
    pen = ImageDraw.Draw(panel)
    pen.rectangle((left, top, right - 1, bottom - 1), outline="black", width=_LINE_PX + 1)
    inner = _LINE_PX - 1
    for start, stop, box in (
        (left, right, lambda a, b: (a, top, b, top + inner)),
        (left, right, lambda a, b: (a, bottom - 1 - inner, b, bottom - 1)),
        (top, bottom, lambda a, b: (left, a, left + inner, b)),
        (top, bottom, lambda a, b: (right - 1 - inner, a, right - 1, b)),
    ):
        for at in range(start, stop, drawn + left_out):
            pen.rectangle(box(at, min(at + drawn, stop) - 1), fill=colour)


def _name(panel: PIL.Image.Image, corners: _Corners, style: _Style, *, at_end: bool = False) -> None:
    """Dark words on a patch of the outline's colour, in its top-left or bottom-right corner."""
    name, colour, _ = style
    pen = ImageDraw.Draw(panel)
    font = ImageFont.load_default(_TEXT_PX)
    width, height = round(font.getlength(name)) + 8, _TEXT_PX + 4
    left, top, right, bottom = corners
    if at_end:
        left, top = right - 1 - width, bottom - 1 - height
    pen.rectangle((left, top, left + width, top + height), fill=colour)
    pen.text((left + 4, top + 1), name, fill="black", font=font)


def _scaled(box: Sequence[int], scale: float) -> _Corners:
    """Corners in the panel; at least one pixel apart."""
    x, y, w, h = box
    left, top = int(x * scale), int(y * scale)
    return left, top, max(left + 1, round((x + w) * scale)), max(top + 1, round((y + h) * scale))
