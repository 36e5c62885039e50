"""`univip export` and `univip digest`: which checkpoint is meant, and what is said where it cannot be had."""

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from jobs.config import Config, RunHeader, RunKind, store
from launcher.cli.main import run
from univip.checkpoint import layout
from univip.checkpoint.layout import FileEntry, Manifest
from univip.config import DataConfig


@pytest.fixture
def save(run_dir: Path) -> Callable[[int], Path]:
    """Writes a checkpoint with a backbone of one weight, and returns its tensor file."""

    def save(data_step: int) -> Path:
        folder = run_dir / "checkpoints" / layout.name_of(data_step)
        folder.mkdir(parents=True)
        file = folder / layout.TENSORS
        save_file({"online.backbone.weight": numpy.full(3, data_step, numpy.float32)}, file)
        files = {layout.TENSORS: FileEntry(*layout.checksum(file), tensors={})}
        manifest = Manifest(layout.FORMAT, data_step, data_step, 1, "", 0, {}, {}, files)
        (folder / layout.MANIFEST).write_text(manifest.to_json())
        return file

    return save


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_of_a_damaged_checkpoint_the_newest_whole_one_is_named(
    save: Callable[[int], Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [save(data_step) for data_step in (5, 10, 15, 20)]
    for file in files[2:]:
        damage(file)

    assert run(["export", "@last"]) == 1
    what, where, fix = capsys.readouterr().err.splitlines()
    typed = shlex.split(fix.removeprefix("  fix:   "), comments=True)

    assert "does not match its checksum" in what
    assert where == f"  where: {files[3]}"
    assert typed == ["--data-step", "10"]
    assert run(["export", "@last", *typed]) == 0
    assert load_file(tmp_path / "univip-1-step-000000010.safetensors")["weight"].tolist() == [10.0] * 3


def test_where_no_checkpoint_is_whole_none_is_named(
    save: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for data_step in (5, 10):
        damage(save(data_step))

    assert run(["export", "@last"]) == 1

    assert capsys.readouterr().err.splitlines()[2] == (
        "  fix:   restore it from a backup: no other checkpoint of the run is whole"
    )


@pytest.mark.parametrize(
    ("output", "fix"),
    [
        ("none/here/x.st", "mkdir -p {folder}/none/here  # or -o with another one"),
        (".", "univip export --help"),
        ("file/x.st", "mkdir -p {folder}/file  # or -o with another one"),
    ],
)
def test_an_output_that_cannot_be_written_is_three_lines(
    save: Callable[[int], Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    output: str,
    fix: str,
) -> None:
    save(5)
    (tmp_path / "file").write_text("keep me")

    assert run(["export", "@last", "-o", f"{tmp_path}/{output}"]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert [line[:8] for line in lines] == ["univip: ", "  where:", "  fix:  "]
    assert lines[2] == f"  fix:   {fix.format(folder=tmp_path)}"
    assert (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("verb", ["export", "digest", "audit"])
def test_a_run_that_only_makes_boxes_has_no_checkpoint_to_wait_for(
    runs: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    (runs / "proposals-1").mkdir(parents=True)
    store(
        Config(data=DataConfig(root="/x")),
        RunHeader("proposals-1", RunKind.proposals, "f", 1),
        runs / "proposals-1",
    )

    assert run([verb, "proposals-1"]) == 2

    what, _, fix = capsys.readouterr().err.splitlines()
    assert what.startswith("univip: run `proposals-1` must be a training run to ")
    assert what.endswith(", but only makes boxes.")
    assert fix == "  fix:   univip status --all  # names the training runs"
