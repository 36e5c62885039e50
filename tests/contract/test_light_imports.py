"""The command line answers at once because it loads nothing heavy; only a fresh interpreter can tell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

from jobs.config import Config, RunHeader, RunKind, store
from jobs.requests import Request, stages_of
from univip.config import DataConfig

HEAVY = ["torch", "torchvision", "cv2", "numba", "pyarrow"]
CONFIGURATION = ["hydra", "omegaconf"]
PROGRAM = """
import json, sys
from launcher.cli.main import run
code = run(sys.argv[2:])
loaded = sorted(name for name in json.loads(sys.argv[1]) if name in sys.modules)
print("LOADED", code, json.dumps(loaded), file=sys.stderr)
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run_dir = tmp_path / "runs" / "univip-1"
    run_dir.mkdir(parents=True)
    store(Config(data=DataConfig(root="/x")), RunHeader("univip-1", RunKind.train, "f", 1), run_dir)
    Request("pipeline", stages_of("pipeline", "univip-1", "")).save(run_dir)
    return run_dir


def loaded(arguments: list[str], runs: Path, names: list[str]) -> tuple[int, list[str]]:
    """Exit status of a command line, and which of `names` it loaded."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(names), *arguments]
    environment = {**os.environ, "UNIVIP_RUNS": str(runs)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    [line] = [line for line in done.stderr.splitlines() if line.startswith("LOADED")]
    _, code, found = line.split(" ", 2)
    return int(code), json.loads(found)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["submit", "--help"],
        ["demo", "--help"],
        ["drill", "--help"],
        ["proposals", "import", "--help"],
        ["status"],
        ["status", "--json"],
        ["logs", "@last"],
        ["cancel", "@last"],
        ["doctor", "--help"],
        ["show", "@last"],
        ["show", "@last", "config"],
        ["show", "@last", "journal"],
        ["show", "@last", "diff", "@last"],
    ],
    ids=" ".join,
)
def test_looking_at_runs_loads_neither_the_method_nor_the_configuration(
    run_dir: Path, arguments: list[str]
) -> None:
    assert loaded(arguments, run_dir.parent, [*HEAVY, *CONFIGURATION, "numpy", "submitit"]) == (0, [])


def test_an_export_needs_no_torch(run_dir: Path) -> None:
    assert loaded(["export", "@last"], run_dir.parent, [*HEAVY, *CONFIGURATION]) == (
        1,
        [],
    )  # no checkpoint yet


def test_a_doctor_leaves_torch_to_another_process(tmp_path: Path) -> None:
    assert loaded(["doctor", f"paths.runs='{tmp_path}'"], tmp_path, HEAVY) == (0, [])


@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_dry_run_loads_nothing_of_the_method(tmp_path: Path, cluster: str) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    PIL.Image.new("RGB", (80, 80)).save(photographs / "a.png")
    arguments = [
        "submit",
        "pipeline",
        "data=folder",
        f"data.root='{photographs}'",
        f"cluster={cluster}",
        "--dry-run",
    ]

    assert loaded(arguments, tmp_path / "runs", HEAVY) == (0, [])
    assert not (tmp_path / "runs").exists()


def test_the_check_itself_can_fail(tmp_path: Path) -> None:
    assert loaded(["status"], tmp_path, ["click", "torch"]) == (0, ["click"])


def test_the_picture_of_the_samples_loads_neither_networks_nor_search() -> None:
    """The agent draws it while its ranks start, on the same cores."""
    program = (
        "import sys, jobs.last_samples, jobs.reader, univip.data.sheet, monitoring.web.facts\n"
        f"print([name for name in {['torchvision', 'cv2', 'numba']} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
