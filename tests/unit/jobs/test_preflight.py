"""The pre-flight of a node runs in processes of its own, and whatever becomes of them is an answer."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import preflight
from jobs.preflight import fault_of_node


@pytest.fixture(scope="module", autouse=True)
def _torch_is_loaded_once() -> None:
    multiprocessing.set_forkserver_preload(["torch"])


def test_a_sound_node_passes_and_a_wrong_number_is_told_by_the_process_that_saw_it(tmp_path: Path) -> None:
    assert fault_of_node(tmp_path, workers=3) == ""
    assert "cpu: 1 of 16,384 numbers" in fault_of_node(tmp_path, workers=1, is_broken=True)


def test_a_process_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "LIMIT_S", 0.001)

    what = fault_of_node(tmp_path, workers=1)

    assert what in ("cpu: no answer within 0 s", "cpu: the process that tried it ended with exit code 1")


def test_a_process_that_dies_is_an_answer() -> None:
    answers, answer = multiprocessing.Pipe(duplex=False)
    answer.close()
    dead = SimpleNamespace(join=lambda timeout: None, exitcode=-11)

    what = preflight._answer("cuda:3", dead, answers, 0.0)  # type: ignore[arg-type]

    assert what == "cuda:3: the process that tried it ended with exit code -11"
