"""The evaluate job on photographs whose classes a random network tells apart by colour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from jobs import proposals
from jobs.compose import compose
from jobs.config import Config, RunHeader, RunKind, store
from jobs.evaluate import evaluate
from jobs.train import fresh_method
from univip.checkpoint.manager import CheckpointManager, Origin
from univip.data.scan import scan
from univip.engine.state import TrainState
from univip.errors import CheckpointError
from univip.optim.groups import make_optimizer
from univip.resilience.guard import Guard

COLOURS = {1: (200, 40, 40), 2: (40, 40, 200)}
IMAGES = 12


class Events:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def record(self, kind: str, **fields: object) -> None:
        self.events.append((kind, fields))


def make_photographs(root: Path) -> None:
    """Noise around two colours, in the COCO layout; the class is the colour."""
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    random = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(IMAGES):
        category = 1 + number % 2
        pixels = np.clip(COLOURS[category] + random.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(root / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 48, "height": 40})
        annotations.append(
            {"id": number, "image_id": number, "category_id": category, "bbox": [0, 0, 48, 40]}
        )
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))


def make_run(tmp_path: Path, *overrides: str) -> tuple[Config, Path]:
    root, run_dir = tmp_path / "data", tmp_path / "run"
    make_photographs(root)
    run_dir.mkdir()
    size = ["method=byol", "model=tiny", "views.scene_size=32", "train.threads=1", "evaluate.neighbours=3"]
    split = [] if "data=folder" in overrides else ["data.split=train"]
    config = compose([f"data.root={root}", *split, *size, *overrides])
    found = scan(config.data)
    store(config, RunHeader("run-00000000", RunKind.train, found.fingerprint, len(found.rows)), run_dir)
    proposals.prepare(config, run_dir)
    return config, run_dir


def save_checkpoint(config: Config, run_dir: Path) -> None:
    method = fresh_method(config, torch.device("cpu"))
    with torch.no_grad():
        for parameter in method.online.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    state = TrainState(
        method, make_optimizer(config.optim, method.online), Guard(config.resilience), data_step=9
    )
    CheckpointManager(run_dir / "checkpoints").save(state, Origin(), wait=True)


def run(config: Config, run_dir: Path) -> tuple[dict[str, Any], Events]:
    events = Events()
    evaluate(config, run_dir, events)
    return json.loads((run_dir / "results" / "evaluate.json").read_text()), events


def test_both_networks_are_measured_on_every_readable_photograph(tmp_path: Path) -> None:
    config, run_dir = make_run(tmp_path)
    save_checkpoint(config, run_dir)
    (tmp_path / "data" / "train" / "4.png").write_bytes(b"no image")

    result, events = run(config, run_dir)

    assert (result["num_images"], result["num_classes"], result["checkpoint_data_step"]) == (IMAGES - 1, 2, 9)
    for network in ("trained", "untrained"):
        metrics = result[network]
        assert metrics["top1"] == metrics["mean_average_precision"] == 1.0
        assert metrics["feature_std"] > 0
        assert 1 <= metrics["effective_rank"] <= IMAGES
    assert result["trained"] != result["untrained"]
    assert [fields["image_id"] for kind, fields in events.events if kind == "image_failed"] == [4]
    assert [kind for kind, _ in events.events][-1] == "evaluate"


def test_a_folder_without_labels_is_measured_by_spread_and_rank_alone(tmp_path: Path) -> None:
    config, run_dir = make_run(tmp_path, "data=folder")
    save_checkpoint(config, run_dir)

    result, _ = run(config, run_dir)

    assert (result["num_classes"], result["split"]) == (0, [])  # `data.split` is of the other format
    assert set(result["trained"]) == {"feature_std", "effective_rank"}


def test_another_split_is_asked_against_the_training_photographs(tmp_path: Path) -> None:
    config, run_dir = make_run(tmp_path, "evaluate.split=other")
    save_checkpoint(config, run_dir)
    annotations = tmp_path / "data" / "annotations"
    document = json.loads((annotations / "instances_train.json").read_text())
    document["images"] = document["images"][:3]
    document["annotations"] = document["annotations"][:3]
    (annotations / "instances_other.json").write_text(json.dumps(document))
    (tmp_path / "data" / "other").symlink_to(tmp_path / "data" / "train")

    result, _ = run(config, run_dir)

    assert (result["num_images"], result["split"]) == (3, ["other"])
    # Each query finds itself in the bank, as it must where the splits share photographs.
    assert result["trained"]["top1"] == 1.0


def test_a_run_without_a_checkpoint_says_how_to_get_one(tmp_path: Path) -> None:
    config, run_dir = make_run(tmp_path)

    with pytest.raises(CheckpointError, match="no checkpoint to evaluate") as caught:
        evaluate(config, run_dir, Events())

    assert caught.value.fix == f"univip resume {run_dir}"
