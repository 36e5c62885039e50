"""The proposals job: index the photographs, search them in shards, merge the boxes into one store.

    prepare ─▶ images.arrow ─▶ run_shard, once per shard ─▶ shards/*.arrow ─▶ merge ─▶ proposals.arrow

Every part may be run again at any time and does only what is missing.
"""

from __future__ import annotations

from pathlib import Path

from jobs.config import INDEX_NAME, Config
from jobs.outcomes import read_json, write_json
from univip.config import SEARCH
from univip.data.images import ImageIndex, write_index
from univip.data.proposals import report_path
from univip.data.scan import scan
from univip.errors import ConfigError, DataError
from univip.observe import Observer
from univip.proposals import pool
from univip.proposals.shards import Report, ShardedSearch, make_borders


def prepare(
    config: Config, run_dir: Path, *, expected_fingerprint: str = "", num_shards: int = 0
) -> ImageIndex:
    """Index the photographs and cut them into shards, or check that they are still those of the index.

    Args:
        config: The run's configuration.
        run_dir: Where the index is written.
        expected_fingerprint: Of the data set the run was made for; empty accepts any in a new run.
        num_shards: How many, in a new run; 0 = as many as this machine makes of the work.

    Raises:
        DataError: If the photographs cannot be used or are no longer those of this run.
    """
    path = run_dir / INDEX_NAME
    before = ImageIndex.open(path) if path.exists() else None
    if before and not expected_fingerprint:
        expected_fingerprint = before.fingerprint
    found = scan(config.data)
    if expected_fingerprint and found.fingerprint != expected_fingerprint:
        raise DataError(
            f"the photographs must be those the run was made for ({expected_fingerprint[:12]}), "
            f"but ids, names or sizes have changed ({found.fingerprint[:12]}).",
            where=f"{config.data.root}, {run_dir}",
            fix="restore the data set, or submit again: other photographs are another run",
        )
    if before and before.ids.tolist() != [row.id for row in found.rows]:
        raise DataError(
            f"the {len(before)} photographs that could be read at first must be readable, and only they, "
            f"but {len(found.rows)} are.",
            where=f"{config.data.root}, {path}",
            fix=f"restore them, or remove {run_dir} to begin again with those that are readable now",
        )
    write_index(found, path)
    index = ImageIndex.open(path)
    borders = _borders(run_dir, len(index)) or make_borders(index, config.proposals, num_shards)
    # For people, and for the command line, which reads no Arrow; like the report beside the boxes.
    report = {
        "images": len(found.rows),
        "failed": found.refused,
        "layout": found.layout,
        "shards": borders,
    }
    write_json(report_path(path), report)
    return index


def prepare_search(config: Config) -> None:
    """Compile the search once, rather than in every shard of the array at the same time."""
    pool.load(str(config.proposals.engine))


def num_shards(config: Config, run_dir: Path) -> int:
    """Number of shards of a prepared run."""
    return len(_search(config, run_dir).shards)


def run_shard(config: Config, run_dir: Path, shard: int, observer: Observer) -> Report:
    """Search the images of one shard of a prepared run; see `ShardedSearch.run`."""
    return _run_shard(_search(config, run_dir), shard, observer)


def run_shards(config: Config, run_dir: Path, observer: Observer) -> None:
    """Search every shard, one after the other.

    Raises:
        DataError: If no image at all could be used. Found out here, so that the shards do not count as done:
            those without a usable image are searched again once the photographs are restored.
    """
    search = _search(config, run_dir)
    reports = [_run_shard(search, shard, observer) for shard in range(len(search.shards))]
    search.refuse_useless(reports)


def merge(config: Config, run_dir: Path) -> Report:
    """Join the finished shards to `proposals.arrow`; see `ShardedSearch.merge`."""
    return _search(config, run_dir).merge()


def _search(config: Config, run_dir: Path) -> ShardedSearch:
    if config.proposals.source != SEARCH:
        raise ConfigError(
            f"the boxes of `{run_dir.name}` must be imported and not searched, but are not there.",
            where=str(run_dir),
            fix=f"univip proposals import FILE data.root={config.data.root}",
        )
    index = ImageIndex.open(run_dir / INDEX_NAME)
    return ShardedSearch(index, config.data, config.proposals, run_dir, _borders(run_dir, len(index)))


def _run_shard(search: ShardedSearch, shard: int, observer: Observer) -> Report:
    observer.record("shard", shard=shard, state="running")
    report = search.run(shard, observer)
    observer.record("shard", shard=shard, state="done")
    return report


def _borders(run_dir: Path, num_images: int) -> list[int] | None:
    """How the images of a run were cut into shards; None if they were not."""
    document = read_json(report_path(run_dir / INDEX_NAME)) or {}
    borders: list[int] | None = document.get("shards")
    return borders if borders and borders[-1] == num_images else None
