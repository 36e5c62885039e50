"""The proposals job: index the photographs, search them in shards, merge the boxes into one store.

    prepare ─▶ images.arrow ─▶ run_shard, once per shard ─▶ shards/*.arrow ─▶ merge ─▶ proposals.arrow

Every part may be run again at any time and does only what is missing.
"""

from __future__ import annotations

from pathlib import Path

from jobs.config import Config
from jobs.outcomes import write_json
from univip.config import SEARCH
from univip.data.images import ImageIndex, write_index
from univip.data.proposals import report_path
from univip.data.scan import scan
from univip.errors import ConfigError, DataError
from univip.observe import Observer
from univip.proposals.search import prepare_engine
from univip.proposals.shards import Report, ShardedSearch

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
    # For people, and for the command line, which reads no Arrow; like the report beside the boxes.
    report = {"images": len(found.rows), "failed": found.refused, "layout": found.layout}
    write_json(report_path(path), report)
    return ImageIndex.open(path)


def prepare_search(config: Config) -> None:
    """Compile the search once, rather than in every shard of the array at the same time."""
    prepare_engine(str(config.proposals.engine))


def num_shards(config: Config, run_dir: Path) -> int:
    """Number of shards of a prepared run."""
    return len(_search(config, run_dir).shards)


def run_shard(config: Config, run_dir: Path, shard: int, observer: Observer) -> Report:
    """Search the images of one shard of a prepared run; see `ShardedSearch.run`."""
    observer.record("shard", shard=shard, state="running")
    report = _search(config, run_dir).run(shard, observer)
    observer.record("shard", shard=shard, state="done")
    return report


def run_shards(config: Config, run_dir: Path, observer: Observer) -> None:
    """Search every shard, one after the other.

    Raises:
        DataError: If no image at all could be used. Found out here, so that the shards do not count as done:
            those without a usable image are searched again once the photographs are restored.
    """
    reports = [run_shard(config, run_dir, shard, observer) for shard in range(num_shards(config, run_dir))]
    _search(config, run_dir).refuse_useless(reports)


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
    return ShardedSearch(ImageIndex.open(run_dir / INDEX_NAME), config.data, config.proposals, run_dir)
