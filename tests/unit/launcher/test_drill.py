"""`univip drill`: what is typed, and what is printed of what was found."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.drill.kinds import KINDS
from launcher import demo_data
from launcher.cli.main import run

ROW = {
    "kind": "kill:rank",
    "how": "processes",
    "trials": 8,
    "detected": 8,
    "recovered": 7,
    "false_actions": 0,
    "steps_lost": 11,
    "samples_lost": 0,
    "samples_wrong": 0,
    "replayed": 0,
    "replays": 0,
    "seconds_p50": 0.5,
    "seconds_p95": None,
    "useful": 0.973,
    "digest_equal": True,
    "problems": ["the job ended with 76"],
    "holds": False,
}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the campaign was asked for; it finds one failing row."""
    calls: list[dict[str, Any]] = []

    def campaign(folder: Path, photographs: Path, overrides: object, **options: Any) -> dict[str, Any]:
        calls.append({"folder": folder, "overrides": overrides, **options})
        return {
            "seed": options["seed"],
            "seconds": 61.0,
            "rows": [ROW],
            "failing": ["kill:rank"],
            "holds": False,
        }

    monkeypatch.setenv("UNIVIP_RUNS", str(tmp_path))
    monkeypatch.setattr(demo_data, "make_demo_data", lambda root: root)
    resolve: Callable[[str], Any] = pkgutil.resolve_name
    monkeypatch.setattr(
        pkgutil, "resolve_name", lambda name: campaign if name == "jobs.drill.campaign:run" else resolve(name)
    )
    return calls


def test_a_beginning_of_a_name_means_all_kinds_that_have_it(
    asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert run(["drill", "--faults", "disk,kill:rank", "--seed", "4", "cluster.workers_per_node=3"]) == 1

    (call,) = asked
    assert call["kinds"] == ["disk:full", "disk:readonly", "disk:error", "disk:slow", "disk:rot", "kill:rank"]
    assert (call["seed"], call["overrides"]) == (4, ("cluster.workers_per_node=3",))
    assert call["folder"] == tmp_path / "drill"


def test_the_table_says_how_and_names_what_fails(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["drill"]) == 1

    said = capsys.readouterr()
    assert "processes" in said.out
    assert "8 in real processes" in said.err
    assert "useful     97.3% of the time" in said.err
    assert "kill:rank: the job ended with 76" in said.err
    assert "failing    kill:rank" in said.err


def test_json_is_what_was_found(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drill", "--json"]) == 1

    assert json.loads(capsys.readouterr().out)["rows"] == [ROW]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--faults", "moon"], "a kind must be one of control, nan:activation"),
        (["cluster=slurm"], "must be on this machine"),
        (["train.max_step=3"], "nearest are"),
    ],
)
def test_what_cannot_be_drilled_is_refused(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(["drill", *arguments]) == 2

    assert words in capsys.readouterr().err
    assert asked == []


def test_help_lists_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drill", "--help"]) == 0

    printed = capsys.readouterr().out
    assert all(f"  {kind.name} " in printed for kind in KINDS)
