"""What a user can get wrong: every mistake is three lines, the right exit status, and nothing is changed."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from jobs.attempts import attempt
from jobs.outcomes import write_json
from launcher import submission
from launcher.cli.main import run

Tree = dict[Path, bytes]


def photograph(path: Path, number: int = 0, size: tuple[int, int] = (80, 80)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, (number * 40, 90, 60)).save(path)


def annotate(root: Path, split: str, document: Any) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    text = document if isinstance(document, str) else json.dumps(document)
    (root / "annotations" / f"instances_{split}.json").write_text(text)


def images(*numbers: int) -> dict[str, Any]:
    rows = [{"id": n, "file_name": f"{n}.png", "width": 80, "height": 80} for n in numbers]
    return {"images": rows, "annotations": [], "categories": []}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A COCO data set of four photographs in the split `small`, and many that are none."""
    root = tmp_path / "data"
    for number in range(4):
        photograph(root / "images" / "small" / f"{number}.png", number)
    annotate(root, "small", images(0, 1, 2, 3))
    annotate(root, "list", "[1, 2]")
    annotate(root, "other", {"info": {}, "annotations": []})
    annotate(root, "cut", '{"images": [{"id": 1,')
    annotate(root, "empty", {"images": [], "annotations": []})
    annotate(root, "text", {"images": [{"id": "1", "file_name": "1.png", "width": 80, "height": 80}]})
    annotate(root, "escape", {"images": [{**images(0)["images"][0], "file_name": "../../secret.png"}]})
    annotate(root, "gone", images(7, 8))
    return root


@pytest.fixture
def submit(root: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`univip submit pipeline` on the data set; nothing is started."""
    monkeypatch.setattr(submission, "start_local", lambda *_: 42)

    def submit(*overrides: str) -> int:
        data = [f"data.root='{root}'", *([] if "data=folder" in overrides else ["data.split=small"])]
        return run(["submit", "pipeline", *data, "debug=small", "train.global_batch=4", *overrides])

    return submit


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The last error, which must have its three lines; it may follow the plan."""

    def said() -> list[str]:
        lines = capsys.readouterr().err.splitlines()
        assert lines[-3].startswith("univip: "), lines
        assert lines[-2].startswith("  where: "), lines
        assert lines[-1].startswith("  fix:   "), lines
        assert "Traceback" not in "".join(lines)
        return lines[-3:]

    return said


def tree(folder: Path) -> Tree:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("data.root=/nowhere/at/all", "`data.root` must be an existing folder"),
        ("data.root=/etc/passwd", "`data.root` must be an existing folder"),
        ("data.split=large", "split `large` must have `instances_large.json`"),
        ("data.split=list", "must be a COCO object with a list `images`"),
        ("data.split=other", "must be a COCO object with a list `images`"),
        ("data.split=cut", "annotations must be JSON"),
        ("data.split=empty", "split `empty` must hold images"),
        ("data.split=text", "every image must have whole numbers"),
        ("data.split=escape", "a relative `file_name`"),
        ("data.split=gone", "split `gone` must hold a photograph that exists"),
        ("data.split=[small,small]", "image ids must be unique over all splits"),
        ("data.max_pixels=100", "at least one usable photograph, but has 4 too_large"),
        ("evaluate.split=large", "split `large` must have `instances_large.json`"),
    ],
)
def test_data_that_cannot_be_used_are_refused_before_anything_is_made(
    submit: Callable[..., int], said: Callable[[], list[str]], runs: Path, overrides: str, says: str
) -> None:
    assert submit(overrides) == 1

    assert says in said()[0]
    assert not runs.exists()


