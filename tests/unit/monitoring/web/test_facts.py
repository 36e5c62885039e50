"""What became of a run: costs, times, and what of its files may be shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.journal import Journal
from monitoring.web import facts
from monitoring.web.history import History


def faults_of(run_dir: Path) -> list[dict[str, Any]]:
    history = History(run_dir)
    history.update()
    return facts.faults(history, facts.attempts(run_dir))


def test_every_fault_is_told_with_its_cost(eventful: Any) -> None:
    found = {each["kind"]: each for each in faults_of(eventful.run_dir)}

    assert list(found) == [
        *("skip", "rollback", "checkpoint_failed", "restart", "corruption", "interruption", "image_failed"),
    ]
    assert (found["skip"]["data_step"], found["skip"]["steps_lost"]) == (104, 1)
    # Back from 155 to 100; the last record was of 150, and 160 came 5 s of restoring and 60 steps later.
    assert (found["rollback"]["steps_lost"], found["rollback"]["seconds_lost"]) == (55, 65)
    # 200 was reached, 100 restored, and 210 came 21 s and 110 steps later.
    assert (found["restart"]["steps_lost"], found["restart"]["seconds_lost"]) == (100, 131)
    # Nothing was lost but the time between the two attempts.
    assert (found["interruption"]["steps_lost"], found["interruption"]["seconds_lost"]) == (0, 1020)


def test_what_cost_nothing_is_told_too_whichever_rank_says_it(eventful: Any) -> None:
    with Journal(eventful.run_dir, attempt=3, source="agent0") as agent:
        agent.record("preflight", host="node7", what="cuda:3 computes wrongly")
    with Journal(eventful.run_dir, attempt=3, rank=3) as rank:
        rank.record("stall", data_step=7, phase="data", seconds=9.0)
    with Journal(eventful.run_dir, attempt=3, rank=0) as rank:
        rank.record("straggler", data_step=9, slowest=2, ratio=1.6)
        rank.record("collapse", data_step=11, embedding_std=0.01)

    told = {each["kind"]: each["text"] for each in faults_of(eventful.run_dir)}

    assert told["preflight"] == "node node7 failed its pre-flight and is left out: cuda:3 computes wrongly"
    assert told["stall"] == "rank 3 takes far longer than usual in data"
    assert told["straggler"] == "rank 2 is slower than the others, step after step"
    assert told["collapse"] == "the embeddings are near one point"


def test_each_kind_of_fault_has_a_mark_of_its_own_on_the_page() -> None:
    script = (Path(facts.__file__).parent / "static" / "marks.js").read_text(encoding="utf-8")
    paths = dict(re.findall(r'^  (\w+): \{ path: "([^"]+)"', script, flags=re.MULTILINE))

    assert set(paths) == set(facts.FAULTS)
    assert len(set(paths.values())) == len(paths)


def test_the_time_spent_adds_up_to_the_time_that_passed(eventful: Any) -> None:
    history = History(eventful.run_dir)
    history.update()
    tries = facts.attempts(eventful.run_dir)

    spent = facts.time_spent(history, tries, is_over=True, now=0.0)

    assert sum(spent.values()) == pytest.approx(tries[-1]["ended"] - tries[0]["started"])
    assert spent["useful"] == pytest.approx(400)  # a second each
    assert spent["redone"] == pytest.approx(50 + 100)
    assert spent["between"] == pytest.approx(1000)
    assert spent["overhead"] == pytest.approx(5 + 21 + 10)


def test_a_lost_attempt_ends_with_its_last_record(eventful: Any) -> None:
    """A machine that died wrote no end; the time until the next attempt is nobody's."""
    first = facts.attempts(eventful.run_dir)[0]
    eventful.attempt(1, 0, None)
    history = History(eventful.run_dir)
    history.update()

    spent = facts.time_spent(history, facts.attempts(eventful.run_dir), is_over=True, now=0.0)

    assert first["ended"] is not None
    assert spent["between"] == pytest.approx(1000)


