"""Capsules: what they hold, what they pin, and that none can hurt a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from univip.checkpoint import layout
from univip.checkpoint.manager import CheckpointManager, Origin
from univip.errors import CheckpointError, ConfigError
from univip.resilience.anomaly import FOLDER, Capsules, find_start, read_capsule
from univip.resilience.guard import Judgement, Verdict

SKIP = Judgement(Verdict.skip, "loss", "nonfinite", "the loss is not finite")
BAD_STATE = Judgement(Verdict.rollback, "state", "nonfinite", "a parameter is not finite")
SPIKE = Judgement(Verdict.rollback, "loss", "spike", "3 spikes in a row", 2)


class State:
    step = 0

    def __init__(self, data_step: int) -> None:
        self.data_step = data_step

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": torch.tensor([float(self.data_step)])}

    def facts(self) -> dict[str, object]:
        return {}

    def load(self, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
        pytest.fail("a capsule only reads the state")


class Events:
    def __init__(self) -> None:
        self.outcomes: list[object] = []

    def record(self, kind: str, **fields: object) -> None:
        if kind == "capsule":
            self.outcomes.append(fields["outcome"])


def make_capsules(run_dir: Path, *, limit: int = 10) -> tuple[Capsules, CheckpointManager, Events]:
    events = Events()
    manager = CheckpointManager(run_dir / "checkpoints", keep_last=1)
    for data_step in (4, 8):
        manager.save(State(data_step), Origin(line=data_step), wait=True)
        (manager.path(data_step) / layout.PINNED).write_text("held by the test\n")
    capsules = Capsules(run_dir / FOLDER, manager, events, limit=limit, place={"attempt": 3})
    return capsules, manager, events


@pytest.mark.parametrize(
    ("data_step", "judgement", "start"),
    [(8, SKIP, 8), (8, BAD_STATE, 4), (9, BAD_STATE, 8), (10, SPIKE, 8), (9, SPIKE, 4)],
)
def test_a_capsule_names_the_newest_checkpoint_from_before_the_trouble(
    tmp_path: Path, data_step: int, judgement: Judgement, start: int
) -> None:
    capsules, _, events = make_capsules(tmp_path)

    capsules.write(data_step, judgement, ledger_records=7, facts={"loss": math.nan, "terms": [1.5, math.inf]})

    assert events.outcomes == ["success"]
    capsule = read_capsule(tmp_path, str(data_step))
    assert capsule["start"] == {"data_step": start, "line": start}
    assert (capsule["attempt"], capsule["ledger_records"]) == (3, 7)
    assert (capsule["verdict"], capsule["what"]) == (str(judgement.verdict), judgement.what)
    assert math.isnan(float(capsule["loss"]))
    assert [float(term) for term in capsule["terms"]] == [1.5, math.inf]


def test_the_checkpoint_of_a_capsule_is_not_pruned_and_is_found_where_it_was_put_aside(
    tmp_path: Path,
) -> None:
    capsules, manager, _ = make_capsules(tmp_path)
    for data_step in (4, 8):
        (manager.path(data_step) / layout.PINNED).unlink()
    capsules.write(5, SKIP, ledger_records=0, facts={})

    manager.save(State(12), Origin(line=0), wait=True)

    assert layout.data_steps(manager.directory) == [4, 12]
    start = read_capsule(tmp_path, "5")["start"]
    assert find_start(manager.directory, start) == manager.path(4)
    manager.abandon([4], "rollback-001")
    manager.save(State(4), Origin(line=1), wait=True)  # the same place in another future
    assert find_start(manager.directory, start).parent.name == "rollback-001"


def test_a_start_that_is_gone_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is gone"):
        find_start(tmp_path, {"data_step": 4, "line": 0})


def test_a_capsule_that_cannot_be_written_is_reported_and_nothing_else(tmp_path: Path) -> None:
    capsules, _, events = make_capsules(tmp_path)
    (tmp_path / FOLDER).write_text("in the way")

    capsules.write(9, SKIP, ledger_records=0, facts={})

    assert events.outcomes == ["failure"]


def test_without_any_checkpoint_there_is_no_capsule_and_no_harm(tmp_path: Path) -> None:
    events = Events()
    manager = CheckpointManager(tmp_path / "checkpoints")

    Capsules(tmp_path / FOLDER, manager, events, limit=1, place={}).write(9, SKIP, ledger_records=0, facts={})

    assert events.outcomes == ["failure"]


def test_beyond_the_budget_nothing_is_written_or_pinned(tmp_path: Path) -> None:
    capsules, manager, events = make_capsules(tmp_path, limit=1)
    for data_step in (9, 10, 9):
        capsules.write(data_step, SKIP, ledger_records=0, facts={})

    assert events.outcomes == ["success", "over_budget", "success"]  # the last one is an update
    assert (manager.path(8) / layout.PINNED).read_text().split() == [
        *["held", "by", "the", "test"],
        "000000009",
        "000000009",
    ]


@pytest.mark.parametrize("content", [None, "no json", '{"v": 99}'])
def test_a_capsule_that_cannot_be_read_is_refused_with_one_that_can(
    tmp_path: Path, content: str | None
) -> None:
    capsules, _, _ = make_capsules(tmp_path)
    capsules.write(9, SKIP, ledger_records=0, facts={})
    if content is not None:
        (tmp_path / FOLDER / "000000007").mkdir()
        (tmp_path / FOLDER / "000000007" / "capsule.json").write_text(content)

    with pytest.raises(ConfigError) as caught:
        read_capsule(tmp_path, "7")

    assert f"univip replay {tmp_path.name} 0000000" in str(caught.value)