def test_a_folder_without_a_usable_photograph_is_refused_with_their_names(
    submit: Callable[..., int], said: Callable[[], list[str]], runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "hello.jpg").write_text("hello")
    (tmp_path / "letters" / "empty.png").touch()

    assert submit("data=folder", f"data.root='{tmp_path}/letters'") == 1

    what, where, _ = said()
    assert "but has 2 corrupt" in what
    assert "empty.png" in where
    assert not runs.exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trian.epochs=3", "`trian.epochs` must be a known key"),
        ("model=resnet34", "`model` must be one of resnet18, resnet50, tiny, but is `resnet34`"),
        ("train.epochs=many", "`train.epochs` must be a number, but is `many`"),
        ("train.deterministic=perhaps", "`train.deterministic` must be true or false"),
        ("proposals.min_sizes=64", "`proposals.min_sizes` must be a list of whole numbers"),
        ("proposals.min_sizes=[96,64]", "must be whole numbers of at least 1, rising"),
        ("views.min_overlap=8", "`views.min_overlap` must be at least the smallest"),
        ("train.seed=-1", "`train.seed` must be from 0"),
        ("train.global_batch=0", "`train.global_batch` must be at least 1"),
        ("train.epochs=nan", "`train.epochs` must be greater than 0"),
        ("cluster.extra.gres=gpu:8", "the configuration must compose, but does not"),
        ("paths.mode=070", "`paths.mode` must be three octal digits"),
        ("data.split=large", "split `large` must have"),
        ("evaluate.split=large", "split `large` must have"),
    ],
)
def test_the_fix_of_a_mistake_can_be_typed(
    submit: Callable[..., int],
    said: Callable[[], list[str]],
    capsys: pytest.CaptureFixture[str],
    override: str,
    says: str,
) -> None:
    assert submit(override, "--dry-run") in (1, 2)
    what, _, fix = said()
    assert says in what

    typed = shlex.split(fix.removeprefix("  fix:   "), comments=True)
    one_split = ["data.split=small"] if "instances_" in what else []  # of the many bad ones beside it

    assert submit(*typed, *one_split, "--dry-run") == 0, capsys.readouterr().err


def test_the_examples_of_the_help_can_be_typed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a shell, which expands what it expands; `/data/coco` is not here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    photograph(tmp_path / "photographs" / "a.png")
    assert run(["submit", "--help"]) == 0
    examples = re.findall(r"^ *(univip submit pipeline .*)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(examples) == 2

    for example in examples:
        typed = f'univip() {{ printf "%s\\n" "$@"; }}; {example.replace("/data/coco", "~/photographs")}'
        told = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=True).stdout
        words = [word for word in told.splitlines() if word not in ("--wait", "data=coco")]

        assert run([*words, "data=folder", "--dry-run"]) == 0, capsys.readouterr().err
        assert f"root: {tmp_path}/photographs\n" in capsys.readouterr().out


@pytest.mark.parametrize("inner", ["small", "images/small"])
def test_a_plain_folder_has_no_splits(
    said: Callable[[], list[str]],
    capsys: pytest.CaptureFixture[str],
    runs: Path,
    tmp_path: Path,
    inner: str,
) -> None:
    """Or the photographs of all splits would be trained on, those for validation too."""
    for folder in (inner, "val"):
        photograph(tmp_path / "my data" / folder / "a.png")
    data = ["data=folder", f"data.root='{tmp_path}/my data'"]

    assert run(["submit", "pipeline", *data, "data.split=small", "--dry-run"]) == 2
    what, _, fix = said()
    [typed] = shlex.split(fix.removeprefix("  fix:   "), comments=True)

    assert "`data.split` must be left out with data=folder" in what
    assert typed == f"data.root='{tmp_path}/my data/{inner}'"
    assert run(["submit", "pipeline", "data=folder", typed, "--dry-run"]) == 0
    assert "images     1\n" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["gone", "[small,val]"])
def test_of_a_split_that_is_no_folder_none_is_named(
    submit: Callable[..., int], said: Callable[[], list[str]], split: str
) -> None:
    assert submit("data=folder", f"data.split={split}") == 2

    assert said()[2] == "  fix:   leave data.split out; or data=coco, for splits that have annotations"
    assert submit("data=folder", f"evaluate.split={split}") == 2
    assert said()[2] == "  fix:   leave evaluate.split out"


