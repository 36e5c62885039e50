"""ORL's proposal files: `{"bbox": [[[x, y, w, h], ...], ...]}`, one row per image and no names.

Row i belongs to `images[i]` of the annotation file. The published files hold the raw boxes of selective
search, whole pixels from the top left corner, about 5 GB for COCO's training split. Their writer squeezes
arrays: the row of an image with exactly one box is that box itself.

Reading takes a few megabytes at a time through a compiled scanner of exactly this grammar, several times as
fast as a general parser, and can go on at any row. Shapes: N rows, M boxes.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from univip.atomic import replacing
from univip.data.json_stream import JsonStream
from univip.errors import DataError

if TYPE_CHECKING:
    from univip.types import Boxes

KEY = "bbox"
_CHUNK_BYTES = 1 << 22
_MAX_ROW_BYTES = 1 << 26  # some three million boxes; what has no end must not fill the memory
_FIX = "fetch the file again and compare its checksum"

# What the scanner came to.
_MORE, _END, _NO_ROW, _NO_BOX, _NO_NUMBER = range(5)
_EXPECTED = {
    _NO_ROW: "a row `[[x, y, w, h], ...]`",
    _NO_BOX: "a box `[x, y, w, h]`",
    _NO_NUMBER: "a whole number of at most 9 digits",
}


class Rows(NamedTuple):
    """Consecutive rows of a file.

    Attributes:
        boxes: int32 [M, 4] xywh.
        counts: Boxes of each row, int64 [N].
        end: Offset in bytes behind the last row, from where reading can go on.
    """

    boxes: Boxes
    counts: npt.NDArray[np.int64]
    end: int


def read_rows(file: BinaryIO, *, start: int = 0, row: int = 0) -> Iterator[Rows]:
    """Read the rows of a file, and then see that nothing but the end of the object follows.

    Args:
        file: Opened for reading in binary mode.
        start: Offset behind an earlier row, `Rows.end`; 0 reads from the first one.
        row: Number of the first row, for messages.

    Raises:
        DataError: If the file is anything but this format; says at which row and byte.
    """
    try:
        if not start:
            file.seek(0)
            start = _find_rows(JsonStream(file, encoding="latin-1"))
        file.seek(start)
        end = yield from _scan(file, start, row)
        file.seek(end)
        _see_the_end(JsonStream(file, encoding="latin-1"))
    except ValueError as error:
        raise DataError(
            f"proposals must be ORL's JSON, but are not: {error}.", where=file.name, fix=_FIX
        ) from error


def write_rows(path: Path, rows: Iterable[Boxes]) -> None:
    """Write a file as ORL's writer does, whole or not at all; the row of one box is that box itself."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{{"{KEY}": [')
        for number, boxes in enumerate(rows):
            row = boxes[0] if len(boxes) == 1 else boxes
            file.write(", " * (number > 0) + json.dumps(row.tolist()))
        file.write("]}")


def _find_rows(stream: JsonStream) -> int:
    """Offset of the first character inside the list of rows."""
    for key in stream.fields():
        if key == KEY:
            stream.take("[")
            return stream.position
        stream.skip()
    raise ValueError(f"they have no `{KEY}`")


def _see_the_end(stream: JsonStream) -> None:
    """The list of rows ends here; further keys may follow, but no second list of rows."""
    stream.take("]")
    while stream.take(",", "}") == ",":
        if stream.value() == KEY:
            raise ValueError(f"they have `{KEY}` twice")
        stream.take(":")
        stream.skip()
    stream.take("")


