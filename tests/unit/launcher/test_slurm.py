from pathlib import Path

import pytest

from launcher.errors import SlurmUnavailableError
from launcher.slurm import JobState, accounted, array_limit, cancel_jobs, living_jobs, queue


def command(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return tmp_path


def test_living_jobs_wait_or_run_or_have_an_element_that_does(bin_folder: Path) -> None:
    lines = [
        "17|RUNNING|None",
        "18|COMPLETED|None",
        "19|FAILED|NonZeroExitCode",
        "20|COMPLETED|None",
        "20|PENDING|JobArrayTaskLimit",
        "20|FAILED|NonZeroExitCode",
        "21|PENDING|DependencyNeverSatisfied",
        "99|RUNNING|None",
    ]
    text = "\\n".join(lines)
    command(bin_folder, "squeue", f"printf '{text}\\n'")

    assert living_jobs(["16", "17", "18", "19", "20", "21"]) == {"17", "20"}
    assert queue()["20"] == JobState("PENDING", "JobArrayTaskLimit")


def test_the_accounting_says_how_jobs_ended(bin_folder: Path) -> None:
    command(bin_folder, "sacct", "printf '7|CANCELLED by 0\\n8_0|COMPLETED\\n8_1|OUT_OF_MEMORY\\n'")

    assert accounted(["7", "8"], 1000) == {"7": JobState("CANCELLED"), "8": JobState("OUT_OF_MEMORY")}


def test_a_job_that_lost_a_node_has_ended_as_its_last_row_says(bin_folder: Path) -> None:
    """Of each size that it had before there is a row."""
    command(bin_folder, "sacct", "printf '7|RESIZING\\n7|FAILED\\n8|RESIZING\\n8|RUNNING\\n'")
    command(bin_folder, "squeue", "printf '9|RESIZING|None\\n'")

    assert accounted(["7", "8"], 1000) == {"7": JobState("FAILED"), "8": JobState("RUNNING")}
    assert living_jobs(["9"]) == {"9"}  # while it loses one


def test_what_a_user_set_for_squeue_hides_no_job(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "debug")
    monkeypatch.setenv("SLURM_CLUSTERS", "east")
    command(
        bin_folder,
        "squeue",
        '[ "$SQUEUE_PARTITION" = debug ] && exit; [ "$SLURM_CLUSTERS" = east ] && echo "17|RUNNING|None"',
    )

    assert living_jobs(["17"]) == {"17"}


def test_jobs_in_hidden_partitions_are_asked_for(bin_folder: Path) -> None:
    command(bin_folder, "squeue", 'case "$*" in *" --all "*) echo "17|RUNNING|None" ;; esac')

    assert living_jobs(["17"]) == {"17"}


def test_lines_that_name_a_cluster_are_passed_over(bin_folder: Path) -> None:
    """With SLURM_CLUSTERS set the commands head each cluster's lines, and part them by blank ones."""
    command(
        bin_folder, "squeue", "printf 'CLUSTER: east\\n17|RUNNING|None\\n\\nCLUSTER: west\\n18|PENDING|\\n'"
    )
    command(bin_folder, "sacct", "printf 'CLUSTER: east\\n7|CANCELLED by 0\\n\\n8|\\n'")

    assert queue() == {"17": JobState("RUNNING", "None"), "18": JobState("PENDING")}
    assert accounted(["7", "8"], 1000) == {"7": JobState("CANCELLED")}


def test_a_job_is_asked_before_it_is_killed(bin_folder: Path) -> None:
    command(bin_folder, "scancel", f'echo "$@" >> {bin_folder}/asked')

    cancel_jobs(["1", "2"], now=False)
    cancel_jobs(["3"], now=True)

    assert (bin_folder / "asked").read_text().splitlines() == [
        "--quiet --state=PENDING 1 2",
        "--quiet --state=SUSPENDED 1 2",  # to which scancel hands no signal, and tries for minutes
        "--quiet --state=RUNNING --signal=USR2 1 2",
        "--quiet --full --signal=KILL 3",
        "--quiet 3",
    ]


# Of `scontrol show config`.
CONFIG = """\
Configuration data as of 2026-11-21T21:17:47
MailProg                = /usr/bin/mail
MaxArraySize            = 301
MaxDBDMsgs              = 20012
"""


@pytest.mark.parametrize(
    ("shown", "limit"),
    [
        (CONFIG, 301),
        ("", 1000),
        (CONFIG.replace("301", "100001"), 1000),
        (CONFIG.replace("301", "1"), 1),
        (CONFIG.replace("301", "0"), 1),  # arrays are off
    ],
)
def test_the_site_says_how_large_an_array_may_be(bin_folder: Path, shown: str, limit: int) -> None:
    (bin_folder / "config").write_text(shown)
    command(bin_folder, "scontrol", f"cat {bin_folder}/config")

    assert array_limit() == limit


def test_a_missing_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(SlurmUnavailableError, match="`squeue` must be on the PATH"):
        living_jobs(["1"])


def test_what_slurm_said_is_passed_on(bin_folder: Path) -> None:
    command(bin_folder, "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")

    with pytest.raises(SlurmUnavailableError, match="Unable to contact slurm controller"):
        living_jobs(["1"])


def test_several_lines_of_slurm_become_one(bin_folder: Path) -> None:
    lines = "scancel: error: job 7\\n\\n  scancel: error: job 8  \\n"
    command(bin_folder, "scancel", f"printf '{lines}' >&2; exit 1")

    with pytest.raises(SlurmUnavailableError) as caught:
        cancel_jobs(["7", "8"], now=False)

    assert str(caught.value).splitlines()[0] == (
        "`scancel` must succeed, but said: scancel: error: job 7; scancel: error: job 8"
    )


def test_a_command_of_slurm_that_fails_without_a_word_is_told_by_its_exit_status(bin_folder: Path) -> None:
    command(bin_folder, "squeue", "exit 3")

    with pytest.raises(SlurmUnavailableError, match="but said: nothing, exit status 3"):
        queue()
