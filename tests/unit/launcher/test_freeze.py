"""The copy of the code that a run keeps, and that Python takes it from there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from launcher import freeze as module
from launcher.freeze import code_dir, environment, freeze, frozen

ROOT = Path(__file__).resolve().parents[3]
WHERE = "import jobs.base, univip.atomic; print(jobs.base.__file__); print(univip.atomic.__file__)"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "coco-1"
    folder.mkdir()
    return folder


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout in place of this one."""
    folder = tmp_path / "checkout"
    for name in module._PACKAGES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f'"""{name}"""\n')

    def find(name: str) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, folder / name / "__init__.py")

    monkeypatch.setattr(importlib.util, "find_spec", find)
    return folder


def test_the_copy_has_every_file_of_the_packages_and_nothing_else(run_dir: Path) -> None:
    code = freeze(run_dir)

    listed = subprocess.run(
        ["git", "ls-files", "--", *module._PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.splitlines()):
        assert (code / name).read_bytes() == (ROOT / name).read_bytes()
    assert not list(code.rglob("__pycache__"))
    assert sorted(path.name for path in code.iterdir()) == sorted(module._PACKAGES)


def test_the_same_code_is_copied_once_and_other_code_beside_it(run_dir: Path, checkout: Path) -> None:
    first = freeze(run_dir)
    stamp = (first / "jobs" / "__init__.py").stat().st_ino
    assert freeze(run_dir) == first
    assert (first / "jobs" / "__init__.py").stat().st_ino == stamp

    (checkout / "jobs" / "__init__.py").write_text("# edited\n")
    second = freeze(run_dir)

    assert second != first
    assert (first / "jobs" / "__init__.py").read_text() == '"""jobs"""\n'
    assert (second / "jobs" / "__init__.py").read_text() == "# edited\n"


def test_a_file_that_moves_is_other_code(run_dir: Path, checkout: Path) -> None:
    (checkout / "jobs" / "a.py").write_text("1")
    before = code_dir(run_dir)
    (checkout / "jobs" / "a.py").rename(checkout / "jobs" / "b.py")

    assert code_dir(run_dir) != before


def test_a_copy_that_was_cut_off_is_none(
    run_dir: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(target: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", cut_off)
        with pytest.raises(KeyboardInterrupt):
            freeze(run_dir)
    assert not code_dir(run_dir).exists()

    assert (freeze(run_dir) / "jobs" / "__init__.py").exists()


def test_a_copy_is_of_one_moment(run_dir: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = code_dir(run_dir), Path.write_bytes

    def write_while_it_is_edited(target: Path, content: bytes) -> int:
        (checkout / "univip" / "__init__.py").write_text("broken = ")
        return write(target, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", write_while_it_is_edited)
        code = freeze(run_dir)

    assert code == before
    assert (code / "univip" / "__init__.py").read_text() == '"""univip"""\n'
    assert code_dir(run_dir) != before


def test_the_code_of_the_newest_request_is_known(run_dir: Path, checkout: Path) -> None:
    assert frozen(run_dir) is None
    code = freeze(run_dir)
    (run_dir / "environment.json").write_text(f'{{"code": "{code.name}"}}')

    assert frozen(run_dir) == code

    shutil.rmtree(code)
    assert frozen(run_dir) is None


@pytest.mark.parametrize("words", [["-c"], ["-I", "-S", "BLOCKED", "-c"]], ids=["local", "slurm"])
def test_python_takes_the_packages_from_the_copy_even_in_the_checkout(
    run_dir: Path, words: list[str]
) -> None:
    code = freeze(run_dir)
    is_slurm = "BLOCKED" in words
    command = [sys.executable, *words, WHERE]
    command = [str(code / "jobs" / "blocked.py") if word == "BLOCKED" else word for word in command]
    own = {} if is_slurm else environment(code)

    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, check=True
    )

    assert [Path(line).relative_to(code).as_posix() for line in done.stdout.splitlines()] == [
        "jobs/base.py",
        "univip/atomic.py",
    ]
