"""A picture of one image of a run and its boxes, as training will take them."""

from __future__ import annotations

from pathlib import Path

import PIL.Image

from jobs.config import data_dir, load
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
    if not (files / STORE_NAME).exists():
        raise ConfigError(
            f"run `{run_dir.name}` must have boxes to show, but has none yet.",
            where=str(files),
            fix=f"univip resume {run_dir.name}",
        )
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
