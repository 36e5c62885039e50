from pathlib import Path

import pytest

from launcher.errors import SlurmUnavailableError
from launcher.slurm import cancel_jobs, living_jobs


def command(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return tmp_path


def test_living_jobs_are_those_that_squeue_lists(bin_folder: Path) -> None:
    command(bin_folder, "squeue", "printf '17\\n17\\n20\\n99\\n'")

    assert living_jobs(["17", "18", "20"]) == {"17", "20"}


def test_a_job_is_asked_before_it_is_killed(bin_folder: Path) -> None:
    command(bin_folder, "scancel", f'echo "$@" >> {bin_folder}/asked')

    cancel_jobs(["1", "2"], now=False)
    cancel_jobs(["3"], now=True)

    assert (bin_folder / "asked").read_text().splitlines() == [
        "--quiet 1 2",
        "--quiet --full --signal=KILL 3",
        "--quiet 3",
    ]


def test_a_missing_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(SlurmUnavailableError, match="`squeue` must be on the PATH"):
        living_jobs(["1"])


def test_what_slurm_said_is_passed_on(bin_folder: Path) -> None:
    command(bin_folder, "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")

    with pytest.raises(SlurmUnavailableError, match="Unable to contact slurm controller"):
        living_jobs(["1"])
