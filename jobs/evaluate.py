"""The evaluate job: what the frozen features of a run are worth, beside those of the untrained network.

Whole photographs, resized to the scene size (as ORL does for VOC07), go through the online backbone in
evaluation mode. Labelled data gets weighted nearest neighbours; any data gets the spread and effective rank
of its features. The result is reported whichever way it goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from jobs.config import Config, data_dir
from jobs.outcomes import write_json
from jobs.proposals import INDEX_NAME
from jobs.train import fresh_method
from univip.checkpoint import layout
from univip.checkpoint.manager import CheckpointManager
from univip.config import DataConfig, DataFormat, EvaluateConfig
from univip.data.augment import MEAN, STD
from univip.data.decode import decode
from univip.data.images import ImageIndex, write_index
from univip.data.scan import annotation_file, scan, split_names
from univip.errors import CheckpointError, ImageError
from univip.evaluation.knn import knn_scores, mean_average_precision, top1_accuracy
from univip.evaluation.labels import Labels, read_labels
from univip.evaluation.spectrum import effective_rank, feature_std
from univip.observe import Observer

RESULT = "evaluate.json"


def evaluate(config: Config, run_dir: Path, observer: Observer) -> None:
    """Evaluate the newest good checkpoint of a run and write `results/evaluate.json`.

    Raises:
        CheckpointError: If the run has none.
    """
    results = run_dir / "results"
    results.mkdir(mode=0o700, exist_ok=True)
    manager = CheckpointManager(run_dir / "checkpoints", observer=observer)
    found = manager.newest_good()
    if found is None:
        raise CheckpointError(
            "the run has no checkpoint to evaluate",
            where=str(manager.directory),
            fix=f"univip resume {run_dir.name}",
        )
    result = measure(config, run_dir, manager.path(found.data_step), observer)
    write_json(results / RESULT, result)
    observer.record("evaluate", data_step=found.data_step, **result)


def measure(config: Config, run_dir: Path, checkpoint: Path, observer: Observer) -> dict[str, Any]:
    """Metrics of the trained and of the untrained backbone on the same photographs.

    Returns:
        `trained` and `untrained`, each with `feature_std`, `effective_rank` and, where there are labels,
        `top1` (one class per image) or `mean_average_precision` (several); and what was measured on.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(config.train.threads or torch.get_num_threads())
    bank_index = ImageIndex.open(data_dir(run_dir) / INDEX_NAME)
    bank = Photographs(config.data, bank_index, config, observer)
    queries = _query_photographs(config, run_dir, observer)
    network = fresh_method(config, device).online
    backbone = network.get_submodule("backbone")
    untrained = _features(backbone, bank, queries, device)
    _load_backbone(backbone, checkpoint)
    trained = _features(backbone, bank, queries, device)

    bank_labels = _labels(config.data, bank, trained.bank_rows)
    query_labels = bank_labels if queries is None else _labels(queries.data, queries, trained.query_rows)
    manifest = layout.read_manifest(checkpoint)
    return {
        "protocol": "knn",
        "checkpoint_data_step": manifest.data_step,
        "split": split_names((queries or bank).data.split),
        "num_images": len(trained.query_rows),
        "num_classes": len(query_labels.names) if query_labels else 0,
        "neighbours": config.evaluate.neighbours,
        "trained": _metrics(trained, bank_labels, query_labels, config.evaluate),
        "untrained": _metrics(untrained, bank_labels, query_labels, config.evaluate),
    }


