from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from jobs.config import Config, RunHeader, RunKind, store
from launcher.cli.main import cli, run
from univip.config import DataConfig


def complete(words: Sequence[str], incomplete: str) -> list[str]:
    shell = get_completion_class("bash")
    assert shell is not None
    return [item.value for item in shell(cli, {}, "univip", "X").get_completions(list(words), incomplete)]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("demo-1", "demo-2", "other-1"):
        run_dir = tmp_path / "runs" / name
        run_dir.mkdir(parents=True)
        store(Config(data=DataConfig(root="/x")), RunHeader(name, RunKind.train, "f", 1), run_dir)
    return tmp_path / "runs"


def test_a_verb_is_completed() -> None:
    assert complete([], "sta") == ["status"]


@pytest.mark.parametrize("verb", ["show", "logs", "cancel", "resume", "export", "digest"])
def test_a_run_is_completed(runs: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIVIP_RUNS", str(runs))

    assert sorted(complete([verb], "demo")) == ["demo-1", "demo-2"]
    assert complete([verb], "@") == ["@last"]


def test_a_run_in_another_folder_is_completed(runs: Path) -> None:
    assert complete(["--runs", str(runs), "show"], "other") == ["other-1"]


def test_keys_and_options_of_groups_are_completed() -> None:
    assert complete(["submit", "train"], "data.ro") == ["data.root="]
    assert complete(["submit", "train", "debug=small"], "method=") == ["method=byol", "method=univip"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_the_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0

    assert f"_UNIVIP_COMPLETE={shell}_complete" in capsys.readouterr().out
