"""Boxes that somebody else has found: files of proposals, told apart by their content.

    {"bbox": ...}      ORL's JSON, read as a stream                           `univip/proposals/orl.py`
    pickle             of lists, dicts and arrays                             `univip/proposals/pickles.py`
    [{...}, ...]       detections in COCO's result format                     `univip/proposals/detections.py`

All become the same: raw boxes for every image of the index, in order, each checked against the size of its
image, so that boxes of other images do not pass. Shapes: N images, M boxes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from univip.data.images import ImageIndex
from univip.data.scan import Row
from univip.errors import DataError
from univip.proposals.detections import read_detections
from univip.proposals.orl import read_rows
from univip.proposals.pickles import read_pickle

if TYPE_CHECKING:
    from univip.types import Boxes

VERSION = 1  # of what the readers make of a file; another one is another store
ORL, PICKLE, DETECTIONS = "orl", "pickle", "detections"
_BLOCK_IMAGES = 1024
_DIGEST_BYTES = 1 << 22
_FIX = "univip proposals import FILE data.root=... data.split=...  # those the boxes were made from"

Tell = Callable[[int], None]  # bytes done so far, of all files


class Source(NamedTuple):
    """A file of proposals as it was when its checksum was taken."""

    path: Path
    sha256: str
    size: int
    modified_ns: int


class Mark(NamedTuple):
    """Where reading can go on: behind this row of this file, which is an image of this position."""

    source: int = 0
    byte: int = 0
    row: int = 0
    position: int = 0


class Block(NamedTuple):
    """Raw boxes of the next images of the index.

    Attributes:
        boxes: int32 [M, 4] xywh.
        counts: Boxes of each image, int64 [N].
        mark: Behind these images.
    """

    boxes: Boxes
    counts: npt.NDArray[np.int64]
    mark: Mark


def examine(paths: Sequence[Path], tell: Tell) -> list[Source]:
    """Take the checksums of files of proposals.

    Raises:
        DataError: If one is empty or cannot be read.
    """
    sources: list[Source] = []
    done = 0
    for path in paths:
        with _opened(path) as file:
            state, digest = os.fstat(file.fileno()), hashlib.sha256()
            while chunk := file.read(_DIGEST_BYTES):
                digest.update(chunk)
                tell(done := done + len(chunk))
        sources.append(Source(path, digest.hexdigest(), state.st_size, state.st_mtime_ns))
    return sources


def source_key(sources: Sequence[Source]) -> str:
    """Value of `proposals.source` for these files in this order."""
    first, *more = (source.sha256 for source in sources)
    return (hashlib.sha256("".join([first, *more]).encode()).hexdigest() if more else first)[:12]


@dataclass
class ForeignBoxes:
    """The boxes of some files for the images of an index.

    Attributes:
        listed: Every photograph of the annotations in order, usable or not.
        left_out: Detections that had no area as whole pixels, once they have been read.
    """

    sources: Sequence[Source]
    index: ImageIndex
    listed: Sequence[Row]
    left_out: int = 0
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        kinds = {_kind_of(source.path) for source in self.sources}
        if len(kinds) > 1:
            raise DataError(
                f"files of proposals must be of one kind, but are {' and '.join(sorted(kinds))}.",
                where=", ".join(str(source.path) for source in self.sources),
                fix="import them one by one, as runs of their own",
            )
        [self.kind] = kinds
        rows = {image_id: row for row, image_id in enumerate(self.index.ids.tolist())}
        # Rows of the index by position in the annotations; -1 where the photograph is not used.
        self._row_at = np.array([rows.get(row.id, -1) for row in self.listed], np.int64)

    def blocks(self, mark: Mark, tell: Tell) -> Iterator[Block]:
        """Boxes of the images behind `mark`, in the order of the index.

        Raises:
            DataError: If a file is damaged, hostile, was changed meanwhile, or belongs to other images.
        """
        if self.kind == ORL:
            yield from self._streamed(mark, tell)
        else:
            lists = self._from_pickles(tell) if self.kind == PICKLE else self._from_detections(tell)
            for start in range(mark.position, len(lists), _BLOCK_IMAGES):
                some = lists[start : start + _BLOCK_IMAGES]
                counts = np.array([len(boxes) for boxes in some])
                self._refuse_outside(np.concatenate(some), counts, np.arange(start, start + len(some)))
                yield Block(np.concatenate(some), counts, Mark(position=start + len(some)))
        for source in self.sources:
            state = source.path.stat()
            if (state.st_size, state.st_mtime_ns) != (source.size, source.modified_ns):
                raise DataError(
                    "a file of proposals must not change while it is read, but has.",
                    where=str(source.path),
                    fix="the same command again, once the file is complete",
                )

    def _streamed(self, mark: Mark, tell: Tell) -> Iterator[Block]:
        sizes = [source.size for source in self.sources]
        for number, source in enumerate(self.sources):
            if number < mark.source:
                continue
            if number > mark.source:
                mark = Mark(source=number, position=mark.position)
            with _opened(source.path) as file:
                for rows in read_rows(file, start=mark.byte, row=mark.row):
                    num_rows = len(rows.counts)
                    positions = self._row_at[mark.position : mark.position + num_rows]
                    if len(positions) < num_rows:
                        self._refuse_number("more")
                    is_used = positions >= 0
                    boxes, counts = rows.boxes[is_used.repeat(rows.counts)], rows.counts[is_used]
                    self._refuse_outside(boxes, counts, positions[is_used])
                    mark = Mark(number, rows.end, mark.row + num_rows, mark.position + num_rows)
                    tell(sum(sizes[:number]) + rows.end)
                    yield Block(boxes, counts, mark)
        if mark.position != len(self._row_at):
            self._refuse_number(f"{mark.position:,}")

    def _from_pickles(self, tell: Tell) -> list[Boxes]:
        rows: list[Boxes] = []
        names: dict[str, Boxes] = {}
        for source in self.sources:
            with _opened(source.path) as file:
                found = read_pickle(file)
            if isinstance(found, dict):
                names |= found
            else:
                rows += found
            tell(sum(each.size for each in self.sources[: self.sources.index(source) + 1]))
        lists: list[Boxes] = [np.empty((0, 4), np.int32)] * len(self.index)
        if names:
            row_of = self._row_by_name()
            for name, boxes in names.items():
                if name not in row_of:
                    raise self._of_others(f"`{name}` is no image of the data set, or the name of several")
                if row_of[name] >= 0:
                    lists[row_of[name]] = boxes
            return lists
        if len(rows) != len(self._row_at):
            self._refuse_number(f"{len(rows):,}")
        for row, boxes in zip(self._row_at.tolist(), rows, strict=True):
            if row >= 0:
                lists[row] = boxes
        return lists

    def _from_detections(self, tell: Tell) -> list[Boxes]:
        row_of: dict[int | str, int] = {
            row.id: at for row, at in zip(self.listed, self._row_at.tolist(), strict=True)
        }
        row_of.update(self._row_by_name())
        [source, *more] = self.sources
        if more:
            raise DataError(
                f"detections must be in one file, but are in {len(self.sources)}.",
                where=", ".join(str(each.path) for each in self.sources),
                fix="jq -s add FILE FILE > all.json",
            )
        with _opened(source.path) as file:
            lists, self.left_out = read_detections(file, self.index.sizes, row_of, tell)
        return lists

    def _row_by_name(self) -> dict[str, int]:
        """Row of the index by path below the root, and by file name where only one image has it."""
        rows: dict[str, int] = {}
        several: set[str] = set()
        for row, at in zip(self.listed, self._row_at.tolist(), strict=True):
            name = row.path.rpartition("/")[2]
            if name in rows:
                several.add(name)
            rows[name] = at
        paths = {row.path: at for row, at in zip(self.listed, self._row_at.tolist(), strict=True)}
        return {name: at for name, at in rows.items() if name not in several} | paths

    def _refuse_outside(
        self, boxes: Boxes, counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> None:
        owners = rows.repeat(counts)
        is_inside = (boxes[:, :2] >= 0) & (boxes[:, 2:] >= 1)
        # Beyond any image before the sum, which would not fit.
        is_inside &= boxes.max(1, initial=0, keepdims=True) < 2**30
        is_inside &= boxes[:, :2] + boxes[:, 2:] <= self.index.sizes[owners]
        if not is_inside.all():
            first = int(is_inside.all(1).argmin())
            row = int(owners[first])
            position = int((self._row_at == row).argmax())
            width, height = self.index.sizes[row].tolist()
            raise self._of_others(
                f"box {boxes[first].tolist()} of row {position} is not inside image "
                f"`{self.index.path(row)}` of {width} x {height} px"
            )

    def _refuse_number(self, found: str) -> NoReturn:
        raise self._of_others(
            f"the annotations list {len(self._row_at):,} images, the proposals have {found} rows"
        )

    def _of_others(self, what: str) -> DataError:
        return DataError(
            f"proposals must be of the images in the data set, but are not: {what}.",
            where=", ".join(str(source.path) for source in self.sources),
            fix=_FIX,
        )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise DataError(
            f"a file of proposals must be there and readable, but is not: {error.strerror}.",
            where=str(path),
            fix="univip proposals import /path/to/proposals.json data.root=...",
        ) from error


def _kind_of(path: Path) -> str:
    with _opened(path) as file:
        head = file.read(4096).lstrip()
    for start, kind in ((b"{", ORL), (b"\x80", PICKLE), (b"[", DETECTIONS)):
        if head.startswith(start):
            return kind
    packed = head.startswith((b"\x1f\x8b", b"PK", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    raise DataError(
        'a file of proposals must be ORL\'s `{"bbox": ...}`, a pickle of boxes, or a list of detections, '
        f"but is {'packed' if packed else 'none of them'}.",
        where=str(path),
        fix="unpack it first"
        if packed
        else 'univip proposals import FILE with {"bbox": [[[x, y, w, h], ...], ...]}',
    )
