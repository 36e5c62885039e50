"""What `univip bench` promises about its numbers."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.bench import step as bench
from jobs.bench.result import Result, one_core
from launcher.cli.main import run
from launcher.errors import USAGE


def test_a_step_is_reported_with_exactly_the_promised_keys(photographs: Path) -> None:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()

    result = json.loads(json.dumps(bench.step(photographs, global_batch=4, data_steps=3, warm_up=1)))

    keys = ["name", "value", "unit", "reference", "reference_name", "ratio", "better", "details"]
    assert list(result) == keys
    assert result["name"] == "step"
    assert result["better"] == "higher"
    assert result["value"] > 0
    assert result["ratio"] == result["value"] / result["reference"]
    phases = ["data", "augment", "forward", "backward", "reduce", "optimizer", "rest"]
    details = result["details"]
    assert list(details["ms_per_image"]) == phases
    assert list(details["reference_ms_per_image"]) == ["forward", "backward", "optimizer", "rest"]
    # Medians of parts do not add up to the median of the whole, but nearly.
    assert sum(details["ms_per_image"].values()) == pytest.approx(1000 / result["value"], rel=0.5)
    # Different losses would mean that the two sides trained differently.
    assert details["last_loss"] == pytest.approx(details["reference_last_loss"], rel=1e-5)
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (cores, threads)


def test_every_thread_is_held_on_one_core_and_let_go_again() -> None:
    before, stop = os.sched_getaffinity(0), threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        assert other.native_id is not None
        with one_core():
            [core] = os.sched_getaffinity(0)
            assert os.sched_getaffinity(other.native_id) == {core}
            assert torch.get_num_threads() == 1
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other.native_id) == before
    finally:
        stop.set()
        other.join()


def test_an_unknown_name_is_a_usage_error_that_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "nothing"]) == USAGE
    assert "'step'" in capsys.readouterr().err


@pytest.fixture
def fake_step(monkeypatch: pytest.MonkeyPatch) -> Result:
    result = Result(
        name="step",
        value=30.0,
        unit="images/s",
        reference=40.0,
        reference_name="something simpler",
        ratio=0.75,
        better="higher",
        details={"ms_per_image": {"data": 12.345678}},
    )

    def step(photographs: Path) -> Any:
        assert (photographs / "annotations" / "instances_train.json").is_file()
        return result

    monkeypatch.setattr(bench, "step", step)
    return result


def test_json_is_one_object_on_one_line(fake_step: Result, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "step", "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line) == fake_step


@pytest.mark.usefixtures("fake_step")
def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "step"]) == 0
    table = capsys.readouterr().out
    for words in ("30 images/s", "40 images/s, something simpler", "0.750, higher", "data 12.35"):
        assert words in table
