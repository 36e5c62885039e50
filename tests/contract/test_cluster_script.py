"""What `tests/slurm/cluster.py`, the script behind `make cluster`, takes on its command line."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "slurm" / "cluster.py"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["reboot"],
        ["kill-node"],
        ["kill-node", "node2"],
        ["start-node", "9"],
        ["up", "1"],
        ["status", "all"],
    ],
    ids=str,
)
def test_a_mistake_is_one_line_of_usage(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNIVIP_CLUSTER", str(tmp_path))  # should one of them be taken for a command after all

    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT))["main"](arguments)

    assert str(ended.value) == (
        "usage: cluster.py up | down | status | restart-controller | kill-node N | start-node N, "
        "N from 1 to 4"
    )