class Photographs:
    """Photographs of one index in batches, the unreadable ones reported and left out."""

    def __init__(self, data: DataConfig, index: ImageIndex, config: Config, observer: Observer) -> None:
        self.data = data
        self.index = index
        self.limit = min(config.evaluate.max_images or len(index), len(index))
        self._batch = config.evaluate.batch
        self._edge = config.views.scene_size
        self._observer = observer

    def batches(self) -> Iterator[tuple[list[int], Tensor]]:
        """Rows of the index and their pixels, uint8 [n, 3, S, S]."""
        rows: list[int] = []
        pixels: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
        for row in range(self.limit):
            path = self.index.path(row)
            try:
                photo = decode(
                    Path(self.data.root) / path, exif=self.index.exif, max_pixels=self.data.max_pixels
                )
            except ImageError as error:
                self._observer.record(
                    "image_failed", image_id=int(self.index.ids[row]), path=path, reason=error.reason
                )
                continue
            resized = PIL.Image.fromarray(photo).resize(
                (self._edge, self._edge), PIL.Image.Resampling.BICUBIC
            )
            rows.append(row)
            pixels.append(np.asarray(resized).transpose(2, 0, 1))
            if len(rows) == self._batch:
                yield rows, torch.from_numpy(np.stack(pixels))
                rows, pixels = [], []
        if rows:
            yield rows, torch.from_numpy(np.stack(pixels))


class Features:
    """Features of bank and queries with the rows of the photographs they belong to."""

    def __init__(self, bank: tuple[list[int], Tensor], queries: tuple[list[int], Tensor] | None) -> None:
        self.bank_rows, self.bank = bank
        self.query_rows, self.queries = queries or bank
        self.leave_one_out = queries is None


def _features(
    backbone: nn.Module, bank: Photographs, queries: Photographs | None, device: torch.device
) -> Features:
    backbone.eval()
    return Features(
        _forward(backbone, bank, device), None if queries is None else _forward(backbone, queries, device)
    )


@torch.no_grad()
def _forward(backbone: nn.Module, photographs: Photographs, device: torch.device) -> tuple[list[int], Tensor]:
    mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(STD, device=device).view(3, 1, 1)
    rows: list[int] = []
    features: list[Tensor] = []
    for batch_rows, pixels in photographs.batches():
        rows += batch_rows
        features.append(backbone((pixels.to(device).float() / 255 - mean) / std).float().cpu())
    return rows, torch.cat(features)


def _query_photographs(config: Config, run_dir: Path, observer: Observer) -> Photographs | None:
    if not config.evaluate.split:
        return None
    data = replace(config.data, split=config.evaluate.split)
    path = run_dir / "results" / "queries.arrow"
    write_index(scan(data), path)
    return Photographs(data, ImageIndex.open(path), config, observer)


def _labels(data: DataConfig, photographs: Photographs, rows: list[int]) -> Labels | None:
    """Labels from the annotations; None for a plain folder or a split that has none."""
    if data.format is not DataFormat.coco:
        return None
    files = [annotation_file(Path(data.root), split) for split in split_names(data.split)]
    if any(file.name.startswith("image_info_") for file in files):
        return None
    return read_labels(files, [int(photographs.index.ids[row]) for row in rows])


def _load_backbone(backbone: nn.Module, checkpoint: Path) -> None:
    prefix = "online.backbone."
    tensors = load_file(str(checkpoint / layout.TENSORS))
    backbone.load_state_dict(
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    )


def _metrics(
    features: Features, bank_labels: Labels | None, query_labels: Labels | None, config: EvaluateConfig
) -> dict[str, float]:
    metrics = {
        "feature_std": float(feature_std(features.queries)),
        "effective_rank": effective_rank(features.queries),
    }
    if bank_labels is None or query_labels is None:
        return metrics
    scores = knn_scores(
        features.queries,
        features.bank,
        bank_labels.positive,
        neighbours=config.neighbours,
        temperature=config.temperature,
        leave_one_out=features.leave_one_out,
    )
    if bool((query_labels.positive.sum(dim=1) == 1).all()):
        metrics["top1"] = top1_accuracy(scores, query_labels.positive)
    average = mean_average_precision(scores, query_labels.positive, query_labels.known)
    if not math.isnan(average):
        metrics["mean_average_precision"] = average
    return metrics
