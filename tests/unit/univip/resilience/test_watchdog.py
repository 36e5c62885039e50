from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from univip.engine.phases import PhaseClock
from univip.resilience.watchdog import FACTOR, FLOOR_S, Watchdog

GIVE_UP_S = 60.0


class Story:
    """A clock whose phases last as told, and what the watchdog does about them."""

    def __init__(self) -> None:
        self.clock = PhaseClock()
        self.told: list[dict[str, Any]] = []
        self.reasons: list[str] = []
        self.dog = Watchdog(
            self.clock,
            position=lambda: 12,
            observer=self,
            give_up_s=GIVE_UP_S,
            on_hang=self.reasons.append,
        )

    def record(self, kind: str, **fields: object) -> None:
        assert kind == "stall"
        self.told.append(fields)

    def look_after(self, phase: str, *seconds: float) -> None:
        """Look at a phase that began so long ago and has not ended."""
        self.clock.entered = (phase, 1000.0)
        for each in seconds:
            self.dog.look(1000.0 + each)


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_phase_that_takes_far_longer_than_it_did_is_told_once(
    story: Story, capfd: pytest.CaptureFixture[str]
) -> None:
    story.clock.recent["data"].extend([0.1, 2.0, 0.1])

    story.look_after("data", FACTOR * 2.0 - 0.1)
    assert story.told == []
    story.look_after("data", FACTOR * 2.0 + 0.1, FACTOR * 2.0 + 0.2)

    assert story.told == [{"data_step": 12, "phase": "data", "seconds": pytest.approx(FACTOR * 2.0 + 0.1)}]
    assert "test_a_phase_that_takes_far_longer" in capfd.readouterr().err  # the stack, in the log
    assert story.reasons == []


def test_what_is_short_or_was_never_done_before_is_not_told(story: Story) -> None:
    story.clock.recent["forward"].append(0.01)

    story.look_after("forward", FLOOR_S - 0.1)
    story.look_after("backward", GIVE_UP_S - 0.1)

    assert (story.told, story.reasons) == ([], [])


def test_without_progress_it_gives_up_and_says_where(story: Story) -> None:
    story.look_after("forward", GIVE_UP_S + 1)

    [reason] = story.reasons
    assert "no progress for 61 s in phase `forward` of data step 12" in reason


def test_a_slow_disk_is_told_and_waited_for(story: Story) -> None:
    story.look_after("checkpoint", 2 * GIVE_UP_S)

    assert [record["phase"] for record in story.told] == ["checkpoint"]
    assert story.reasons == []


def test_who_waits_for_the_others_is_not_the_one(story: Story) -> None:
    story.look_after("reduce", 2 * GIVE_UP_S)

    assert (story.told, story.reasons) == ([], [])


def test_between_two_phases_nothing_is_judged(story: Story) -> None:
    story.dog.look(1e9)

    assert (story.told, story.reasons) == ([], [])


def in_a_file_named(name: str, call: Callable[[], object]) -> Callable[[], object]:
    """A function that calls another one, with `name` as its source file."""
    names: dict[str, Any] = {"call": call}
    exec(compile("def run():\n    call()\n", name, "exec"), names)
    run: Callable[[], object] = names["run"]
    return run


@pytest.mark.parametrize(
    ("file", "told"), [("/x/torch/distributed/distributed_c10d.py", False), ("/x/loader.py", True)]
)
def test_a_thread_inside_a_collective_waits(story: Story, file: str, told: bool) -> None:
    inside, leave = threading.Event(), threading.Event()
    wait = in_a_file_named(file, lambda: (inside.set(), leave.wait()))

    def train() -> None:
        with story.dog, story.clock("backward"):
            wait()

    story.clock.recent["backward"].append(0.01)
    thread = threading.Thread(target=train)
    thread.start()
    inside.wait()
    story.dog.look(time.perf_counter() + FLOOR_S)
    leave.set()
    thread.join()

    assert bool(story.told) is told


def test_a_rank_that_the_elastic_agent_started_does_not_wait_for_others_because_of_that(story: Story) -> None:
    start = compile("look()", "/site-packages/torch/distributed/elastic/multiprocessing/api.py", "exec")

    exec(start, {"look": lambda: story.look_after("augment", GIVE_UP_S + 1)})

    assert len(story.reasons) == 1
