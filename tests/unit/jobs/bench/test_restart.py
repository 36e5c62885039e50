"""What `univip bench restart` promises about its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.bench import restart as bench_restart
from jobs.bench.restart import restart
from jobs.bench.result import Result
from launcher.cli.main import run
from launcher.demo_data import make_demo_data


@pytest.mark.slow
def test_both_sides_go_on_after_every_kill_and_ours_is_faster(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    make_demo_data(photographs)

    result = json.loads(json.dumps(restart(photographs, kills=2, repetitions=1)))

    keys = ["name", "value", "unit", "reference", "reference_name", "ratio", "better", "details"]
    assert list(result) == keys
    assert (result["name"], result["unit"], result["better"]) == ("restart", "s", "lower")
    assert (result["details"]["kills"], result["details"]["reference_kills"]) == (2, 3)
    assert 0 < result["value"] <= result["details"]["p95_s"]
    assert result["ratio"] == result["value"] / result["reference"] < 1


def test_lines_of_the_reference_that_are_not_whole_are_no_steps(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("10.5 0\n11.5 1\n12.5 1\n13.", encoding="utf-8")

    assert bench_restart._steps(tmp_path, 0) == [10.5]
    assert bench_restart._steps(tmp_path, 1) == [11.5, 12.5]
    assert bench_restart._steps(tmp_path, 2) == []


def test_it_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(photographs: Path) -> Result:
        assert (photographs / "annotations" / "instances_train.json").is_file()
        return Result(
            name="restart", value=0.5, unit="s", reference=5.0, reference_name="torchrun", ratio=0.1,
            better="lower", details={},
        )  # fmt: skip

    monkeypatch.setattr(bench_restart, "restart", measure)

    assert run(["bench", "restart", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ratio"] == 0.1
