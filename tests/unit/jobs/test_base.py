import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

from jobs import base, proposals, slurm
from jobs.attempts import attempt, read_attempts
from jobs.config import Config, RunHeader, RunKind, load, load_header, store
from jobs.outcomes import Cause, Outcome
from jobs.unfit import failed_preflight
from monitoring.journal import read
from univip.config import DataConfig, DataFormat, ProposalsConfig, SearchEngine, SearchMode
from univip.data.scan import scan
from univip.errors import RollbackExhaustedError
from univip.observe import NullObserver


@pytest.fixture(autouse=True)
def _signals_and_umask_as_before() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    umask = os.umask(0o022)
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    os.umask(umask)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A proposals run of two photographs."""
    photographs, run = tmp_path / "photographs", tmp_path / "proposals-1"
    photographs.mkdir()
    run.mkdir()
    for number in range(2):
        PIL.Image.effect_noise((80, 70), 60 + number).save(photographs / f"{number}.png")
    data = DataConfig(format=DataFormat.folder, root=str(photographs))
    boxes = ProposalsConfig(
        mode=SearchMode.single, engine=SearchEngine.opencv, min_sizes=[8], shard_images=1, processes=1
    )
    fingerprint = scan(data).fingerprint
    store(Config(data=data, proposals=boxes), RunHeader(run.name, RunKind.proposals, fingerprint, 2), run)
    return run


def test_the_stages_of_the_boxes_leave_a_store_attempts_and_a_journal(run_dir: Path) -> None:
    for kind in ("prepare", "shard:1", "shards", "merge"):
        assert base.run_job(kind, str(run_dir)) == 0

    assert (run_dir / "proposals.arrow").exists()
    ended = [(each.stage, each.exit_code, each.cause) for each in read_attempts(run_dir)]
    assert ended == [(kind, 0, "done") for kind in ("prepare", "shard:1", "shards", "merge")]
    records = list(read(run_dir))
    assert {record["stage"] for record in records if record["kind"] == "attempt"} == {"proposals"}
    assert [record["state"] for record in records if record["kind"] == "run"][-1] == "done"
    assert [record["shard"] for record in records if record["kind"] == "shard"] == [1, 1, 0, 0, 1, 1]


def test_training_does_not_begin_on_a_damaged_store(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("prepare", "shards", "merge"):
        assert base.run_job(kind, str(run_dir)) == 0
    train = run_dir.parent / "univip-1"
    train.mkdir()
    header = replace(load_header(run_dir), id=train.name, kind=RunKind.train, proposals=run_dir.name)
    store(load(run_dir), header, train)
    path = run_dir / "proposals.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    assert base.run_job("train", str(train)) == 77

    error = capfd.readouterr().err
    assert "`proposals.arrow` must have the SHA-256" in error
    assert f"fix:   rm -f {path} {path.with_suffix('.json')}; univip resume {run_dir}" in error
    assert not list(train.glob("attempts/*/round-*"))


def test_an_element_of_a_long_array_searches_every_so_many_shards(run_dir: Path) -> None:
    base.run_job("prepare", str(run_dir))

    assert base.run_job("shard:0/1", str(run_dir)) == 0

    assert [record["shard"] for record in read(run_dir) if record["kind"] == "shard"] == [0, 0, 1, 1]
    assert base.run_job("merge", str(run_dir)) == 0


@pytest.mark.parametrize(("kind", "is_compiled"), [(RunKind.proposals, True), (RunKind.train, False)])
def test_the_first_stage_compiles_the_search_if_there_will_be_one(
    run_dir: Path, kind: RunKind, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, header = load(run_dir), load_header(run_dir)
    store(config, replace(header, kind=kind), run_dir)
    prepared: list[str] = []
    monkeypatch.setattr(proposals.pool, "load", prepared.append)

    assert base.run_job("prepare", str(run_dir)) == 0

    assert prepared == (["opencv"] if is_compiled else [])


@pytest.mark.parametrize(("mode", "expected"), [("700", 0o700), ("755", 0o755)])
def test_everything_in_a_run_is_as_open_as_the_configuration_says(
    run_dir: Path, mode: str, expected: int
) -> None:
    config = load(run_dir)
    store(replace(config, paths=replace(config.paths, mode=mode)), load_header(run_dir), run_dir)
    (run_dir / "config.yaml").chmod(expected & 0o666)

    for kind in ("prepare", "shards", "merge"):
        assert base.run_job(kind, str(run_dir)) == 0

    made = list(run_dir.rglob("*"))
    assert {path.name for path in made} > {"attempts", "0001", "attempt.json", "proposals.arrow", "journal"}
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (expected if path.is_dir() else expected & 0o666), path


def test_wrong_data_ends_with_77_and_three_lines(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run_dir.parent / "photographs" / "0.png").unlink()

    assert base.run_job("prepare", str(run_dir)) == 77

    said = capfd.readouterr().err
    assert "the photographs must be those the run was made for" in said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 3
    [mine] = read_attempts(run_dir)
    assert (mine.exit_code, mine.cause, mine.ended is None) == (77, "refused", False)
    assert mine.message == said.rstrip("\n")


def test_photographs_left_out_of_the_index_are_named_in_the_journal(run_dir: Path) -> None:
    (run_dir.parent / "photographs" / "letter.jpg").write_text("hello")
    config, header = load(run_dir), load_header(run_dir)
    store(config, replace(header, fingerprint=scan(config.data).fingerprint), run_dir)

    assert base.run_job("prepare", str(run_dir)) == 0

    [failed] = [record for record in read(run_dir) if record["kind"] == "image_failed"]
    assert (failed["path"], failed["reason"]) == ("letter.jpg", "corrupt")


def test_a_bug_ends_with_1_and_a_traceback(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proposals, "prepare", lambda *_, **__: 1 / 0)

    assert base.run_job("prepare", str(run_dir)) == 1

    assert "Traceback" in capfd.readouterr().err
    assert read_attempts(run_dir)[0].cause == "crash"


def test_a_spent_rollback_budget_ends_with_76(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def spent(*_: object) -> None:
        raise RollbackExhaustedError("the state went bad 6 times")

    monkeypatch.setattr(base, "_work", spent)

    assert base.run_job("evaluate", str(run_dir)) == 76
    assert "went bad" in capfd.readouterr().err


def test_a_second_process_on_the_run_is_refused_and_changes_nothing(
    run_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with attempt(run_dir, "merge"):
        assert base.run_job("prepare", str(run_dir)) == 5

    assert "already running" in capfd.readouterr().err
    assert not (run_dir / "images.arrow").exists()


def test_a_signal_makes_a_stage_ask_for_another_start(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(base, "_make_boxes", interrupted)

    assert base.run_job("shards", str(run_dir)) == 75

    assert (read_attempts(run_dir)[0].exit_code, read_attempts(run_dir)[0].cause) == (75, "stopped")
    assert [record["state"] for record in read(run_dir) if record["kind"] == "run"][-1] == "stopped"


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(("exit_code", "reports"), [(75, 0), (0, 1), (77, 1)])
def test_what_slurm_sends_after_an_attempt_has_ended_kills_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exit_code: int, reports: int
) -> None:
    """The process that watches would start the work again; before a requeue no time is left to report."""
    written: list[Path] = []
    monkeypatch.setattr(base, "_attempted", lambda *_: Outcome(exit_code, Cause.PREEMPTION))
    monkeypatch.setattr(base, "_write_report", written.append)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)

    assert base._attempt(kind, run_dir).exit_code == exit_code

    for number in (signal.SIGTERM, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    assert written == reports * [run_dir]


def test_a_stage_stops_once_its_parent_is_gone(run_dir: Path) -> None:
    """The stage's parent is a shell that is killed while the stage searches."""
    source = (
        "import time; from jobs import base; from pathlib import Path\n"
        f"def wait(*_): Path({str(run_dir / 'ready')!r}).touch(); time.sleep(30)\n"
        "base._make_boxes = wait; base._PARENT_POLL_S = 0.05; base._stop_without_parent()\n"
        f"raise SystemExit(base.run_job('shards', {str(run_dir)!r}))"
    )
    parent = subprocess.Popen(["/bin/sh", "-c", '"$0" -c "$1" & wait', sys.executable, source])
    deadline = time.monotonic() + 20
    while not (run_dir / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)

    parent.kill()
    parent.wait()

    while read_attempts(run_dir)[0].ended is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert read_attempts(run_dir)[0].exit_code == 75


