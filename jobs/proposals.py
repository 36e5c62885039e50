"""The proposals job: index the photographs, search them in shards, merge the boxes into one store.

    prepare ─▶ images.arrow ─▶ run_shard, once per shard ─▶ shards/*.arrow ─▶ merge ─▶ proposals.arrow

Every part may be run again at any time and does only what is missing.
"""

from __future__ import annotations

from pathlib import Path

import PIL.Image

from jobs.config import Config
from univip.data.decode import decode
from univip.data.images import ImageIndex, write_index
from univip.data.proposals import ProposalStore
from univip.data.scan import scan
from univip.errors import DataError
from univip.observe import Observer
from univip.proposals.picture import draw
from univip.proposals.shards import STORE_NAME, Report, ShardedSearch

INDEX_NAME = "images.arrow"


def prepare(config: Config, run_dir: Path, *, expected_fingerprint: str = "") -> ImageIndex:
    """Index the photographs, or check that they are still the ones that were indexed.

    Args:
        config: The run's configuration.
        run_dir: Where the index is written.
        expected_fingerprint: Of the data set the run was made for; empty accepts any in a new run.

    Raises:
        DataError: If the photographs cannot be used or are no longer those of this run.
    """
    path = run_dir / INDEX_NAME
    if path.exists() and not expected_fingerprint:
        expected_fingerprint = ImageIndex.open(path).fingerprint
    found = scan(config.data)
    if expected_fingerprint and found.fingerprint != expected_fingerprint:
        raise DataError(
            f"the photographs must be those the run was made for ({expected_fingerprint[:12]}), "
            f"but ids, names or sizes have changed ({found.fingerprint[:12]}).",
            where=f"{config.data.root}, {run_dir}",
            fix="restore the data set, or submit again: other photographs are another run",
        )
    write_index(found, path)
    return ImageIndex.open(path)


def num_shards(config: Config, run_dir: Path) -> int:
    """Number of shards of a prepared run."""
    return len(_search(config, run_dir).shards)


def run_shard(config: Config, run_dir: Path, shard: int, observer: Observer) -> Report:
    """Search the images of one shard of a prepared run; see `ShardedSearch.run`."""
    return _search(config, run_dir).run(shard, observer)


def merge(config: Config, run_dir: Path) -> Report:
    """Join the finished shards to `proposals.arrow`; see `ShardedSearch.merge`."""
    return _search(config, run_dir).merge()


def save_picture(config: Config, run_dir: Path, image_id: int, path: Path) -> None:
    """Write a picture of one image and its filtered boxes; the suffix of `path` decides the format.

    Raises:
        DataError: If the run has no such image, or it cannot be decoded.
    """
    index, store = ImageIndex.open(run_dir / INDEX_NAME), ProposalStore.open(run_dir / STORE_NAME)
    row = index.row(image_id)
    image = decode(
        Path(config.data.root) / index.path(row), exif=index.exif, max_pixels=config.data.max_pixels
    )
    lists = {f"at least {size} px": store.filtered(image_id, size) for size in store.min_sizes}
    caption = f"{index.path(row)}: {len(store[image_id])} boxes found"
    PIL.Image.fromarray(draw(image, lists, caption=caption)).save(path)


def _search(config: Config, run_dir: Path) -> ShardedSearch:
    return ShardedSearch(ImageIndex.open(run_dir / INDEX_NAME), config.data, config.proposals, run_dir)
