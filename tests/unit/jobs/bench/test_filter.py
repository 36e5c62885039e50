"""What `univip bench filter` promises about its numbers."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jobs.bench import filter as bench_filter
from jobs.bench.filter import one_at_a_time
from jobs.bench.result import Result
from launcher.cli.main import run


def test_the_filter_is_reported_with_exactly_the_promised_keys(tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    PIL.Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(tmp_path / "a.png")

    result = json.loads(json.dumps(bench_filter.filter_(tmp_path, num_photographs=1, orders=3)))

    keys = ["name", "value", "unit", "reference", "reference_name", "ratio", "better", "details"]
    assert list(result) == keys
    assert (result["name"], result["better"]) == ("filter", "higher")
    assert result["ratio"] == result["value"] / result["reference"]
    assert result["details"]["identical_images"] == 1.0
    assert result["details"]["images"] == 3
    assert result["details"]["boxes_per_image"] > result["details"]["kept_per_image"] > 0


def test_the_reference_keeps_what_exact_fractions_keep() -> None:
    random = np.random.default_rng(0)
    boxes = np.concatenate([random.integers(0, 9, (300, 2)), random.integers(1, 13, (300, 2))], axis=1)
    kept: list[list[int]] = []
    for x, y, w, h in boxes.tolist():
        if min(w, h) >= 4 and Fraction(max(w, h), min(w, h)) <= 3:
            cells = {(i, j) for i in range(x, x + w) for j in range(y, y + h)}
            others = [{(i, j) for i in range(a, a + c) for j in range(b, b + d)} for a, b, c, d in kept]
            if all(Fraction(len(cells & other), len(cells | other)) <= Fraction(1, 2) for other in others):
                kept.append([x, y, w, h])

    assert one_at_a_time(boxes.astype(np.int32), 4, 3.0, 0.5) == kept


def test_it_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def filter_(photographs: Path) -> Result:
        assert (photographs / "annotations" / "instances_train.json").is_file()
        return Result(
            name="filter", value=4.0, unit="images/s", reference=2.0, reference_name="a loop", ratio=2.0,
            better="higher", details={},
        )  # fmt: skip

    monkeypatch.setattr(bench_filter, "filter_", filter_)

    assert run(["bench", "filter", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ratio"] == 2.0
