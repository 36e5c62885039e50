"""The evaluate job: what the frozen features of a run are worth, beside those of the untrained network.

Whole photographs, resized to the scene size (as ORL does for VOC07), go through the online backbone in
evaluation mode. Labelled data gets weighted nearest neighbours; any data gets the spread and effective rank
of its features. The result is reported whichever way it goes.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from jobs.config import INDEX_NAME, Config, data_dir
from jobs.outcomes import write_json
from jobs.train import fresh_method
from univip.checkpoint import layout
from univip.checkpoint.manager import CheckpointManager
from univip.config import DataConfig, DataFormat, EvaluateConfig
from univip.data.augment import MEAN, STD
from univip.data.decode import decode
from univip.data.images import ImageIndex, write_index
from univip.data.scan import annotation_file, scan, split_names
from univip.errors import CheckpointError, DataError, ImageError
from univip.evaluation.knn import knn_scores, mean_average_precision, top1_accuracy
from univip.evaluation.labels import Labels, read_labels
from univip.evaluation.spectrum import effective_rank, feature_std
from univip.models.norm import commit_statistics
from univip.observe import NullObserver, Observer

RESULT = "evaluate.json"
CALIBRATION_BATCHES = 32  # the running statistics weigh the newest batches most; more would be forgotten


def evaluate(config: Config, run_dir: Path, observer: Observer) -> None:
    """Evaluate the newest good checkpoint of a run and write `results/evaluate.json`.

    Raises:
        CheckpointError: If the run has none.
    """
    results = run_dir / "results"
    results.mkdir(exist_ok=True)
    manager = CheckpointManager(run_dir / "checkpoints", observer=observer)
    found = manager.newest_good()
    if found is None:
        raise CheckpointError(
            "the run has no checkpoint to evaluate",
            where=str(manager.directory),
            fix=f"univip resume {shlex.quote(str(run_dir))}",
        )
    result = measure(config, run_dir, manager.path(found.data_step), observer)
    write_json(results / RESULT, result)
    observer.record("evaluate", data_step=found.data_step, **result)


def measure(config: Config, run_dir: Path, checkpoint: Path, observer: Observer) -> dict[str, Any]:
    """Metrics of the trained and of the untrained backbone on the same photographs.

    The untrained network gets the normalisation statistics of some of the photographs first: with those it
    was made with, it would be a weaker opponent than a random network is.

    Returns:
        `trained` and `untrained`, each with `feature_std`, `effective_rank` and, where there are labels,
        `mean_average_precision` and, with one class per image, `top1`; and what was measured on.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(config.train.threads or torch.get_num_threads())
    index = ImageIndex.open(data_dir(run_dir) / INDEX_NAME)
    bank = Photographs(config.data, index, config, observer)
    queries = _query_photographs(config, run_dir, observer)
    untrained = fresh_method(config, device).online.get_submodule("backbone")
    trained = fresh_method(config, device).online.get_submodule("backbone")
    _load_backbone(trained, checkpoint)
    _calibrate(untrained, Photographs(config.data, index, config, NullObserver()), device)

    bank_rows, bank_features = _features([trained, untrained], bank, device)
    bank_labels = _labels(config.data, bank, bank_rows)
    if queries is None:
        rows, features, labels = bank_rows, bank_features, bank_labels
    else:
        rows, features = _features([trained, untrained], queries, device)
        labels = _labels(queries.data, queries, rows)
    metrics = [
        _metrics(query, reference, bank_labels, labels, config.evaluate, leave_one_out=queries is None)
        for query, reference in zip(features, bank_features, strict=True)
    ]
    measured = (queries or bank).data
    return {
        "protocol": "knn",
        "checkpoint_data_step": layout.read_manifest(checkpoint).data_step,
        "split": split_names(measured.split) if measured.format is DataFormat.coco else [],
        "num_images": len(rows),
        "num_classes": len(labels.names) if labels else 0,
        "neighbours": config.evaluate.neighbours,
        "trained": metrics[0],
        "untrained": metrics[1],
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


@torch.no_grad()
def _features(
    backbones: Sequence[nn.Module], photographs: Photographs, device: torch.device
) -> tuple[list[int], list[Tensor]]:
    """Rows of the readable photographs, and their features [N, D] by each backbone; reads every file once."""
    rows: list[int] = []
    features: list[list[Tensor]] = [[] for _ in backbones]
    for backbone in backbones:
        backbone.eval()
    for batch_rows, pixels in photographs.batches():
        rows += batch_rows
        images = _normalise(pixels, device)
        for backbone, column in zip(backbones, features, strict=True):
            column.append(backbone(images).float().cpu())
    if not rows:
        raise DataError(
            "no photograph of the split can be read.", where=photographs.data.root, fix="restore them"
        )
    return rows, [torch.cat(column) for column in features]


@torch.no_grad()
def _calibrate(backbone: nn.Module, photographs: Photographs, device: torch.device) -> None:
    backbone.train()
    for _, pixels in itertools.islice(photographs.batches(), CALIBRATION_BATCHES):
        backbone(_normalise(pixels, device))
        commit_statistics(backbone)


def _normalise(pixels: Tensor, device: torch.device) -> Tensor:
    mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(STD, device=device).view(3, 1, 1)
    return (pixels.to(device).float() / 255 - mean) / std


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
    queries: Tensor,
    bank: Tensor,
    bank_labels: Labels | None,
    labels: Labels | None,
    config: EvaluateConfig,
    *,
    leave_one_out: bool,
) -> dict[str, float]:
    metrics = {"feature_std": float(feature_std(queries)), "effective_rank": effective_rank(queries)}
    if bank_labels is None or labels is None:
        return metrics
    scores = knn_scores(
        queries,
        bank,
        bank_labels.positive,
        neighbours=config.neighbours,
        temperature=config.temperature,
        leave_one_out=leave_one_out,
    )
    if bool((labels.positive.sum(dim=1) == 1).all()):
        metrics["top1"] = top1_accuracy(scores, labels.positive)
    average = mean_average_precision(scores, labels.positive, labels.known)
    if not math.isnan(average):
        metrics["mean_average_precision"] = average
    return metrics
