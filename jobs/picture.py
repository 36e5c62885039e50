"""Pictures for a person who wants to look first: the boxes of an image, or a sample as the method sees it."""

from __future__ import annotations

from pathlib import Path

import PIL.Image

from jobs.config import RunKind, data_dir, load, load_header
from jobs.proposals import INDEX_NAME
from univip.data.decode import decode
from univip.data.images import ImageIndex
from univip.data.proposals import ProposalStore
from univip.errors import ConfigError
from univip.proposals.picture import draw
from univip.proposals.shards import STORE_NAME


def write_picture(run_dir: Path, image: str, output: Path | None) -> Path:
    """Draw every filtered list of one image.

    Args:
        run_dir: A proposals run, or a run that uses one.
        image: An image id, or `#ROW` of the index.
        output: The PNG file; None names it after the image, in the current folder.

    Returns:
        The file.

    Raises:
        ConfigError: If the run has no such image, or no boxes yet.
        ImageError: If the image cannot be decoded.
    """
    files = data_dir(run_dir)
    _refuse_missing(files / STORE_NAME, run_dir, "boxes")
    config, index, store = (
        load(run_dir),
        ImageIndex.open(files / INDEX_NAME),
        ProposalStore.open(files / STORE_NAME),
    )
    row = _row(index, image)
    image_id = int(index.ids[row])
    photograph = decode(
        Path(config.data.root) / index.path(row), exif=index.exif, max_pixels=config.data.max_pixels
    )
    lists = {f"at least {size} px": store.filtered(image_id, size) for size in store.min_sizes}
    picture = draw(photograph, lists, caption=f"{index.path(row)}: {len(store[image_id])} raw boxes")
    path = output or Path(f"{image_id}.png")
    PIL.Image.fromarray(picture).save(path)
    return path


def write_sample(run_dir: Path, image: str, output: Path | None, *, epoch: int) -> Path:
    """Draw the sample that a training run makes of one image in one epoch.

    Args:
        run_dir: A training run.
        image: An image id, or `#ROW` of the index.
        output: The PNG file; None names it after image and epoch, in the current folder.
        epoch: Counted from 0.

    Returns:
        The file.

    Raises:
        ConfigError: If the run trains nothing, has no such image, or no index or boxes yet.
        DataError: If neither the image nor a substitute can be read.
    """
    from jobs.train import make_reader  # loads torch, which boxes need not
    from univip.data.picture import draw_sample

    header, files = load_header(run_dir), data_dir(run_dir)
    if header.kind is not RunKind.train:
        raise ConfigError(
            f"run `{run_dir.name}` must be a training run to show a sample, but only makes boxes.",
            where=str(run_dir),
            fix=f"univip proposals show {run_dir.name} '{image}'",
        )
    if header.proposals:
        _refuse_missing(files / STORE_NAME, run_dir, "boxes")
    _refuse_missing(files / INDEX_NAME, run_dir, "an index")
    reader = make_reader(load(run_dir), run_dir)
    row = _row(reader.index, image)
    path = output or Path(f"{int(reader.index.ids[row])}-epoch-{epoch}.png")
    PIL.Image.fromarray(draw_sample(reader, epoch, row)).save(path)
    return path


def _refuse_missing(path: Path, run_dir: Path, what: str) -> None:
    if not path.exists():
        raise ConfigError(
            f"run `{run_dir.name}` must have {what} to show, but has none yet.",
            where=str(path.parent),
            fix=f"univip resume {run_dir.name}",
        )


def _row(index: ImageIndex, image: str) -> int:
    number = image.removeprefix("#")
    if number.isdecimal():
        if image.startswith("#") and int(number) < len(index):
            return int(number)
        if not image.startswith("#") and int(number) in index.ids:
            return index.row(int(number))
    raise ConfigError(
        f"the image must be an id of the run or one of #0 to #{len(index) - 1}, but is `{image}`.",
        fix=f"{int(index.ids[0])}, or '#0'",
    )
