"""`univip proposals import`, `filter` and `export`, and the training that builds on what they make."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jobs.config import load
from launcher import render, submission
from launcher.cli.main import run

ROWS = [[[0, 0, 80, 64]], [[1, 2, 30, 40], [5, 6, 20, 20]], []]
Said = Callable[[], tuple[list[str], list[str]]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "my data"
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    images = []
    for number in range(3):
        PIL.Image.fromarray(np.full((64, 80, 3), 60 * number, np.uint8)).save(
            root / "train" / f"{number}.png"
        )
        images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 64})
    (root / "annotations" / "instances_train.json").write_text(json.dumps({"images": images}))
    return root


@pytest.fixture
def data(root: Path) -> list[str]:
    """What names the photographs on every command line."""
    return [f"data.root='{root}'", "data.split=train"]


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    path = tmp_path / "epoch=1.json"
    path.write_text(json.dumps({"bbox": [row[0] if len(row) == 1 else row for row in ROWS]}))
    return path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIVIP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(submission, "start_local", lambda *_: 42)
    return tmp_path / "runs"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Lines on stdout and on stderr since the last call."""

    def said() -> tuple[list[str], list[str]]:
        found = capsys.readouterr()
        return found.out.splitlines(), found.err.splitlines()

    return said


def refused(said: Said) -> list[str]:
    lines = said()[1][-3:]
    assert lines[0].startswith("univip: "), lines
    assert [line[:8] for line in lines[1:]] == ["  where:", "  fix:  "], lines
    return lines


def test_a_file_that_is_refused_leaves_no_run(
    tmp_path: Path, boxes: Path, data: list[str], runs: Path, said: Said
) -> None:
    wrong = tmp_path / "passwd"
    wrong.write_text("root:x:0:0\n")
    assert run(["proposals", "import", str(wrong), *data]) == 1
    refused(said)
    assert [path.name for path in runs.glob("proposals-*")] == []

    assert run(["proposals", "import", str(boxes), *data]) == 0
    assert len([*runs.glob("proposals-*")]) == 1


def test_training_builds_on_imported_boxes_as_the_import_says(
    boxes: Path, data: list[str], runs: Path, said: Said
) -> None:
    assert run(["proposals", "import", str(boxes), *data]) == 0
    [name], lines = said()
    assert "raw        3 boxes" in lines
    univip, *words = shlex.split(lines[-1].removeprefix("next"))

    assert univip == "univip"
    assert run(words) == 0
    plan = said()[1]
    assert f"stages     prepare (done), shards (done), merge (done) of {name}" in plan
    assert load(runs / name).proposals.source in words[-1]
    assert run(["status"]) == 0
    [line] = [line for line in said()[0] if name in line]
    assert "done" in line


def test_how_a_search_would_be_done_says_nothing_about_imported_boxes(
    boxes: Path, data: list[str], runs: Path, said: Said
) -> None:
    names = set()
    for more in ([], ["proposals.mode=single"], ["train.seed=3", "paths.mode=750"]):
        assert run(["proposals", "import", str(boxes), *data, *more]) == 0
        names |= set(said()[0])

    assert len(names) == 1
    assert run(["proposals", "import", str(boxes), *data, "proposals.max_iou=0.4"]) == 0
    assert names.isdisjoint(said()[0])


def test_json_tells_a_script_all_it_needs(boxes: Path, data: list[str], runs: Path, said: Said) -> None:
    assert run(["proposals", "import", "--json", str(boxes), *data]) == 0
    [line], _ = said()
    found = json.loads(line)

    assert found["boxes"] == {"raw": 3, "min_64": 1, "min_96": 0}
    assert Path(found["run_dir"]) == runs / found["run"]
    source = f"proposals.source={found['source']}"
    assert run(["submit", "train", "--dry-run", *data, source, "train.global_batch=2"]) == 0
    assert run(["proposals", "import", "--json", str(boxes), *data, source]) == 0


def test_what_was_imported_can_be_exported(
    boxes: Path, data: list[str], runs: Path, said: Said, tmp_path: Path
) -> None:
    assert run(["proposals", "import", str(boxes), *data]) == 0
    assert run(["proposals", "export", "@last", str(tmp_path / "back.json")]) == 0

    assert (tmp_path / "back.json").read_bytes() == boxes.read_bytes()
    assert said()[1][-1] == "1 images have no boxes: their rows are empty"
    assert run(["proposals", "export", "@last", str(tmp_path / "64.json"), "--min-size", "64"]) == 0
    assert json.loads((tmp_path / "64.json").read_text()) == {"bbox": [[0, 0, 80, 64], [], []]}
    assert run(["proposals", "export", "@last", str(tmp_path / "48.json"), "--min-size", "48"]) == 2
    assert "must be one of [64, 96] px" in refused(said)[0]
    assert not (tmp_path / "48.json").exists()


def test_a_picture_is_named_as_the_help_says(
    boxes: Path, data: list[str], runs: Path, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["proposals", "import", str(boxes), *data]) == 0
    said()

    assert run(["proposals", "show", "#2"]) == 0
    assert said()[0] == ["2.png"]
    assert run(["proposals", "show", "--help"]) == 0
    words = " ".join(" ".join(said()[0]).split())
    assert "(default: ID.png here, or ID-epoch-N.png with --sample)" in words


