"""Which photographs a run uses: ids, paths and sizes, from COCO annotations or from a plain folder.

Standard library only (Pillow where a folder is scanned): `univip submit` scans on the login node, names the
run after the fingerprint, and must not wait for NumPy or Arrow. The fingerprint of COCO annotations covers
ids, file names and sizes but neither the root nor the folders below it; that of a folder covers the relative
path and the length in bytes of every photograph. So a data set that was moved is still the same data set,
and a folder of a million files has its name after listing it, long before a million headers are read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from univip.config import DataConfig, DataFormat
from univip.data.json_stream import JsonStream
from univip.errors import ConfigError, DataError, ImageError, override

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})

# Headers come one round trip at a time from a network file system; threads overlap the waiting.
_HEADER_THREADS = 16


class Row(NamedTuple):
    """One usable photograph; `path` is relative to `data.root`, in POSIX form."""

    id: int
    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Scan:
    """The photographs of a run.

    Attributes:
        rows: In the order of the annotation file, or sorted by path for a folder.
        refused: Relative paths of images that are left out, by one of `univip.data.decode.REASONS`.
        fingerprint: SHA-256 (hex): of COCO, over ids, file names and sizes of `rows` in order; of a folder,
            over paths and lengths of its photographs, usable or not.
        exif: Whether sizes and pixels follow the EXIF orientation (folders) or the file as it lies (COCO).
        num_listed: Photographs of a folder, if only some of them were looked at; else 0.
    """

    rows: list[Row]
    refused: dict[str, list[str]]
    fingerprint: str
    exif: bool
    num_listed: int = 0

    @property
    def num_images(self) -> int:
        """Usable photographs; of a folder that was only listed, all of them."""
        return self.num_listed or len(self.rows)

    @property
    def pixels(self) -> float:
        """Of all images together; of a folder that was only listed, about."""
        seen = float(sum(row.width * row.height for row in self.rows))
        return seen * self.num_images / len(self.rows)

    @property
    def layout(self) -> str:
        """SHA-256 (hex) over the paths: of equal fingerprints, which folders the files lie in."""
        if self.exif:  # of a folder the fingerprint covers them
            return self.fingerprint
        return hashlib.sha256("\n".join(row.path for row in self.rows).encode()).hexdigest()


def scan(config: DataConfig, *, most_headers: int = 0) -> Scan:
    """List the photographs that `config` asks for.

    Args:
        config: Where they are.
        most_headers: Of a larger folder, read the headers of only so many files, evenly spaced; 0 = of all.

    Raises:
        ConfigError: If `data.split` is not a name or a list of names.
        DataError: If the root, the annotations or every photograph cannot be used.
    """
    root = Path(config.root)
    if not root.is_dir():
        above = next(folder for folder in root.parents if folder.is_dir())
        raise DataError(
            f"`data.root` must be an existing folder, but `{root}` is not.",
            where=f"`{above}` is the nearest folder that exists",
            fix="univip submit ... data.root=/path/to/photographs",
        )
    rows: list[Row] = []
    refused: dict[str, list[str]] = {}
    paths: dict[int, str] = {}
    is_folder = config.format == DataFormat.folder
    files, num_listed = _files(root, config) if is_folder else [], 0
    looked_at = [path for path, _ in files]
    if 0 < most_headers < len(files):
        num_listed = len(files)
        looked_at = [files[number * num_listed // most_headers][0] for number in range(most_headers)]
    found = _read_headers(root, looked_at, config) if is_folder else _scan_coco(root, config)
    for row, reason in islice(found, config.max_images or None):
        if reason:
            refused.setdefault(reason, []).append(row.path)
            continue
        if row.id in paths:
            raise DataError(
                f"image ids must be unique over all splits, but {row.id} is there twice.",
                where=f"{root}: {paths[row.id]} and {row.path}",
                fix="data.split=NAME of one split, or of several that do not overlap",
            )
        paths[row.id] = row.path
        rows.append(row)
    if not rows:
        counts = ", ".join(f"{len(names)} {reason}" for reason, names in refused.items()) or "none at all"
        first = ", ".join(names[0] for names in refused.values())
        limit = f"data.max_pixels=N with N above {config.max_pixels}"
        raise DataError(
            f"the data set must hold at least one usable photograph, but has {counts}.",
            where=f"{root}{first and f', such as {first}'}",
            fix=limit if set(refused) == {"too_large"} else "data.root=/path/to/photographs",
        )
    name = listing_fingerprint(files) if is_folder else fingerprint(rows)
    return Scan(rows, refused, name, exif=is_folder, num_listed=num_listed)


def listed(config: DataConfig) -> Iterator[tuple[Row, str]]:
    """Every photograph of the splits or the folder in order, with the reason where one cannot be used.

    `data.max_images` does not cut the list: position i is image i of the annotation files, which is how a
    file that names no images means them.
    """
    return _listed(replace(config, max_images=0))


def _listed(config: DataConfig) -> Iterator[tuple[Row, str]]:
    root = Path(config.root)
    if config.format == DataFormat.folder:
        return _read_headers(root, [path for path, _ in _files(root, config)], config)
    return _scan_coco(root, config)


def listing_fingerprint(files: Iterable[tuple[str, int]]) -> str:
    """SHA-256 (hex) over paths and lengths in bytes, in order."""
    digest = hashlib.sha256()
    for path, length in files:
        digest.update(f"{path}\0{length}\n".encode())
    return digest.hexdigest()


def fingerprint(rows: Iterable[Row]) -> str:
    """SHA-256 (hex) over ids, file names without their folders, and sizes, in order."""
    digest = hashlib.sha256()
    for row in rows:
        name = row.path.rpartition("/")[2]
        digest.update(f"{row.id}\0{name}\0{row.width}\0{row.height}\n".encode())
    return digest.hexdigest()


def path_id(path: str) -> int:
    """Image id of a file in a folder: the first 63 bits of SHA-256 of its relative path."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def _read_headers(root: Path, paths: Iterable[str], config: DataConfig) -> Iterator[tuple[Row, str]]:
    """Rows of photographs of a folder, with the reason where one cannot be used."""
    from univip.data.decode import read_size

    def read(path: str) -> tuple[Row, str]:
        try:
            width, height = read_size(root / path, exif=True, max_pixels=config.max_pixels)
        except ImageError as error:
            return Row(0, path, 0, 0), error.reason
        return Row(path_id(path), path, width, height), ""

    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        yield from pool.map(read, paths)


