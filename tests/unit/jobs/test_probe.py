from __future__ import annotations

import platform

import pytest
import torch

from jobs import probe
from jobs.outcomes import read_json

NVIDIA_SMI = """\
Tue Mar  5 10:12:01 2024
+---------------------------------------------------------------------------------------+
| NVIDIA-SMI 535.161.08             Driver Version: 535.161.08   CUDA Version: 12.2     |
|-----------------------------------------+----------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id        Disp.A | Volatile Uncorr. ECC |
"""


@pytest.mark.parametrize(
    ("shown", "expected"), [(NVIDIA_SMI, ("535.161.08", "12.2")), ("", ("", "")), ("No devices", ("", ""))]
)
def test_the_driver_is_read_from_the_head_of_the_table(shown: str, expected: tuple[str, str]) -> None:
    assert probe.parse_driver(shown) == expected


def test_a_look_as_a_job_leaves_its_answer_in_the_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("answer")

    probe.probe("answer.json", str(folder))

    answer = read_json(folder / "answer.json")
    assert answer is not None
    assert (answer["torch"], answer["python"]) == (torch.__version__, platform.python_version())
    assert answer["error"] == ""