def _scan(file: BinaryIO, start: int, row: int) -> Generator[Rows, None, int]:
    """Yield the rows; return the offset behind the last one."""
    text, is_first, size = b"", row == 0, _CHUNK_BYTES
    end: int
    while True:
        chunk = file.read(size)
        text += chunk
        boxes = np.empty((len(text) // 9 + 1, 4), np.int32)  # [0,0,0,0]
        counts = np.zeros(len(text) // 2 + 1, np.int64)  # []
        found, end, num_rows, num_boxes = _scan_rows(np.frombuffer(text, np.uint8), is_first, boxes, counts)
        row += num_rows
        if found in _EXPECTED:
            shown = text[end : end + 20].decode("latin-1")
            raise ValueError(
                f"{_EXPECTED[found]} must follow at byte {start + end} in row {row}, not {shown!r}"
            )
        if found == _MORE and not chunk:
            raise ValueError(f"the file ends at byte {start + len(text)}, in or after row {row}")
        if num_rows:
            is_first = False
            yield Rows(boxes[:num_boxes].copy(), counts[:num_rows].copy(), start + end)
        if found == _END:
            return start + end
        start, text = start + end, text[end:]
        if len(text) > _MAX_ROW_BYTES:
            raise ValueError(f"row {row} is longer than {_MAX_ROW_BYTES >> 20} MiB")
        # A row longer than a chunk is scanned from its start again: less and less often.
        size = max(_CHUNK_BYTES, len(text))


@numba.njit(cache=True)
def _scan_rows(text, is_first, boxes, counts):  # type: ignore[no-untyped-def]
    """Read whole rows from the start of `text`, which is behind a row, or at the first one.

    Returns:
        What was found, its place in `text`, and the numbers of rows and boxes written. `_MORE` and `_END`
        (the end of the list) have the place behind the last whole row.
    """
    num_rows = num_boxes = end = 0
    while True:
        place = _skip_space(text, end)
        if place == len(text):
            return _MORE, end, num_rows, num_boxes
        if text[place] == 93:  # ]
            return _END, end, num_rows, num_boxes
        if not is_first:
            if text[place] != 44:  # ,
                return _NO_ROW, place, num_rows, num_boxes
            place = _skip_space(text, place + 1)
            if place == len(text):
                return _MORE, end, num_rows, num_boxes
        if text[place] != 91:  # [
            return _NO_ROW, place, num_rows, num_boxes
        found, place, count = _scan_row(text, place + 1, boxes[num_boxes:])
        if found != _END:
            return found, end if found == _MORE else place, num_rows, num_boxes
        counts[num_rows] = count
        num_rows += 1
        num_boxes += count
        end = place
        is_first = False


@numba.njit(cache=True)
def _scan_row(text, place, boxes):  # type: ignore[no-untyped-def]
    """Read the inside of one row and its bracket: boxes, one bare box, or nothing."""
    place = _skip_space(text, place)
    if place == len(text):
        return _MORE, place, 0
    if text[place] == 93:
        return _END, place + 1, 0
    if text[place] != 91:
        found, place = _scan_box(text, place, boxes[0])
        return found, place, 1
    count = 0
    while True:
        if text[place] != 91:
            return _NO_BOX, place, 0
        found, place = _scan_box(text, place + 1, boxes[count])
        if found != _END:
            return found, place, 0
        count += 1
        place = _skip_space(text, place)
        if place == len(text):
            return _MORE, place, 0
        if text[place] == 93:
            return _END, place + 1, count
        if text[place] != 44:
            return _NO_BOX, place, 0
        place = _skip_space(text, place + 1)
        if place == len(text):
            return _MORE, place, 0


@numba.njit(cache=True)
def _scan_box(text, place, box):  # type: ignore[no-untyped-def]
    """Read the inside of one box and its bracket: four whole numbers."""
    for part in range(4):
        place = _skip_space(text, place)
        start, sign, value = place, 1, 0
        if place < len(text) and text[place] == 45:  # -
            sign, place = -1, place + 1
        first = place
        while place < len(text) and 48 <= text[place] <= 57 and place - first < 10:
            value = 10 * value + (text[place] - 48)
            place += 1
        digits = place - first
        has_leading_zero = digits > 1 and text[first] == 48
        if digits > 9 or has_leading_zero:
            return _NO_NUMBER, start
        if place == len(text):
            return _MORE, place
        if digits == 0:
            return _NO_NUMBER, start
        box[part] = sign * value
        place = _skip_space(text, place)
        if place == len(text):
            return _MORE, place
        if text[place] != (44 if part < 3 else 93):
            is_number = text[place] in (46, 69, 101)  # . E e
            return (_NO_NUMBER, start) if is_number else (_NO_BOX, place)
        place += 1
    return _END, place


@numba.njit(cache=True)
def _skip_space(text, place):  # type: ignore[no-untyped-def]
    while place < len(text) and text[place] in (32, 9, 10, 13):
        place += 1
    return place
