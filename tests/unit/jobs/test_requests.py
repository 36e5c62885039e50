import json
from pathlib import Path

from jobs.requests import Request, Stage, stages_of


def write_attempt(
    run_dir: Path, number: int, stage: str, exit_code: int | None, started: float = 1.0
) -> None:
    folder = run_dir / "attempts" / f"{number:04d}"
    folder.mkdir(parents=True)
    document = {
        "number": number,
        "stage": stage,
        "host": "elsewhere",
        "pid": 1,
        "start_ticks": 1,
        "slurm_job_id": "",
        "started": started,
        "ended": None if exit_code is None else started + 1,
        "exit_code": exit_code,
        "cause": "",
    }
    (folder / "attempt.json").write_text(json.dumps(document))


def test_a_stage_is_done_once_an_attempt_of_it_succeeded(tmp_path: Path) -> None:
    stage = Stage("train", "univip-1")
    assert not stage.is_done(tmp_path)

    write_attempt(tmp_path / "univip-1", 1, "train", 75)
    write_attempt(tmp_path / "univip-1", 2, "train", None)
    write_attempt(tmp_path / "univip-1", 3, "evaluate", 0)
    assert not stage.is_done(tmp_path)

    write_attempt(tmp_path / "univip-1", 4, "train", 0)
    assert stage.is_done(tmp_path)


def test_a_request_of_a_newer_version_of_the_code_can_be_read(tmp_path: Path) -> None:
    request = Request("train", [Stage("train", "univip-1")], unfinished=Request("pipeline", []))
    request.save(tmp_path)
    document = json.loads((tmp_path / "request.json").read_text())
    document["weather"] = document["unfinished"]["weather"] = "fine"
    document["stages"][0]["weather"] = "fine"
    (tmp_path / "request.json").write_text(json.dumps(document))

    assert Request.load(tmp_path) == request


def test_merged_shards_are_done(tmp_path: Path) -> None:
    write_attempt(tmp_path / "boxes", 1, "shard:0", 0)
    assert not Stage("shards", "boxes").is_done(tmp_path)

    write_attempt(tmp_path / "boxes", 2, "merge", 0)
    assert Stage("shards", "boxes").is_done(tmp_path)


def test_an_evaluation_asked_for_again_is_not_done(tmp_path: Path) -> None:
    write_attempt(tmp_path / "run", 2, "evaluate", 0)

    assert Stage("evaluate", "run", after=1).is_done(tmp_path)
    assert not Stage("evaluate", "run", after=2).is_done(tmp_path)

    write_attempt(tmp_path / "run", 3, "evaluate", 0, started=0.5)  # on a node whose clock is behind
    assert Stage("evaluate", "run", after=2).is_done(tmp_path)


def test_an_evaluation_of_a_half_trained_network_is_not_that_of_the_trained_one(tmp_path: Path) -> None:
    write_attempt(tmp_path / "run", 1, "train", 75)
    write_attempt(tmp_path / "run", 2, "evaluate", 0)
    assert not Stage("evaluate", "run").is_done(tmp_path)

    write_attempt(tmp_path / "run", 3, "train", 0)
    assert not Stage("evaluate", "run").is_done(tmp_path)

    write_attempt(tmp_path / "run", 4, "evaluate", 0, started=0.5)  # on a node whose clock is behind
    assert Stage("evaluate", "run").is_done(tmp_path)


def kinds(command: str, proposals: str) -> list[tuple[str, str]]:
    return [(stage.kind, stage.run) for stage in stages_of(command, "run", proposals)]


def test_a_pipeline_makes_boxes_trains_and_evaluates() -> None:
    boxes = [("prepare", "boxes"), ("shards", "boxes"), ("merge", "boxes")]

    assert kinds("pipeline", "boxes") == [*boxes, ("train", "run"), ("evaluate", "run")]
    assert kinds("train", "boxes") == [("train", "run")]
    assert kinds("evaluate", "boxes") == [("evaluate", "run")]


def test_a_method_without_boxes_gets_its_index_in_its_own_run() -> None:
    assert kinds("pipeline", "") == [("prepare", "run"), ("train", "run"), ("evaluate", "run")]
    assert kinds("train", "") == [("prepare", "run"), ("train", "run")]


def test_a_request_survives_its_file(tmp_path: Path) -> None:
    unfinished = Request("pipeline", stages_of("pipeline", "run", "boxes"))
    request = Request("evaluate", [Stage("evaluate", "run", after=6)], unfinished=unfinished)

    request.save(tmp_path)

    assert Request.load(tmp_path) == request
    assert Request.load(tmp_path / "elsewhere") is None