@pytest.mark.parametrize("code", [75, 0])
def test_on_a_full_disk_a_stop_holds_but_nothing_counts_as_done(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(
        base, "_attempted", lambda *_: Outcome(code, Cause.PREEMPTION if code else Cause.DONE)
    )
    monkeypatch.setattr("jobs.attempts.Attempt.save", refuse)

    if code == 0:
        with pytest.raises(OSError, match="quota"):
            base.run_job("prepare", str(run_dir))
    else:
        assert base.run_job("prepare", str(run_dir)) == 75
        assert "quota" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "cause", "is_requeued"),
    [(75, Cause.PREEMPTION, True), (75, Cause.CANCELLED, False), (1, Cause.CRASH, False)],
)
def test_slurm_gets_an_exit_status_and_a_job_that_asks_for_it_goes_back_to_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, cause: Cause, is_requeued: bool
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(base, "_attempt", lambda *_: Outcome(code, cause))

    with pytest.raises(SystemExit) as ended:
        base.run_slurm_task("evaluate", str(tmp_path))

    assert ended.value.code == code
    asked = tmp_path / "asked"
    assert (asked.read_text() == "requeue 17\n") if is_requeued else not asked.exists()


@pytest.mark.parametrize(
    ("asked_before", "expected"), [("(null)", "node3"), ("node[7-8]", "node[7-8],node3")]
)
def test_a_job_that_goes_back_to_the_queue_is_not_given_an_unfit_node_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_before: str, expected: str
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho "JobId=17 ExcNodeList={asked_before}"\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(base, "_attempt", lambda *_: Outcome(75, Cause.NODE_FAILURE))
    with attempt(tmp_path, "train") as mine:
        failed_preflight(tmp_path, mine, "node3", "cuda:1: wrong", NullObserver())

    with pytest.raises(SystemExit):
        base.run_slurm_task("evaluate", str(tmp_path))

    requeue, show, update = (tmp_path / "asked").read_text().splitlines()
    assert (requeue, show) == ("requeue 17", "show job --oneliner 17")
    assert update == f"update JobId=17 ExcNodeList={expected}"


