import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import rich.console

from launcher import render
from launcher.states import RunState, State
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


def test_in_a_pipe_no_line_ends_in_blanks_and_none_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    render.status_table([SUMMARY, replace(SUMMARY, problem="")])
    render.fact_table("a run", [("name", "value"), ("longer name", "v")])
    render.table("sizes", ["name", "count"], [["a", "1"]])

    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line or line != line.rstrip()] == []


NARROW = [
    replace(SUMMARY, id="coco_plus_univip-01234567", done=50_123, target=184_800),
    Summary("proposals-89abcdef", RunState(State.done, attempt=3), done=118_287, target=118_287),
    Summary(
        "coco_univip-01234567",
        RunState(State.failed, "train", "out_of_memory", 11),
        done=5,
        target=184_800,
        loss=9.1,
        problem="process 17 on node1 was killed: the kernel had no memory left",
    ),
]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """The lines of `status` in a terminal of so many columns, without their colours."""

    def draw(columns: int) -> list[str]:
        stream = io.StringIO()
        console = rich.console.Console(file=stream, force_terminal=True, width=columns, no_color=True)
        monkeypatch.setattr(render, "_console", lambda: console)
        written: list[str] = []
        monkeypatch.setattr("sys.stdout.write", written.append)
        render.status_table(NARROW)
        return re.sub(r"\x1b\[[0-9;]*m", "", "".join(written)).splitlines()

    return draw


@pytest.mark.parametrize(
    ("columns", "heads"),
    [
        (60, ["run", "state", "progress"]),
        (80, ["run", "state", "progress", "loss", "ETA"]),
        (100, ["run", "state", "progress", "images/s", "loss", "ETA"]),
        (120, ["run", "state", "progress", "images/s", "loss", "ETA", "attempt"]),
        (160, ["run", "state", "progress", "images/s", "loss", "ETA", "attempt", "last problem"]),
    ],
)
def test_a_narrow_terminal_loses_whole_columns_and_nothing_that_matters(
    terminal: Callable[[int], list[str]], columns: int, heads: list[str]
) -> None:
    lines = terminal(columns)

    assert re.split(r"\s{2,}", lines[0].strip()) == heads
    assert max(map(len, lines)) <= columns
    text = " ".join(lines)
    assert "…" not in text
    for run in NARROW:
        [row] = [line for line in lines if line.startswith(f"{run.id} ")]
        assert f"{run.done}/{run.target}" in row
        assert str(run.state.state) in row
        assert all(word in text for word in f"{run.state.stage} {run.state.cause} {run.problem}".split())
    assert ("━" in lines[2]) == (columns >= 160)
    # Before a file is wide enough for all of it, a problem stands below, with the name of its run.
    assert (f"! {NARROW[0].id}: rolled back" in text) == ("last problem" not in heads)


def test_a_terminal_without_runs_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with render.live_status() as live:
        render.show(live, [], "SLURM did not answer")

    assert capsys.readouterr().out.split("\n")[:2] == ["no run yet", "SLURM did not answer"]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_title_never_breaks_a_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    console = rich.console.Console(width=columns)
    monkeypatch.setattr(render, "_console", lambda: console)
    names = ["coco_univip_of_a_long_name.fork1-01234567", "proposals-01234567"]

    render.fact_table(" -> ".join(names), [("data.root", "/x")])

    out = capsys.readouterr().out
    assert all(name in out for name in names)
    assert out.splitlines()[-1].split() == ["data.root", "/x"]


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