def test_all_that_is_made_is_as_open_as_paths_mode_says(
    boxes: Path, data: list[str], runs: Path, said: Said
) -> None:
    mine = os.umask(0o077)
    try:
        assert run(["proposals", "import", str(boxes), *data, "paths.mode=750"]) == 0
        assert run(["proposals", "filter", "@last", "proposals.max_iou=0.3"]) == 0
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(mine)

    names = [line for line in said()[0] if line.startswith("proposals-")]
    made = [path for name in names for path in (runs / name).rglob("*")]
    assert len({path.name for path in made if path.name in ("proposals.arrow", "attempts")}) == 2
    closed = [path for path in made if path.stat().st_mode & 0o077 != (0o050 if path.is_dir() else 0o040)]
    assert closed == []


def test_boxes_are_filtered_anew_into_the_run_that_training_looks_for(
    boxes: Path, data: list[str], runs: Path, said: Said
) -> None:
    limits = ["proposals.min_sizes=[20,40]", "proposals.max_iou=0.3"]
    assert run(["proposals", "import", "--json", str(boxes), *data]) == 0
    source = json.loads(said()[0][0])
    assert run(["proposals", "filter", source["run"], *limits, "--json"]) == 0
    filtered = json.loads(said()[0][0])
    assert filtered["boxes"] == {"raw": 3, "min_20": 2, "min_40": 1}

    words = [*data, f"proposals.source={source['source']}", *limits]
    assert run(["submit", "train", "--dry-run", *words]) == 0
    assert run(["proposals", "import", *[str(boxes), *data, *limits]]) == 0
    assert said()[0][-1] == filtered["run"]


@pytest.mark.parametrize("command", ["proposals", "train", "pipeline"])
def test_boxes_that_were_not_imported_are_not_searched_instead(
    boxes: Path, data: list[str], runs: Path, said: Said, command: str
) -> None:
    assert run(["submit", command, *data, "proposals.source=0123456789ab"]) == 5

    lines = refused(said)
    assert "must be imported before training, but are not" in lines[0]
    _, univip, *words = shlex.split(lines[2])
    assert univip == "univip"
    assert run([str(boxes) if word == "FILE" else word for word in words]) == 0
    assert not list(runs.glob("univip-*"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"bbox": [[], []]}', "the annotations list 3 images, the proposals have 2 rows"),
        (
            '{"bbox": [[], [[0, 0, 81, 5]], []]}',
            "box [0, 0, 81, 5] of row 1 is not inside image `train/1.png`",
        ),
        ('{"bbox": [[], []', "the file ends at byte 16"),
        ("[7]", "it is a int"),
        ("hello", "but is none of them"),
    ],
)
def test_a_bad_file_is_three_lines_and_no_store(
    data: list[str], runs: Path, said: Said, tmp_path: Path, content: str, says: str
) -> None:
    (tmp_path / "bad").write_bytes(content.encode("latin-1"))

    assert run(["proposals", "import", str(tmp_path / "bad"), *data]) == 1

    assert says in refused(said)[0]
    assert not list(runs.rglob("proposals.arrow"))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["import", "absent.json"], 1, "No such file"),
        (["import", "."], 1, "must be there and readable, but is not: Is a directory"),
        (["import", "FILE", "proposals.source=0123456789ab"], 2, "`proposals.source` must be"),
        (["import", "FILE", "proposals.source=elsewhere"], 2, "the 12 hexadecimal digits"),
        (["filter", "nothing", "proposals.max_iou=0.3"], 3, "`nothing` must name a run"),
        (["export", "nothing", "a.json"], 3, "`nothing` must name a run"),
    ],
)
def test_a_wrong_request_is_three_lines(
    boxes: Path, data: list[str], runs: Path, said: Said, words: list[str], code: int, says: str
) -> None:
    more = data if words[0] == "import" else []
    assert run(["proposals", *[str(boxes) if word == "FILE" else word for word in words], *more]) == code

    assert says in refused(said)[0]


def test_limits_that_make_no_other_run_are_refused(
    boxes: Path, data: list[str], runs: Path, said: Said
) -> None:
    assert run(["proposals", "import", str(boxes), *data]) == 0
    before = sorted(runs.iterdir())
    for limits, says in (
        ([], "what is filtered anew must be given by"),
        (["proposals.mode=fast"], "but `mode` is given"),
        (["train.seed=3"], "but `train.seed` is given"),
        (["proposals.max_iou=2"], "`proposals.max_iou` must be between 0 and 1"),
        (["proposals.min_sizes=[96,64]"], "rising"),
        (["proposals.max_iou=0.5"], "the limits must differ from those of"),
    ):
        assert run(["proposals", "filter", "@last", *limits]) == 2
        what, _, refused_fix = refused(said)
        assert says in what

    assert refused_fix == f"  fix:   univip proposals show '#0' {before[-1]}"
    assert sorted(runs.iterdir()) == before


def test_progress_without_a_terminal_is_plain_lines_with_speed_and_eta(
    monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    times = iter([0.0, 6.0, 7.0, 20.0])
    monkeypatch.setattr(render.time, "monotonic", lambda: next(times))
    with render.progress("reading", 4_000_000_000, "bytes") as tell:
        for done in (600_000_000, 700_000_000, 2_000_000_000):
            tell(done)

    assert said()[1] == [
        "reading  0.60/4.00 GB  100.0 MB/s  ETA 34 s",
        "reading  2.00/4.00 GB  100.0 MB/s  ETA 20 s",
    ]