@pytest.mark.parametrize("kind", ["prepare", "train", "evaluate", "shard:1"])
def test_a_job_that_was_cancelled_while_it_started_does_not_begin(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The signal came in the prolog, and was lost."""
    scontrol = run_dir.parent / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {run_dir.parent}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(run_dir.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(base, "_work", lambda *_: pytest.fail("begun"))
    monkeypatch.setattr("jobs.agent.train", lambda *_: pytest.fail("begun"))
    (run_dir / "cancelled").touch()

    with pytest.raises(SystemExit) as ended:
        base.run_slurm_task(kind, str(run_dir))

    assert ended.value.code == 75
    [mine] = read_attempts(run_dir)
    assert (mine.stage, mine.exit_code, mine.cause) == (kind, 75, "cancelled")
    assert not (run_dir.parent / "asked").exists()


def test_nor_do_its_other_nodes(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setattr("jobs.agent.follow", lambda *_: pytest.fail("begun"))
    monkeypatch.setattr(slurm, "requeue", lambda *_, **__: pytest.fail("queued again"))
    (run_dir / "cancelled").touch()

    with pytest.raises(SystemExit) as ended:
        base.run_slurm_task("train", str(run_dir))

    assert ended.value.code == 75


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_signal_that_waited_for_the_job_to_start_is_a_request_to_stop(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    """It is delivered as soon as signals are let through, before there is an attempt."""
    queued_again: list[str] = []
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(slurm, "why_signalled", lambda *_, **__: (Cause.PREEMPTION, "preempted"))
    monkeypatch.setattr(slurm, "requeue", lambda here, **_: queued_again.append(here.job_id) or "")
    if is_cancelled:
        (run_dir / "cancelled").touch()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

    with pytest.raises(SystemExit) as ended:
        base.run_slurm_task("evaluate", str(run_dir))

    assert ended.value.code == 75
    assert queued_again == ([] if is_cancelled else ["17"])


def test_a_job_that_is_done_says_so_to_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(base, "_attempt", lambda *_: Outcome(0))

    base.run_slurm_task("evaluate", str(tmp_path))


@pytest.mark.parametrize("kind", ["train", "shard:3"])
@pytest.mark.parametrize("deaths", [2, 9])
def test_work_that_is_killed_is_started_again_within_the_same_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, deaths: int
) -> None:
    """The stand-in for the interpreter kills itself a few times."""
    (tmp_path / "python").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/starts\n'
        f"[ $(wc -l < {tmp_path}/starts) -gt {deaths} ] || kill -KILL $$\n"
    )
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    with pytest.raises(SystemExit) as ended:
        base.run_slurm_job(kind, "/runs/a-1")

    assert ended.value.code == (0 if deaths < 4 else 1)

    starts = (tmp_path / "starts").read_text().splitlines()
    assert set(starts) == {f"-m jobs.base in-slurm {kind} /runs/a-1"}
    assert len(starts) == min(deaths + 1, 4)


def test_an_attempt_says_who_owns_it(run_dir: Path) -> None:
    base.run_job("prepare", str(run_dir))

    document = json.loads((run_dir / "attempts" / "0001" / "attempt.json").read_text())
    assert document["pid"] == os.getpid()
