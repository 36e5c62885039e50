import errno
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import PIL.Image
import pytest
import yaml

from jobs.attempts import Attempt
from jobs.compose import known_keys
from jobs.config import Config, RunHeader, RunKind, store
from jobs.outcomes import write_json
from jobs.unfit import failed_preflight
from launcher.cli.completing import overrides
from launcher.cli.main import cli, run
from monitoring.journal import Journal
from univip.config import DataConfig, TrainConfig


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    PIL.Image.new("RGB", (80, 80)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["sumbit"], 2, "the nearest are submit"),
        (["submit", "everything"], 2, "proposals"),
        (["submit", "proposals", "--fork"], 2, "begin a training anew; proposals has none"),
        (["submit", "train", "--fork", "--replace"], 2, "either --fork or --replace"),
        (["status", "--wach"], 2, "--wach"),
        (["submit", "pipeline"], 2, "`data.root` must be given"),
        (["submit", "pipeline", "optim.lr=1"], 2, "optim.base_lr"),
        (["submit", "pipeline", "data.root=/nowhere"], 1, "`data.root` must be an existing folder"),
        (["logs", "nothing"], 3, "there is no run yet"),
        (["cancel", "@last"], 3, "there is no run yet"),
        (["show", "nothing"], 3, "there is no run yet"),
        (["resume", "nothing"], 3, "there is no run yet"),
        (["digest", "nothing"], 3, "there is no run yet"),
    ],
    ids=str,
)
def test_a_mistake_is_three_lines_and_its_exit_status(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    assert run(arguments) == code

    said = capsys.readouterr()
    assert says in said.err
    assert len(said.err.splitlines()) <= 3
    assert said.out == ""
    assert not runs.exists()


def test_a_folder_of_runs_that_is_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNIVIP_RUNS", "")  # which --runs sets, and the end of the test sets back
    (tmp_path / "file").touch()

    assert run(["--runs", f"{tmp_path}/file", "status"]) == 2

    assert capsys.readouterr().err.splitlines() == [
        f"univip: --runs must be a folder, but `{tmp_path}/file` is a file.",
        "  where: the command line",
        "  fix:   univip --help",
    ]


def test_a_folder_of_runs_that_does_not_exist_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNIVIP_RUNS", "")
    typo = tmp_path / "rnus"

    assert run(["--runs", str(typo), "status"]) == 0
    assert f"the folder of --runs does not exist: {typo}\n" in capsys.readouterr().err
    typo.mkdir()
    assert run(["--runs", str(typo), "status"]) == 0
    assert "does not exist" not in capsys.readouterr().err


def test_the_traceback_is_there_for_who_wants_it(runs: Path) -> None:
    with pytest.raises(Exception, match="must name a run"):
        run(["--verbose", "logs", "nothing"])


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0

    out = capsys.readouterr().out
    for verb in (
        "demo",
        "submit",
        "status",
        "logs",
        "show",
        "resume",
        "cancel",
        "monitor",
        "export",
        "digest",
        "proposals",
    ):
        assert f"  {verb} " in out
        assert run([verb, "--help"]) == 0


def test_without_slurm_it_says_so_with_4(
    runs: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    code = run(["submit", "pipeline", "data=folder", f"data.root='{photographs}'", "cluster=slurm"])

    assert code == 4
    what, where, fix = capsys.readouterr().err.splitlines()[-3:]
    assert "must be on the PATH" in what
    assert where == "  where: PATH=/nowhere"
    assert "cluster=local" in fix
    assert not [*runs.rglob("config.yaml")]


def test_a_dry_run_prints_configuration_plan_and_scripts(
    runs: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["data=folder", f"data.root='{photographs}'", "cluster=slurm", "cluster.partition='a b'"]

    assert run(["submit", "pipeline", *overrides, "--dry-run"]) == 0

    out = capsys.readouterr().out
    assert "partition: a b" in out
    assert "images     1" in out
    assert out.count("#!/bin/bash") == 5
    assert "#SBATCH --partition='a b'" in out
    assert not runs.exists()


def test_a_dry_run_prints_every_key_with_its_value_and_completion_lists_them(
    runs: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the README and the error about an unknown key say."""

    def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in node.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    assert (
        run(["submit", "train", "method=byol", "data=folder", f"data.root='{photographs}'", "--dry-run"]) == 0
    )
    text = capsys.readouterr().out.partition("# configuration\n")[2].partition("# plan\n")[0]
    printed = {key for key in leaves(yaml.safe_load(text)) if not key.startswith("run.")}
    keys = {key for key, _ in known_keys()}

    assert printed == keys
    command = cli.get_command(click.Context(cli), "submit")
    assert command is not None
    completed = overrides(click.Context(command), command.params[1], "")
    assert {word.value for word in completed if word.value.endswith("=")} == {f"{key}=" for key in keys}


def test_status_tells_every_run_in_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["state"], told["stage"]) == ("univip-1", "stopped", "prepare")


def test_status_in_json_has_what_an_evaluation_found(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "results").mkdir()
    write_json(run_dir / "results" / "evaluate.json", {"protocol": "knn", "trained": {"top1": 0.5}})

    assert run(["status", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["results"] == {"top1": 0.5}


def test_runs_are_looked_for_where_the_option_says(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--runs", str(run_dir.parent), "status", "--json"]) == 0

    assert "univip-1" in capsys.readouterr().out


def test_show_prints_configuration_and_journal(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(run_dir) as journal:
        journal.record("step", data_step=3, loss=float("nan"), terms={"scene": 1.0})

    run(["show", "@last", "config"])
    assert "global_batch: 512" in capsys.readouterr().out
    run(["show", "@last", "journal"])
    assert "1.0 rank 0  step  data_step=3 loss=nan terms={scene 1}" in capsys.readouterr().out
    run(["show", "@last"])
    assert "stopped prepare" in capsys.readouterr().out


def test_show_names_the_nodes_that_are_not_fit(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = Attempt(2, "train", "node1", 1, 1, "17", started=1.0)
    with Journal(run_dir) as journal:
        failed_preflight(run_dir, mine, "node7", "cuda:3: wrong", journal)

    run(["show", "@last"])

    shown = " ".join(capsys.readouterr().out.split())
    assert "last problem node node7 failed its pre-flight: cuda:3: wrong" in shown
    assert re.search(r"unfit node node7, attempt 2, [-0-9]+ [:0-9]+: cuda:3: wrong", shown)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a b"), ["Permission denied", "/a b", "'/a b'"]),
        (OSError(errno.ENOSPC, "No space left on device"), ["No space left", "make room"]),
        (OSError("cut"), ["cut", "--verbose"]),
    ],
    ids=str,
)
def test_what_the_system_refuses_is_three_lines_and_1(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    says: list[str],
) -> None:
    def refuse(_: Path) -> list[Path]:
        raise error

    monkeypatch.setattr("launcher.runs.all_runs", refuse)

    assert run(["status"]) == 1

    said = capsys.readouterr().err
    assert all(part in said for part in says)
    assert len(said.splitlines()) <= 3
    with pytest.raises(type(error)):
        run(["--verbose", "status"])


def test_a_busy_port_is_named_with_a_free_one(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert run(["monitor", "--port", str(port)]) == 1

    said = capsys.readouterr().err
    assert "must be free" in said
    assert f"where: 127.0.0.1:{port}" in said
    assert f"univip monitor --port {port + 1}" in said


def test_boxes_made_for_a_training_can_be_resumed(
    runs: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    def start(run_dir: Path, request_id: str, code: Path) -> int:
        started.append(run_dir.name)
        return 1

    monkeypatch.setattr("launcher.submission.start_local", start)
    assert run(["submit", "pipeline", "data=folder", f"data.root='{photographs}'"]) == 0
    boxes = next(runs.glob("proposals-*"))

    assert run(["resume", boxes.name, "cluster.array_parallelism=3"]) != 0
    assert "fix:   univip submit ... cluster.array_parallelism=3  # the" in capsys.readouterr().err
    assert run(["resume", next(runs.glob("univip-*")).name, "cluster.time_h=3"]) != 0
    again = f"univip submit pipeline data=folder 'data.root='\"'\"'{photographs}'\"'\"'' cluster.time_h=3\n"
    assert again in capsys.readouterr().err
    assert run(["resume", boxes.name]) == 0

    assert started[1] == boxes.name
    assert capsys.readouterr().out.splitlines()[-1] == boxes.name


def test_show_tells_in_which_keys_two_runs_differ(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = run_dir.with_name("univip-2")
    other.mkdir()
    config = Config(data=DataConfig(root="/y"), train=TrainConfig(seed=3))
    store(config, RunHeader("univip-2", RunKind.train, "f", 1), other)

    assert run(["show", "univip-1", "diff", "univip-2"]) == 0
    title, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert title == ["univip-1", "->", "univip-2"]
    assert first == ["train.seed", "0", "->", "3"]
    assert second == ["data.root", "/x", "->", "/y", "(where", "it", "runs)"]

    assert run(["show", "univip-1", "diff", "univip-1"]) == 0
    assert "no key differs" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["diff"], ["facts", "univip-1"]])
def test_another_run_goes_with_a_difference_only(
    run_dir: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["show", "univip-1", *words]) == 2

    assert "univip show RUN diff OTHER" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["show", "#0"], ["stats"], ["stats", "@last", "--json"]])
def test_boxes_that_are_not_there_yet_are_refused_with_the_next_command(
    run_dir: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["proposals", *arguments]) == 2

    error = capsys.readouterr().err
    assert "must have boxes to show, but has none yet" in error
    assert f"fix:   univip resume {run_dir}\n" in error


@pytest.mark.parametrize("verb", ["digest", "export", "audit"])
def test_what_reads_a_checkpoint_needs_a_checkpoint(
    run_dir: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb, "@last"]) == 1

    assert "the run has no checkpoint yet" in capsys.readouterr().err


def test_only_a_checkpoint_that_is_kept_can_be_exported(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data_step in (3, 6):
        (run_dir / "checkpoints" / f"step-{data_step:09d}").mkdir(parents=True)

    assert run(["export", "@last", "--data-step", "4"]) == 2

    assert "must be one of 3, 6, but is 4" in capsys.readouterr().err


def test_replay_starts_a_process_of_its_own_and_ends_as_it_does(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def start(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", start)

    assert run(["replay", "@last", "12", "--device", "cpu", "--float32", "--json"]) == 1
    assert started == [
        [
            sys.executable,
            "-P",
            "-m",
            "jobs.replay",
            str(run_dir),
            "12",
            "--device",
            "cpu",
            "--float32",
            "--json",
        ]
    ]


def test_show_lists_the_bad_steps_and_how_to_replay_them(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_dir / "anomalies" / "000000012"
    folder.mkdir(parents=True)
    capsule = {"data_step": 12, "verdict": "skip", "what": "the loss is not finite"}
    write_json(folder / "capsule.json", capsule)

    run(["show", "@last"])

    shown = "".join(capsys.readouterr().out.split())  # the table folds what is longer than a line
    told = f"skip at data step 12, the loss is not finite: univip replay {run_dir} 000000012"
    assert told.replace(" ", "") in shown
