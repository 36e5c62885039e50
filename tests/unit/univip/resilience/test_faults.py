"""A planted fault damages what it names, on the rank it names, once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from univip.errors import ConfigError
from univip.resilience.faults import VARIABLE, PlantedFaults, breaks_preflight, marker_of


class Pair:
    """As much of a method as a fault can reach."""

    def __init__(self) -> None:
        self.online = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.target = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.optimizer = SGD(self.online.parameters(), lr=0.1, momentum=0.9)

    def learn(self) -> None:
        self.online(torch.ones(2, 2)).sum().backward()
        self.optimizer.step()

    def damaged(self) -> set[str]:
        """The parts with a value that is not finite."""
        slots = [value for each in self.optimizer.state.values() for value in each.values()]
        parts = {
            "parameter": list(self.online.parameters()),
            "buffer": list(self.online.buffers()),
            "target": [*self.target.parameters(), *self.target.buffers()],
            "optimizer": [value for value in slots if isinstance(value, Tensor)],
        }
        return {name for name, values in parts.items() if not all(map(_is_finite, values))}


def _is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def begin(faults: PlantedFaults, pair: Pair, data_step: int) -> None:
    faults.begin(data_step, pair, pair.optimizer)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["parameter", "buffer", "optimizer", "target"])
def test_a_nan_lands_in_the_part_of_the_state_it_names_and_nowhere_else(place: str) -> None:
    pair, faults = Pair(), PlantedFaults(f"nan:{place}@3")
    pair.learn()
    begin(faults, pair, 2)
    assert pair.damaged() == set()

    begin(faults, pair, 3)

    assert pair.damaged() == {place}
    assert faults.happened == [f"nan:{place}@3"]


@pytest.mark.parametrize(
    ("text", "ranks"), [("nan:loss@1", [0]), ("nan:loss:2@1", [2]), ("nan:loss:all@1", [0, 1, 2])]
)
def test_a_fault_happens_on_the_ranks_it_names(text: str, ranks: list[int]) -> None:
    hit = []
    for rank in range(3):
        faults = PlantedFaults(text, rank=rank)
        begin(faults, Pair(), 1)
        hit += [] if _is_finite(faults.loss(torch.ones(()))) else [rank]

    assert hit == ranks


def test_a_fault_on_all_ranks_happens_once_on_each(tmp_path: Path) -> None:
    for rank in (0, 1):
        happened = []
        for _ in range(2):
            faults = PlantedFaults("nan:gradient:all@4", markers=tmp_path / "planted", rank=rank)
            begin(faults, Pair(), 4)
            happened.append(faults.happened)
        assert happened == [["nan:gradient:all@4"], []]
        assert marker_of(tmp_path / "planted", "nan:gradient:all@4", rank).exists()


def test_planted_faults_are_loud_and_none_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        PlantedFaults("")
        assert caplog.text == ""
        begin(PlantedFaults("nan:loss@1"), Pair(), 1)

    assert "FAULTS ARE PLANTED" in caplog.text
    assert "planted fault: nan:loss@1" in caplog.text


def test_an_optimizer_without_state_cannot_be_damaged() -> None:
    with pytest.raises(ConfigError, match="before the first step"):
        begin(PlantedFaults("nan:optimizer@0"), Pair(), 0)


def test_a_preflight_is_broken_on_the_node_and_in_the_attempt_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not breaks_preflight(1, 2)

    monkeypatch.setenv(VARIABLE, "kill:1@2, matmul:1@2")

    broken = [(node, attempt) for node in range(3) for attempt in range(4) if breaks_preflight(node, attempt)]
    assert broken == [(1, 2)]
    faults = PlantedFaults("matmul:1@2", rank=1)
    begin(faults, Pair(), 2)
    assert faults.happened == []


@pytest.mark.parametrize("text", ["nan:moon@1", "nan:loss", "kill:1:2@3", "kill:all@3", "hang:loss@3"])
def test_a_fault_that_does_not_exist_is_refused_with_those_that_do(text: str) -> None:
    with pytest.raises(ConfigError, match="must be `KIND:PLACE") as refused:
        PlantedFaults(text)

    assert "nan:optimizer" in refused.value.fix
    assert "hang:RANK" in refused.value.fix
