"""`univip replay` from the command line; what it finds is tested with `jobs.replay`."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cli.main import run


def test_a_step_is_replayed_by_this_installation_also_in_another_checkout(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("installed", "checkout"):
        (tmp_path / name / "jobs").mkdir(parents=True)
        (tmp_path / name / "jobs" / "__init__.py").touch()
        (tmp_path / name / "jobs" / "replay.py").write_text(f"import sys\nprint({name!r}, sys.argv[1:])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    monkeypatch.chdir(tmp_path / "checkout")

    assert run(["replay", "@last", "3", "--json"]) == 0

    assert capfd.readouterr().out == f"installed {[str(run_dir), '3', '--json']}\n"