def _files(root: Path, config: DataConfig) -> list[tuple[str, int]]:
    """Relative paths and lengths in bytes of the photographs of a folder, sorted."""
    return sorted(_photographs(str(root)))[: config.max_images or None]


def _photographs(root: str) -> Iterator[tuple[str, int]]:
    """Relative path and length in bytes of all photographs; follows links, each real folder once."""
    seen: set[str] = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        real = os.path.realpath(f"{root}/{folder}")
        if real in seen:
            continue
        seen.add(real)
        inner = []
        try:
            entries = list(os.scandir(f"{root}/{folder}"))
        except PermissionError:  # the `lost+found` of a disk is nobody's data
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            relative = folder + entry.name
            if entry.is_dir():
                inner.append(f"{relative}/")
            elif os.path.splitext(entry.name)[1].lower() in PHOTO_SUFFIXES:  # noqa: PTH122 - a million times
                yield _checked(relative, root), _length(entry)
        # In order, so that of two links to one folder the same one counts on every machine.
        folders += sorted(inner, reverse=True)


def _checked(relative: str, root: str) -> str:
    try:
        relative.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "file names must be UTF-8, but one is not.",
            where=os.fsencode(f"{root}/{relative}").decode(errors="backslashreplace"),
            fix="rename it",
        ) from error
    return relative


