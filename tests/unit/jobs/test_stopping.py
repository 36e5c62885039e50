"""When a request to stop becomes an order."""

from __future__ import annotations

import pytest

from jobs import stopping
from jobs.stopping import OutOfTimeError, StopRequest


class Clock:
    """A clock that is moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(stopping.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_nobody_is_hurried_who_was_not_asked(clock: Clock) -> None:
    request = StopRequest(120.0)
    clock.now += 1e6

    request.check()


def test_one_signal_that_comes_several_times_is_one_request(clock: Clock) -> None:
    request = StopRequest(120.0)
    for _ in range(5):
        request.ask()
        clock.now += 0.1

    request.check()


def test_a_second_signal_is_an_order(clock: Clock) -> None:
    request = StopRequest(120.0)
    request.ask()
    clock.now += 1.5
    request.check()

    request.ask()

    with pytest.raises(OutOfTimeError, match="second signal"):
        request.check()


@pytest.mark.parametrize(("signal_delay_s", "grace_s"), [(120.0, 110.0), (8.0, 4.0), (1.0, 0.5)])
def test_the_grace_ends_before_the_scheduler_does(
    clock: Clock, signal_delay_s: float, grace_s: float
) -> None:
    request = StopRequest(signal_delay_s)
    request.ask()
    clock.now += grace_s - 0.1
    request.check()

    clock.now += 0.2

    with pytest.raises(OutOfTimeError, match=f"within {grace_s:.0f} s"):
        request.check()
