"""When a request to stop becomes an order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture
def _signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


@pytest.mark.usefixtures("_signals_as_before")
def test_a_request_holds_where_no_file_can_be_made(
    clock: Clock, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request, gone = StopRequest(120.0), tmp_path / "gone"
    request.listen(gone)
    assert not request.is_asked()

    os.kill(os.getpid(), signal.SIGUSR2)

    assert request.is_asked()
    for _ in range(10):
        clock.now += 1.1
        request.check()
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("the workers cannot be told to stop: ")
    gone.mkdir()
    clock.now += 1.1
    request.check()
    assert (gone / "stop").exists()


@pytest.mark.usefixtures("_signals_as_before")
def test_the_grace_also_ends_for_workers_that_could_not_be_told(clock: Clock, tmp_path: Path) -> None:
    request = StopRequest(120.0)
    request.listen(tmp_path / "gone")
    os.kill(os.getpid(), signal.SIGTERM)

    clock.now += 110.2

    with pytest.raises(OutOfTimeError, match=r"could not be told to stop: .*gone/stop"):
        request.check()


@pytest.mark.usefixtures("_signals_as_before")
def test_what_the_agent_of_another_node_wrote_down_is_a_request(tmp_path: Path) -> None:
    request = StopRequest(120.0)
    (tmp_path / "stop").touch()

    assert not request.is_asked()
    request.listen(tmp_path)

    assert request.is_asked()