def _length(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nowhere: reading its header will say so
        return 0


def _scan_coco(root: Path, config: DataConfig) -> Iterator[tuple[Row, str]]:
    """Rows of the `images` of every split, with the reason where one cannot be used."""
    from univip.data.decode import refuses_size

    for split in split_names(config.split):
        annotations = annotation_file(root, split)
        rows = [_coco_row(entry, number, annotations) for number, entry in enumerate(_images_of(annotations))]
        if not rows:
            raise DataError(
                f"split `{split}` must hold images, but its `images` is empty.",
                where=str(annotations),
                fix="data.split=NAME of another split, or data=folder for photographs without annotations",
            )
        folder = _image_folder(root, split, rows)
        for row in rows:
            is_too_large = refuses_size(row.width, row.height, max_pixels=config.max_pixels)
            path = (PurePosixPath(folder) / row.path).as_posix()
            yield row._replace(path=path), "too_large" if is_too_large else ""


def split_names(split: Any) -> list[str]:
    """`data.split` as a list of names."""
    names = [split] if isinstance(split, str) else list(split)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f"`data.split` must be a split or a list of splits, but is {split!r}.", fix="data.split=train2017"
        )
    return names


def annotation_file(root: Path, split: str, *, key: str = "data.split") -> Path:
    """The JSON file that lists the images of a split.

    Raises:
        DataError: If there is none, naming `key` as the option to change.
    """
    folders = [root / "annotations", root]
    for folder in folders:
        for name in (f"instances_{split}.json", f"image_info_{split}.json"):
            if (folder / name).is_file():
                return folder / name
    there = sorted(path.relative_to(root).as_posix() for folder in folders for path in folder.glob("*.json"))
    splits = [match[1] for path in there if (match := _ANNOTATIONS.fullmatch(path))]
    near = get_close_matches(split, splits, n=1, cutoff=0.0)
    if near:
        fix = override(key, near[0])
    elif (root.parent / "annotations").is_dir():  # the folder with the photographs was named
        fix = override("data.root", root.parent)
    else:
        fix = "data=folder  # needs no annotations"
    raise DataError(
        f"split `{split}` must have `instances_{split}.json` or `image_info_{split}.json`, but has neither.",
        where=f"{root} holds {', '.join(there[:10]) or 'no JSON file'}{' ...' * (len(there) > 10)}",
        fix=fix,
    )


def _images_of(path: Path) -> Iterator[Any]:
    """The elements of `images` in a COCO file.

    Nothing behind them is read: the annotations are most of the file (450 MB for COCO's training split) and
    no concern of the index.
    """
    try:
        with path.open("rb") as file:
            stream = JsonStream(file)
            for key in stream.fields() if stream.peek() == "{" else ():
                if key == "images" and stream.peek() == "[":
                    yield from stream.items()
                    return
                stream.skip()
    except ValueError as error:
        raise DataError(
            f"annotations must be JSON, but are not: {error}.", where=str(path), fix="fetch the file again"
        ) from error
    raise DataError(
        "annotations must be a COCO object with a list `images`, but are not.",
        where=str(path),
        fix="data=folder needs no annotations",
    )


_ANNOTATIONS = re.compile(r"(?:annotations/)?(?:instances|image_info)_(.*)\.json")


def _coco_row(entry: Any, number: int, annotations: Path) -> Row:
    """One element of `images`, checked; the path is still the bare `file_name`."""
    found: dict[str, Any] = entry if isinstance(entry, dict) else {}
    fields = ("id", "file_name", "width", "height")
    values: list[Any] = [found.get(field) for field in fields]
    image_id, name, width, height = values
    is_coco = (
        all(type(value) is int for value in (image_id, width, height))
        and 0 <= image_id < 2**63
        and min(width, height) > 0
        and isinstance(name, str)
        and not PurePosixPath(name).is_absolute()
        and ".." not in PurePosixPath(name).parts
    )
    if not is_coco:
        raise DataError(
            "every image must have whole numbers `id`, `width`, `height` and a relative `file_name`, "
            f"but one has {dict(zip(fields, values, strict=True))}.",
            where=f"{annotations}, images[{number}]",
            fix="correct the annotations",
        )
    return Row(image_id, name, width, height)


def _image_folder(root: Path, split: str, rows: list[Row]) -> str:
    """The folder, relative to `root`, in which the images of a split lie: the first holding any."""
    folders = (split, f"images/{split}", "images", "")
    for row in rows:
        for folder in folders:
            if (root / folder / row.path).is_file():
                return folder
    raise DataError(
        f"split `{split}` must hold a photograph that exists, but none of {len(rows)} does.",
        where=", ".join(str(root / folder) for folder in folders),
        fix="data.root=/path/to/the/folder/above/annotations",
    )
