from dataclasses import replace

import pytest

from launcher import render
from launcher.runs import RunState, State
from launcher.summary import Summary

SUMMARY = Summary(
    "coco_univip-01234567",
    RunState(State.running, "train", attempt=2),
    done=50,
    target=200,
    rate=12.34,
    loss=3.5,
    terms={"scene": 1.25},
    eta_s=125.0,
    problem="rolled back to data step 10: nonfinite in loss",
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d 0 h"),
        (400_000, "4 d 15 h"),
    ],
)
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def test_one_line_tells_a_run() -> None:
    assert render.progress_line(SUMMARY) == (
        "train      ━━━········· 50/200 steps  12.3 images/s  loss 3.500 (scene 1.250)  ETA 2 min 5 s"
    )


def test_without_a_terminal_the_table_is_plain_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    render.status_table([SUMMARY])

    out = capsys.readouterr().out
    assert "\x1b" not in out
    for text in (
        "coco_univip-01234567",
        "running train",
        "50/200",
        "12.3",
        "3.5000",
        "2 min 5 s",
        SUMMARY.problem,
    ):
        assert text in out


def test_markup_in_names_and_messages_is_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    nasty = Summary("[red]x[/nope]", RunState(State.failed, "[/]", "[bold"), problem="[link=x]y[/]")

    render.status_table([nasty])
    with render.Progress() as progress:
        progress.update(nasty)

    said = capsys.readouterr()
    assert "[red]x[/nope]" in said.out
    assert "[link=x]y[/]" in said.out + said.err


def test_plain_progress_says_a_line_only_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with render.Progress() as progress:
        for _ in range(10):
            progress.update(SUMMARY)

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0] == f"! {SUMMARY.problem}"


def test_photographs_that_fail_in_turn_are_named_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    with render.Progress() as progress:
        for name in ("a", "b", "a", "b"):
            progress.update(replace(SUMMARY, problem=f"unusable image {name}.jpg: missing"))

    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("!")]
    assert lines == ["! unusable image a.jpg: missing", "! unusable image b.jpg: missing"]


def test_boxes_are_counted_in_images_also_when_they_are_done() -> None:
    boxes = Summary("proposals-1", RunState(State.done), done=23, target=23, shards_done=3, num_shards=3)

    assert render.progress_line(boxes) == "done       ━━━━━━━━━━━━ 23/23 images  3/3 shards"