def test_who_names_the_folder_of_the_photographs_is_told_the_one_above(
    submit: Callable[..., int], said: Callable[[], list[str]], root: Path
) -> None:
    assert submit(f"data.root='{root}/images'") == 1
    [typed] = shlex.split(said()[2].removeprefix("  fix:   "))

    assert typed == f"data.root={root}"
    assert submit(typed, "--dry-run") == 0


@pytest.mark.parametrize("value", ["data.root=", "data.root=''"])
def test_an_empty_root_is_not_the_current_folder(
    submit: Callable[..., int], said: Callable[[], list[str]], value: str
) -> None:
    assert submit(value) == 2

    assert said()[0] == "univip: `data.root` must be a folder, but is empty."


def test_an_empty_variable_means_the_usual_folder_of_runs(
    submit: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("UNIVIP_RUNS", "")
    monkeypatch.chdir(tmp_path)

    assert submit("--dry-run") == 0

    assert f"directory  {tmp_path}/runs/univip-" in capsys.readouterr().out


def test_a_folder_of_runs_that_cannot_be_written_is_named(
    submit: Callable[..., int],
    said: Callable[[], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("keep me")
    monkeypatch.setenv("UNIVIP_RUNS", str(tmp_path / "file" / "runs"))

    assert submit() == 2

    assert "`paths.runs` must be a folder that can be written" in said()[0]
    assert (tmp_path / "file").read_text() == "keep me"


def test_a_full_disk_is_three_lines_and_the_stored_run_stays_as_it_was(
    submit: Callable[..., int], said: Callable[[], list[str]], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submit() == 0
    before = tree(runs)

    def full(self: Path, *arguments: Any, **options: Any) -> int:
        raise OSError(28, os.strerror(28), str(self))

    monkeypatch.setattr(Path, "write_text", full)

    assert submit() == 1
    assert "No space left on device" in said()[0]
    assert tree(runs) == before


def change(root: Path) -> None:
    annotate(root, "small", images(0, 1, 2))


def lose_annotations(root: Path) -> None:
    shutil.rmtree(root / "annotations")


def lose_everything(root: Path) -> None:
    shutil.rmtree(root)


@pytest.mark.parametrize(
    ("edit", "code", "says"),
    [
        (change, 5, "must be those of run"),
        (lose_annotations, 1, "must have `instances_small.json`"),
        (lose_everything, 1, "`data.root` must be an existing folder"),
    ],
)
def test_a_run_whose_data_changed_is_not_resumed_and_stays_as_it_was(
    submit: Callable[..., int],
    said: Callable[[], list[str]],
    root: Path,
    runs: Path,
    edit: Callable[[Path], None],
    code: int,
    says: str,
) -> None:
    assert submit() == 0
    before = tree(runs)
    edit(root)

    assert run(["resume", "@last"]) == code

    assert says in said()[0]
    assert tree(runs) == before


def test_photographs_in_folders_of_other_names_are_the_same_run_with_a_new_index(
    submit: Callable[..., int], root: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit() == 0
    [boxes] = runs.glob("proposals-*")
    name = capsys.readouterr().out
    for kind in ("prepare", "shards", "merge"):
        with attempt(boxes, kind) as mine:
            mine.exit_code = 0
    write_json(boxes / "images.json", {"layout": "of other folders", "failed": {}})
    write_json(boxes / "proposals.json", {"failed": {}})

    assert submit() == 0

    told = capsys.readouterr()
    assert told.out == name
    assert "stages     prepare, shards (done), merge (done) of" in told.err


def test_photographs_left_out_are_named_before_and_after(
    submit: Callable[..., int], root: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "images" / "small"
    photograph(folder / "huge.png", size=(300, 200))
    (folder / "letter.jpg").write_text("hello")

    assert submit("data=folder", f"data.root='{folder}'", "data.max_pixels=10000") == 0
    [boxes], [run_dir] = runs.glob("proposals-*"), runs.glob("univip-*")
    plan = capsys.readouterr().err
    write_json(boxes / "images.json", {"failed": {"corrupt": ["letter.jpg"]}})
    write_json(boxes / "proposals.json", {"failed": {"missing": [f"{n}.jpg" for n in range(11)]}})
    assert run(["show", run_dir.name]) == 0
    shown = capsys.readouterr().out

    assert "left out   1 corrupt: letter.jpg\n" in plan
    assert "left out   1 too_large: huge.png\n" in plan
    assert "1 corrupt: letter.jpg" in shown
    names = ", ".join(f"{number}.jpg" for number in range(10))
    assert f"11 missing: {names} and others: {boxes}" in " ".join(shown.split())


def test_a_run_in_another_folder_is_found_by_what_it_says(
    submit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(f"paths.runs='{tmp_path}/my runs'") == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("next")]

    for command in line.removeprefix("next").split("; "):
        words = shlex.split(command)
        assert words[:3] == ["univip", "--runs", f"{tmp_path}/my runs"]
        assert run([word for word in words[1:] if word not in ("-f", "--watch")]) == 0


@pytest.mark.parametrize("verb", ["show", "logs", "cancel", "resume", "digest", "export", "audit"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("univip", "`univip` must name one run, but names 2"),
        ("byol-1", "`byol-1` must name a run, but names none; the nearest are"),
        ("/etc", "`/etc` must name a run"),
    ],
)
def test_a_name_of_no_run_or_of_two_is_refused(
    submit: Callable[..., int],
    said: Callable[[], list[str]],
    runs: Path,
    verb: str,
    name: str,
    says: str,
) -> None:
    for seed in (1, 2):
        assert submit(f"train.seed={seed}") == 0
    before = tree(runs)

    assert run([verb, name]) == 3

    assert says in said()[0]
    assert tree(runs) == before


def test_what_a_missing_digest_advises_can_be_typed(
    submit: Callable[..., int], said: Callable[[], list[str]]
) -> None:
    assert submit() == 0
    assert run(["digest", "@last"]) == 1
    _, univip, *words = shlex.split(said()[2].removeprefix("  "))

    assert univip == "univip"
    assert run(words) == 0


def test_a_mistake_of_the_command_line_is_one_sentence(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["submit"],
        ["submit", "everything"],
        ["logs", "x", "-n", "-1"],
        ["logs", "x", "--rank", "a"],
    ):
        assert run(words) == 2

        _, where, fix = capsys.readouterr().err.splitlines()
        assert where == "  where: the command line"
        assert fix.endswith(" --help")


def test_logs_of_nothing_say_so(submit: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert submit() == 0

    assert run(["logs", "@last", "--rank", "3"]) == 0

    assert capsys.readouterr().err.endswith("nothing was recorded or printed by rank 3 yet\n")


def test_the_coco_recipe_on_slurm_is_what_the_paper_says(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """118,287 photographs, 800 epochs, batch 512 on one node of 8 GPUs."""
    root = tmp_path / "coco"
    photograph(root / "train2017" / "0.jpg")
    rows = [{"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in range(118_287)]
    annotate(root, "train2017", {"images": rows, "annotations": []})

    overrides = [f"data.root='{root}'", "experiment=coco_univip", "cluster=slurm", "cluster.partition=gpu"]
    assert run(["submit", "pipeline", "--dry-run", *overrides]) == 0

    out = capsys.readouterr().out
    assert "images     118,287\n" in out
    assert "shards     24 of about 4,929 images\n" in out
    assert "training   184,824 data steps of 512 images\n" in out
    scripts = {part.partition("\n")[0]: part for part in out.split("# sbatch script of ")[1:]}
    assert list(scripts) == ["prepare", "shards", "merge", "train", "evaluate"]
    assert all("#SBATCH --partition=gpu\n" in script for script in scripts.values())
    assert "#SBATCH --array=0-23%24\n" in scripts["shards"]
    for line in ("--gpus-per-node=8", "--nodes=1-1", "--time=1440", "--signal=USR2@120", "--requeue"):
        assert f"#SBATCH {line}\n" in scripts["train"]
    assert "--gpus" not in scripts["prepare"] + scripts["shards"] + scripts["merge"]
    for before, after in zip(list(scripts)[:-1], list(scripts)[1:], strict=True):
        assert f"#SBATCH --dependency='afterok:<{before}>'\n" in scripts[after]
    assert not runs.exists()
