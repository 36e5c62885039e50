"""The campaign counts trials, keeps what is finished, and says what does not hold."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.attempts import RunBusyError
from jobs.drill import campaign, results
from jobs.drill.kinds import KINDS, PROCESSES, Kind
from jobs.drill.results import Result

GOOD = Result("k", 0, trials=2, detected=2, recovered=2, seconds=[0.2, 0.4], is_equal=True)


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"detected": None, "is_equal": None}, True),
        ({"detected": 1}, False),
        ({"recovered": 1}, False),
        ({"false_actions": 1}, False),
        ({"samples_wrong": 6}, False),
        ({"is_equal": False}, False),
        ({"replays": 2, "replayed": 1}, False),
        ({"problems": ["another digest"]}, False),
        ({"samples_lost": 12, "steps_lost": 3}, True),
    ],
)
def test_a_result_holds_only_if_everything_is_as_it_must_be(change: dict[str, Any], holds: bool) -> None:
    assert replace(GOOD, **change).holds() is holds


def test_a_row_adds_up_its_round_trips() -> None:
    row = results.row("k", "processes", [GOOD, replace(GOOD, seconds=[1.0, 3.0], is_equal=False)])

    assert (row["trials"], row["detected"], row["recovered"]) == (4, 4, 4)
    assert (row["seconds_p50"], row["seconds_p95"]) == (0.4, 3.0)
    assert row["digest_equal"] is False
    assert not row["holds"]


def test_a_kind_of_which_nothing_was_tried_does_not_hold() -> None:
    assert not results.row("k", "processes", [])["holds"]
    assert not results.row("k", "processes", [Result("k", 0)])["holds"]


def test_a_line_that_was_cut_off_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / results.FILE_NAME
    results.append(path, "mine", GOOD)
    path.write_text(path.read_text() + '{"campaign": "mine", "ki')
    results.append(path, "mine", replace(GOOD, number=1))
    results.append(path, "other", replace(GOOD, number=2))

    assert [result.number for result in results.read(path, "mine")] == [0, 1]


def test_every_kind_has_a_name_of_its_own_and_something_to_do() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert sum(not kind.name.startswith("control") for kind in KINDS) >= 25
    for kind in KINDS:
        assert callable(pkgutil.resolve_name(f"jobs.drill.{kind.entry}")), kind


class NoLab:
    """Stands for a lab where nothing is made."""

    def __init__(self, *_: object) -> None:
        self.runs = Path(__file__).parent

    def clear(self, kept: object) -> None:
        """Nothing to remove."""


@pytest.fixture
def drill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a campaign of one kind with a stub for its round trip."""

    def run(round_trip: Callable[..., Result], *, trials: int = 3, resume: bool = False, **kind: Any) -> Any:
        one = Kind("k", "results:Result", PROCESSES, "", **kind)
        monkeypatch.setattr(campaign, "KINDS", [one])
        monkeypatch.setattr(campaign, "Lab", NoLab)
        monkeypatch.setattr(pkgutil, "resolve_name", lambda _: round_trip)
        options = {"kinds": ["k"], "trials": trials, "seed": 0, "resume": resume, "tell": lambda _: None}
        return campaign.run(tmp_path, tmp_path, [], **options)  # type: ignore[arg-type]

    return run


def test_a_campaign_ends_a_kind_once_it_has_enough_trials(drill: Callable[..., dict[str, Any]]) -> None:
    numbers: list[int] = []

    def round_trip(lab: object, number: int, draws: object) -> Result:
        numbers.append(number)
        return replace(GOOD, number=number)

    found = drill(round_trip)

    assert numbers == [0, 1]  # of two trials each
    assert found["holds"]
    assert found["rows"][0]["trials"] == 4


@pytest.mark.parametrize(("times", "expected"), [(4, 12), (1, 4), (0.2, 2)])
def test_some_kinds_have_more_trials_and_some_fewer(
    drill: Callable[..., dict[str, Any]], times: float, expected: int
) -> None:
    found = drill(lambda lab, number, draws: replace(GOOD, number=number), times=times)

    assert found["rows"][0]["trials"] == expected


def test_an_exhaustive_kind_goes_on_to_its_last_point(drill: Callable[..., dict[str, Any]]) -> None:
    found = drill(
        lambda lab, number, draws: replace(GOOD, number=number, is_last=number == 8), is_exhaustive=True
    )

    assert found["rows"][0]["trials"] == 18


def test_what_is_raised_makes_a_trial_fail_and_names_the_kind(drill: Callable[..., dict[str, Any]]) -> None:
    def round_trip(lab: object, number: int, draws: object) -> Result:
        raise RuntimeError("the job did not end")

    found = drill(round_trip)

    assert found["failing"] == ["k"]
    assert not found["holds"]
    assert found["rows"][0]["problems"] == ["RuntimeError: the job did not end"] * 3


def test_a_second_campaign_in_the_same_folder_is_refused(drill: Callable[..., dict[str, Any]]) -> None:
    def round_trip(lab: object, number: int, draws: object) -> Result:
        with pytest.raises(RunBusyError, match="one process at a time"):
            drill(lambda *_: GOOD)
        return replace(GOOD, trials=3, detected=3, recovered=3)

    assert drill(round_trip)["holds"]


def test_a_campaign_that_is_resumed_repeats_nothing(drill: Callable[..., dict[str, Any]]) -> None:
    drill(lambda lab, number, draws: replace(GOOD, number=number))
    later: list[int] = []

    def round_trip(lab: object, number: int, draws: object) -> Result:
        later.append(number)
        return replace(GOOD, number=number)

    assert drill(round_trip, trials=5, resume=True)["rows"][0]["trials"] == 6
    assert later == [2]
    later.clear()
    drill(round_trip, trials=3)
    assert later == [0, 1]
