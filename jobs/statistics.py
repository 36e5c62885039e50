"""Figures of the boxes of a run, and their plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image

from jobs.config import INDEX_NAME, data_dir, load
from jobs.picture import refuse_missing
from univip.config import MinSizePolicy
from univip.data.images import ImageIndex
from univip.data.proposals import STORE_NAME, ProposalStore
from univip.proposals.plot import draw_statistics
from univip.proposals.statistics import measure


def box_statistics(run_dir: Path, plot: Path | None) -> dict[str, Any]:
    """Measure the boxes of a run; see `univip.proposals.statistics`.

    Args:
        run_dir: A proposals run, or a run that uses one.
        plot: PNG file to write; None writes none.

    Returns:
        JSON values.

    Raises:
        ConfigError: If the run has no boxes yet.
        DataError: If the store is damaged.
    """
    files = data_dir(run_dir)
    refuse_missing(files / STORE_NAME, run_dir, "boxes")
    config = load(run_dir)
    ProposalStore.verify(files / STORE_NAME)
    index, store = ImageIndex.open(files / INDEX_NAME), ProposalStore.open(files / STORE_NAME)
    found = measure(index, store, config.views, config.proposals, seed=config.train.seed)
    if plot is not None:
        phases = len(store.min_sizes) if config.views.min_size_policy is MinSizePolicy.two_phase else 1
        title = (
            f"{run_dir.name}: {len(index):,} images, search mode {store.provenance.get('mode', 'unknown')}"
        )
        picture = draw_statistics(found, title=title, max_trials=config.views.trials * phases)
        PIL.Image.fromarray(picture).save(plot)
    return {"run": run_dir.name, **found.to_json()}