@pytest.mark.parametrize(
    ("shown", "hidden"),
    [
        ("…/demo-data", "/scratch/me/demo-data"),
        ("root: …/coco, next", "root: /data/sets/coco, next"),
        ('File "…/train.py", line 3', 'File "/usr/lib/python3/train.py", line 3'),
        ("[Errno 28] No space left: '…/y'", "[Errno 28] No space left: '/scratch/x/y'"),
        ("…/x", "~/secret/x"),
        ("and …/x", "and file:///home/x"),
        ("3/4 of the images, km/h, a/b.jpg", "3/4 of the images, km/h, a/b.jpg"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("https://(hidden)@example.org/a", "https://me:pw@example.org/a"),
        ("token=(hidden) next", "token=abc123 next"),
        ("WANDB_API_KEY: (hidden)", "WANDB_API_KEY: 0123abc"),
        ("'password': '(hidden)'", "'password': 'hunter2'"),
        ("loss 3.2", "loss 3.2"),
    ],
)
def test_paths_and_secrets_stay_here(shown: str, hidden: str) -> None:
    assert facts.scrub(hidden) == shown


@given(
    st.lists(st.text(alphabet="abcXYZ09_.-", min_size=1, max_size=8), min_size=2, max_size=5),
    st.sampled_from(["", " ", "'", '"', "=", "(", "[", "\t", ","]),
)
def test_no_folder_of_an_absolute_path_is_shown(parts: list[str], before: str) -> None:
    folder = "/" + "/".join(parts[:-1]) + "/"

    assert folder not in facts.scrub(f"{before}{folder}{parts[-1]}")


def test_of_the_configuration_secrets_are_left_out(new_run: Callable[[str], Any]) -> None:
    run = new_run("a-1")
    (run.run_dir / "config.yaml").write_text(
        "train:\n  seed: 3\ndata:\n  root: /data/coco\n"
        "cluster:\n  extra:\n    api_key: abc\n    x: token=abc\n"
    )

    assert facts.configuration(run.run_dir) == [
        ("train.seed", "3"),
        ("data.root", "…/coco"),
        ("cluster.extra.api_key", "(hidden)"),
        ("cluster.extra.x", "token=(hidden)"),
    ]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"[1, 2]", b"a: [", b"{" * 3000, b"a: !!python/none 1"]
)
def test_a_configuration_that_cannot_be_read_is_none(new_run: Callable[[str], Any], content: bytes) -> None:
    run = new_run("a-1")
    (run.run_dir / "config.yaml").write_bytes(content)

    assert facts.configuration(run.run_dir) == []


def test_logs_are_those_of_the_run_and_no_link_leads_out_of_it(
    new_run: Callable[[str], Any], tmp_path: Path
) -> None:
    run = new_run("a-1")
    (tmp_path / "secret").write_text("secret")
    logs = run.run_dir / "logs"
    logs.mkdir()
    (logs / "train.log").write_text("one\n/home/me/x password=abc\n")
    (logs / "link.log").symlink_to(tmp_path / "secret")

    assert facts.log_files(run.run_dir) == ["logs/train.log"]
    assert facts.log_tail(run.run_dir, "logs/train.log") == ["one", "…/x password=(hidden)"]


def test_of_a_long_log_the_last_whole_lines_are_shown(new_run: Callable[[str], Any]) -> None:
    run = new_run("a-1")
    (run.run_dir / "logs").mkdir()
    (run.run_dir / "logs" / "a.log").write_text("".join(f"line {number}\n" for number in range(20_000)))

    lines = facts.log_tail(run.run_dir, "logs/a.log")

    first = int(lines[0].split()[1])
    assert lines == [f"line {number}" for number in range(first, 20_000)]
    assert sum(map(len, lines)) < 66_000


def test_values_are_safe_for_json() -> None:
    nan = float("nan")

    assert facts.clean({"a": [nan, float("inf"), -float("inf"), 1, None, True], "/x/y": "\ud800"}) == {
        "a": ["NaN", "Infinity", "-Infinity", 1, None, True],
        "…/y": "?",
    }
