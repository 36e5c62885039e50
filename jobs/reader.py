"""What makes the samples of a run: photographs, boxes, geometry and seed, from its directory.

Without the method, its backbones and the search, which take seconds to load.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jobs.config import INDEX_NAME, Config, data_dir, load_header
from univip.config import MethodName, ViewsConfig
from univip.data.images import ImageIndex
from univip.data.proposals import STORE_NAME, ProposalStore
from univip.data.samples import SampleReader
from univip.errors import DataError


def make_reader(config: Config, run_dir: Path) -> SampleReader:
    """Makes the samples of a run.

    Raises:
        DataError: If index or boxes are of other photographs.
    """
    files = data_dir(run_dir)
    index = ImageIndex.open(files / INDEX_NAME)
    is_byol = config.method.name is MethodName.byol
    store = None if is_byol else ProposalStore.open(files / STORE_NAME)
    for file in (index, store):
        if file is not None and file.fingerprint != load_header(run_dir).fingerprint:
            raise DataError(
                f"index and boxes must be of the photographs of run `{run_dir.name}`, but are not.",
                where=str(files),
                fix="univip submit pipeline ... with the same options makes the run of these photographs",
            )
    return SampleReader(
        data=config.data,
        index=index,
        store=store,
        views=views_of(config),
        proposals=config.proposals,
        seed=config.train.seed,
    )


def views_of(config: Config) -> ViewsConfig:
    """The view geometry of the method: BYOL has scenes only."""
    return replace(config.views, num_instances=0) if config.method.name is MethodName.byol else config.views
