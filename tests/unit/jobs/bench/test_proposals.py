"""What `univip bench proposals` promises about its numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

from jobs.bench import proposals as bench_proposals
from jobs.bench.result import Result
from jobs.config import Config
from launcher.cli.main import run
from launcher.errors import USAGE
from univip.config import DataConfig, DataFormat, ProposalsConfig, SearchMode


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two photographs; the only object of the first is a bright square, that of the second is nowhere."""
    (tmp_path / "train").mkdir()
    (tmp_path / "annotations").mkdir()
    for number in (1, 2):
        pixels = np.random.default_rng(number).integers(0, 40, (90, 120, 3), dtype=np.uint8)
        pixels[20:60, 30:80] += 200
        PIL.Image.fromarray(pixels).save(tmp_path / "train" / f"{number}.png")
    images = [{"id": n, "file_name": f"{n}.png", "width": 120, "height": 90} for n in (1, 2)]
    objects = [
        {"image_id": 1, "bbox": [30, 20, 50, 40], "iscrowd": 0},
        {"image_id": 2, "bbox": [0, 0, 3, 90], "iscrowd": 0},
        {"image_id": 2, "bbox": [30, 20, 50, 40], "iscrowd": 1},
    ]
    document = {"images": images, "annotations": objects, "categories": []}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(document), encoding="utf-8")
    return tmp_path


def test_the_result_says_what_was_compared(root: Path) -> None:
    cores, threads = os.sched_getaffinity(0), cv2.getNumThreads()
    data, boxes = DataConfig(root=str(root), split="train"), ProposalsConfig(mode=SearchMode.single)

    result = json.loads(json.dumps(bench_proposals.proposals(Config(data=data, proposals=boxes))))

    assert list(result) == list(Result.__annotations__)
    assert result["ratio"] == result["value"] / result["reference"]
    assert result["reference_name"] == f"OpenCV {cv2.__version__} with one thread"
    details = result["details"]
    assert (details["images"], details["mode"], details["identical_boxes"]) == (2, "single", 1.0)
    assert details["recall"] == details["reference_recall"] == 0.5  # the crowd does not count
    assert 50 < details["worker_peak_mb"] < 1000
    assert (os.sched_getaffinity(0), cv2.getNumThreads()) == (cores, threads)


def test_photographs_without_annotations_have_no_recall(root: Path) -> None:
    data = DataConfig(format=DataFormat.folder, root=str(root / "train"))

    details = bench_proposals.proposals(Config(data=data))["details"]

    assert "recall" not in details


def test_identical_boxes_are_intersection_over_union_of_the_sets() -> None:
    boxes = np.arange(20, dtype=np.int32).reshape(5, 4)
    ours, opencvs = (bench_proposals.Search(1.0, some) for some in (boxes[:4], boxes[3:]))

    assert bench_proposals._identical(ours, opencvs) == 1 / 5


def fake(seen: list[Config]) -> Any:
    def proposals(config: Config) -> Result:
        seen.append(config)
        # Bundled photographs are there while the benchmark runs.
        assert len(list(Path(config.data.root).glob("*.jpg"))) >= 4 or config.data.root == "/somewhere"
        return Result(
            name="proposals",
            value=3.0,
            unit="images/s",
            reference=1.0,
            reference_name="another",
            ratio=3.0,
            better="higher",
            details={"identical_boxes": 1.0},
        )

    return proposals


def test_without_options_the_bundled_photographs_are_searched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(bench_proposals, "proposals", fake(seen))

    assert run(["bench", "proposals", "--json"]) == 0

    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["ratio"] == 3.0
    assert seen[0].data.format is DataFormat.folder


def test_options_choose_photographs_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(bench_proposals, "proposals", fake(seen))

    assert run(["bench", "proposals", "data=coco", "data.root=/somewhere", "proposals.mode=quality"]) == 0

    assert (seen[0].data.root, seen[0].proposals.mode) == ("/somewhere", SearchMode.quality)


def test_the_other_benchmark_takes_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "step", "data.root=/somewhere"]) == USAGE
    assert "takes no options" in capsys.readouterr().err
