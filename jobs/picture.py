"""Pictures for a person who wants to look first: the boxes of an image, or a sample as the method sees it."""

from __future__ import annotations

import shlex
from pathlib import Path

import PIL.Image

from jobs.config import INDEX_NAME, RunKind, data_dir, load, load_header
from univip.data.decode import decode
from univip.data.draws import SampleKey
from univip.data.images import ImageIndex
from univip.data.proposals import STORE_NAME, ProposalStore
from univip.data.views import sample_views
from univip.errors import ConfigError
from univip.proposals.picture import draw


def write_picture(run_dir: Path, image: str, output: Path | None, *, epoch: int = 0) -> Path:
    """Draw the boxes of one image: the lists, what was dropped, and one sample.

    Args:
        run_dir: A proposals run, or a run that uses one.
        image: An image id, a file name, or `#ROW` of the index.
        output: The PNG file; None names it after the image, in the current folder.
        epoch: Of the sample, counted from 0.

    Returns:
        The file.

    Raises:
        ConfigError: If the run has no such image, or no boxes yet.
        ImageError: If the image cannot be decoded.
    """
    files = data_dir(run_dir)
    refuse_missing(files / STORE_NAME, run_dir, "boxes")
    config, index, store = (
        load(run_dir),
        ImageIndex.open(files / INDEX_NAME),
        ProposalStore.open(files / STORE_NAME),
    )
    row = _row(index, image)
    image_id = int(index.ids[row])
    width, height = index.sizes[row].tolist()
    photograph = decode(
        Path(config.data.root) / index.path(row),
        exif=index.exif,
        max_pixels=config.data.max_pixels,
        size=(width, height),
    )
    lists = {size: store.filtered(image_id, size) for size in store.min_sizes}
    boxes = config.proposals
    views = sample_views(
        (width, height),
        lists,
        key=SampleKey(config.train.seed, epoch, image_id),
        views=config.views,
        max_ratio=boxes.max_ratio,
        max_iou=boxes.max_iou,
    )
    raw = store[image_id]
    caption = (
        f"{index.path(row)}   id {image_id}, {width} x {height} px, {len(raw):,} raw boxes; "
        f"sample of epoch {epoch}, seed {config.train.seed}"
    )
    picture = draw(photograph, raw, lists, views, max_ratio=boxes.max_ratio, caption=caption)
    path = output or Path(f"{image_id}.png")
    PIL.Image.fromarray(picture).save(path)
    return path


def write_sample(run_dir: Path, image: str, output: Path | None, *, epoch: int) -> Path:
    """Draw the sample that a training run makes of one image in one epoch.

    Args:
        run_dir: A training run.
        image: An image id, a file name, or `#ROW` of the index.
        output: The PNG file; None names it after image and epoch, in the current folder.
        epoch: Counted from 0.

    Returns:
        The file.

    Raises:
        ConfigError: If the run trains nothing, has no such image, or no index or boxes yet.
        DataError: If neither the image nor a substitute can be read.
    """
    from jobs.reader import make_reader  # loads torch, which boxes need not
    from univip.data.picture import draw_sample

    header, files = load_header(run_dir), data_dir(run_dir)
    if header.kind is not RunKind.train:
        raise ConfigError(
            f"run `{run_dir.name}` must be a training run to show a sample, but only makes boxes.",
            where=str(run_dir),
            fix=f"univip proposals show {shlex.quote(image)} {shlex.quote(str(run_dir))}",
        )
    if header.proposals:
        refuse_missing(files / STORE_NAME, run_dir, "boxes")
    refuse_missing(files / INDEX_NAME, run_dir, "an index")
    reader = make_reader(load(run_dir), run_dir)
    row = _row(reader.index, image)
    path = output or Path(f"{int(reader.index.ids[row])}-epoch-{epoch}.png")
    PIL.Image.fromarray(draw_sample(reader, epoch, row)).save(path)
    return path


def refuse_missing(path: Path, run_dir: Path, what: str) -> None:
    """Refuse to look at a run before the file is there that is to be looked at."""
    if not path.exists():
        raise ConfigError(
            f"run `{run_dir.name}` must have {what} to show, but has none yet.",
            where=str(path.parent),
            fix=f"univip resume {shlex.quote(str(run_dir))}",
        )


def _row(index: ImageIndex, image: str) -> int:
    """Row of an image by `#ROW`, id or file name."""
    row = image.removeprefix("#")
    if image.startswith("#") and row.isdecimal() and int(row) < len(index):
        return int(row)
    if image.isdecimal() and int(image) in index.ids:
        return index.row(int(image))
    found = index.rows_of(image)
    if len(found) == 1:
        return found[0]
    if found:
        paths = [index.path(row) for row in found[:3]]
        raise ConfigError(
            f"the image must be one of the run, but {len(found)} are named `{image}`: {', '.join(paths)}.",
            fix=paths[0],
        )
    raise ConfigError(
        "the image must be an id of the run, the name of a file, "
        f"or one of #0 to #{len(index) - 1}, but is `{image}`.",
        fix=f"{int(index.ids[0])}, {index.path(0)}, or '#0'",
    )
