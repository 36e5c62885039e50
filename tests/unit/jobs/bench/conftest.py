"""Small photographs to measure on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

NUM_IMAGES = 6


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    root = tmp_path / "photographs"
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    images = []
    for number in range(1, NUM_IMAGES + 1):
        blocks = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        PIL.Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(root / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 96})
    document = {"images": images, "annotations": [], "categories": []}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document), encoding="utf-8")
    return root
