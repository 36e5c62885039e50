"""The pace of a rank is its own work: what it waits for others is taken off."""

from __future__ import annotations

import time

import pytest
import torch

from univip import waiting
from univip.waiting import Pace

CPU = torch.device("cpu")
GPU = torch.device("cuda")


class Clock:
    """Time that passes only where it is told to; an event of a GPU reads it when it is recorded."""

    now = 0.0

    def __init__(self, *, enable_timing: bool = True) -> None:
        self.at = -1.0

    def record(self) -> None:
        self.at = Clock.now

    def elapsed_time(self, other: Clock) -> float:
        return (other.at - self.at) * 1000.0


def step(pace: Pace, device: torch.device, *, works_s: float, waits_s: float, loading_s: float) -> float:
    pace.begin(device)
    for _ in range(2):
        Clock.now += works_s / 2
        with waiting.waiting(device):
            Clock.now += waits_s / 2
    return pace.end(loading_s)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_pace_is_told_a_step_later_and_without_waiting(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    pace = Pace()

    told = [
        step(pace, device, works_s=3.0, waits_s=5.0, loading_s=0.5),
        step(pace, device, works_s=1.0, waits_s=7.0, loading_s=0.25),
        step(pace, device, works_s=1.0, waits_s=7.0, loading_s=0.25),
    ]

    assert told == pytest.approx([0.0, 3.5, 1.25])
