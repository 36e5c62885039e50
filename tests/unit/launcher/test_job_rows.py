"""The jobs that /metrics shows: known without waiting, asked for once, and none where there is no answer."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from jobs.outcomes import write_json
from launcher import queue
from launcher.dash import routes_of
from launcher.errors import SlurmUnavailableError
from launcher.job_rows import JobRows, Row
from launcher.slurm import NEVER, JobState
from monitoring.server import Request


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A training that waits for its boxes, which another run makes; and one that SLURM does not know."""
    jobs = [
        {"stage": "shards", "run": "boxes-1", "id": "6"},
        {"stage": "train", "run": "a-1", "id": "7"},
        {"stage": "evaluate", "run": "a-1", "id": "8"},
    ]
    for run, mine in {
        "a-1": jobs,
        "boxes-1": jobs,
        "old-1": [{"stage": "train", "run": "old-1", "id": "5"}],
    }.items():
        (tmp_path / run).mkdir()
        write_json(tmp_path / run / "jobs.json", {"request": "r", "jobs": mine})
    (tmp_path / "local-1").mkdir()
    return tmp_path


def answered(rows: JobRows) -> list[Row]:
    """The rows once the thread that asks is through."""
    rows()
    for thread in [each for each in threading.enumerate() if each.name == "jobs"]:
        thread.join(10)
    return rows()


def test_each_run_has_the_jobs_that_work_on_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "6": JobState("RUNNING", "None"),
        "7": JobState("PENDING", "Dependency"),
        "8": JobState("PENDING", NEVER),
        "5": JobState("FAILED", "NonZeroExitCode"),
        "9": JobState("RUNNING", "None"),  # of somebody else's making
    }
    calls = []
    monkeypatch.setattr(queue, "queue", lambda user: calls.append(1) or said)
    rows = JobRows(runs)

    assert answered(rows) == [
        ("a-1", "PENDING", "Dependency"),
        ("a-1", "PENDING", NEVER),
        ("boxes-1", "RUNNING", "None"),
    ]
    for _ in range(5):
        answered(rows)
        answered(JobRows(runs))  # what another process knows is read from its file
    assert len(calls) == 1


def test_a_scrape_does_not_wait_for_slurm(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_answer, calls = threading.Event(), []

    def slow(user: int) -> dict[str, JobState]:
        calls.append(1)
        may_answer.wait(20)
        return {"7": JobState("RUNNING", "None")}

    monkeypatch.setattr(queue, "queue", slow)
    rows = JobRows(runs)

    begun = time.monotonic()
    assert [rows() for _ in range(100)] == [[]] * 100
    assert time.monotonic() - begun < 10
    may_answer.set()
    assert answered(rows) == [("a-1", "RUNNING", "None")]
    assert len(calls) == 1


def test_without_an_answer_there_are_no_rows(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(user: int) -> dict[str, JobState]:
        raise SlurmUnavailableError("no squeue", fix="none")

    monkeypatch.setattr(queue, "queue", fail)

    assert answered(JobRows(runs)) == []


def test_slurm_is_not_asked_where_no_run_was_given_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "queue", lambda user: pytest.fail("asked"))
    (tmp_path / "local-1").mkdir()

    assert answered(JobRows(tmp_path)) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "local-1"]


def test_a_damaged_run_hides_no_other(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        queue, "queue", lambda user: {"6": JobState("RUNNING", "None"), "7": JobState("RUNNING", "None")}
    )
    (runs / "a-1" / "jobs.json").write_text('{"request": "r"}')

    assert answered(JobRows(runs)) == [("boxes-1", "RUNNING", "None")]


def test_what_the_page_serves_holds_them(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "queue", lambda user: {"7": JobState("RUNNING", "None")})
    routes = routes_of(runs)

    def metrics() -> str:
        return bytes(routes["/metrics"](Request("/metrics", {})).body).decode()  # type: ignore[arg-type]

    deadline = time.monotonic() + 20
    while 'univip_slurm_jobs{run="a-1",state="RUNNING",reason="None"} 1\n' not in metrics():
        assert time.monotonic() < deadline
        time.sleep(0.05)
