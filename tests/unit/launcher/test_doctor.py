from __future__ import annotations

import json
import shlex
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

import jobs.compose
from jobs.attempts import attempt
from jobs.compose import compose
from jobs.outcomes import write_json
from launcher import doctor, site
from launcher.admission import offers
from launcher.cli.main import run
from launcher.doctor import Level
from launcher.errors import SlurmUnavailableError
from launcher.plan import make_plan
from launcher.site import Nodes, Partition, Site

Look = dict[str, Any]
CPU_LOOK: Look = {
    "host": "login",
    "python": "3.11.7",
    "time": 0.0,
    "torch": "2.11.0",
    "error": "",
    "cuda": "12.8",
    "gpus": [],
    "driver": "",
    "driver_cuda": "",
}


@pytest.mark.parametrize(
    ("changes", "level", "found"),
    [
        ({}, Level.OK, "no NVIDIA driver on login"),
        ({"driver": "570.1", "gpus": ["H100", "H100"]}, Level.OK, "2 x H100, driver 570.1"),
        ({"driver": "535.1", "driver_cuda": "12.2"}, Level.MISS, "serves CUDA up to 12.2"),
        ({"driver": "570.1", "driver_cuda": "12.8", "cuda": ""}, Level.MISS, "built for the CPU alone"),
        ({"error": "ImportError: libcudart.so.12"}, Level.MISS, "cannot be loaded: ImportError: libcudart"),
    ],
)
def test_torch_is_held_against_the_driver(changes: Look, level: Level, found: str) -> None:
    [row] = doctor.torch_and_gpus("torch", CPU_LOOK | changes)

    assert row.level is level
    assert found in row.found
    assert bool(row.fix) == (level is not Level.OK)


def test_a_python_that_crashes_over_torch_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\necho Illegal instruction >&2\nexit 132\n")
    crashing.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(crashing))

    assert doctor.look_here()["error"] == "Illegal instruction"


def test_the_torch_of_this_installation_is_looked_at_also_in_another_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("installed", "checkout"):
        (tmp_path / name / "jobs").mkdir(parents=True)
        (tmp_path / name / "jobs" / "__init__.py").touch()
        (tmp_path / name / "jobs" / "probe.py").write_text(f'print(\'{{"host": "{name}"}}\')')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    monkeypatch.chdir(tmp_path / "checkout")

    assert doctor.look_here() == {"host": "installed"}


def test_a_folder_of_runs_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    rows = {row.check: row for row in doctor.runs_folder(tmp_path / "a" / "runs", asks_kind=False)}

    assert list(rows) == ["run root", "space", "fsync", "locks", "clock"]
    assert rows["run root"].found == f"{tmp_path}/a/runs (to be made in {tmp_path}) can be written"
    assert rows["clock"].level is Level.OK
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_runs_that_cannot_be_written_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    [row] = doctor.runs_folder(tmp_path / "file" / "runs", asks_kind=False)

    assert (row.level, row.check) == (Level.MISS, "run root")
    assert row.fix.startswith("paths.runs=")


def test_the_file_system_of_a_folder_is_that_of_the_nearest_mount() -> None:
    mounts = (
        "/dev/sda1 / ext4 rw 0 0\n"
        "server:/home /home nfs4 rw,vers=4.2 0 0\n"
        "tmpfs /home/me/my\\040disk tmpfs rw 0 0\n"
    )

    assert doctor.file_system(Path("/home/me/runs"), mounts) == "nfs4"
    assert doctor.file_system(Path("/home/me/my disk/runs"), mounts) == "tmpfs"
    assert doctor.file_system(Path("/homework"), mounts) == "ext4"
    assert doctor.file_system(Path("/homework"), "") == ""


def test_of_a_link_the_file_system_is_told_that_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    kinds = {tmp_path.resolve() / "scratch": "lustre", tmp_path / "runs": "ext4"}
    monkeypatch.setattr(doctor, "file_system", lambda path, mounts: kinds[path])

    *_, shared = doctor.runs_folder(tmp_path / "runs", asks_kind=True)

    assert (shared.level, shared.found) == (Level.OK, f"{tmp_path / 'runs'} is on lustre")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A COCO data set of four photographs."""
    root = tmp_path / "data"
    (root / "small").mkdir(parents=True)
    for number in range(4):
        PIL.Image.new("RGB", (80, 80), (number * 40, 0, 0)).save(root / "small" / f"{number}.png")
    rows = [{"id": n, "file_name": f"{n}.png", "width": 80, "height": 80} for n in range(4)]
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_small.json").write_text(
        json.dumps({"images": rows, "annotations": []})
    )
    return root


@pytest.fixture
def overrides(photographs: Path, tmp_path: Path) -> list[str]:
    return [f"data.root='{photographs}'", "data.split=small", "debug=small", f"paths.runs='{tmp_path}/runs'"]


def test_a_complete_data_set_without_boxes_is_no_fault(overrides: list[str], tmp_path: Path) -> None:
    data, boxes = doctor.data(compose(overrides))

    assert (data.level, boxes.level) == (Level.OK, Level.WARN)
    assert "4 photographs" in data.found
    assert "all were looked for" in data.found


def test_missing_and_empty_photographs_are_counted_and_named(overrides: list[str], photographs: Path) -> None:
    (photographs / "small" / "1.png").unlink()
    (photographs / "small" / "3.png").write_bytes(b"")

    row, *_ = doctor.data(compose(overrides))

    assert row.level is Level.MISS
    assert "2 are missing or empty: small/1.png, small/3.png" in row.found


def test_of_a_huge_data_set_a_sample_is_looked_for_and_it_says_so(
    overrides: list[str], photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_MOST_FILES", 2)
    (photographs / "small" / "2.png").unlink()

    row, *_ = doctor.data(compose(overrides))

    assert "2 of them were looked for, and 1 are missing or empty: small/2.png" in row.found


def test_data_that_cannot_be_used_have_the_fix_of_a_submit(overrides: list[str]) -> None:
    [row] = doctor.data(compose([*overrides, "data.split=smal"]))

    assert (row.level, row.fix) == (Level.MISS, "data.split=small")


def test_boxes_that_are_made_are_found(overrides: list[str], tmp_path: Path) -> None:
    boxes = tmp_path / "runs" / make_plan("train", compose(overrides)).header.proposals
    boxes.mkdir(parents=True)
    (boxes / "proposals.arrow").touch()
    with attempt(boxes, "merge") as merge:
        merge.exit_code = 0

    _, row = doctor.data(compose(overrides))

    assert (row.level, row.found) == (Level.OK, f"{boxes.name} has them")


def test_boxes_that_must_be_imported_are_missing(overrides: list[str]) -> None:
    _, row = doctor.data(compose([*overrides, f"proposals.source='{'0' * 12}'"]))

    assert row.level is Level.MISS


@pytest.fixture
def server() -> Iterator[str]:
    """Answers as Prometheus does when it is ready."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/-/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ready) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_prometheus_is_where_the_dash_left_it(server: str, tmp_path: Path) -> None:
    write_json_of_dash(tmp_path, server)
    assert doctor.prometheus(tmp_path).level is Level.OK

    write_json_of_dash(tmp_path, "http://127.0.0.1:1")
    row = doctor.prometheus(tmp_path)
    assert (row.level, row.fix) == (Level.WARN, "univip dash --up")


def test_the_prometheus_of_another_user_is_not_looked_for(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their `.dash` is a folder that only they may read."""

    def refuse(path: Path) -> None:
        raise PermissionError(f"{path} belongs to somebody else")

    monkeypatch.setattr(doctor, "read_json", refuse)
    monkeypatch.setattr(doctor, "_PROMETHEUS", server)

    assert doctor.prometheus(tmp_path) == doctor.ok("Prometheus", f"{server} is ready")


def write_json_of_dash(runs: Path, address: str) -> None:
    (runs / ".dash").mkdir(exist_ok=True)
    write_json(runs / ".dash" / "prometheus.json", {"address": address})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a process for torch, and without SLURM."""
    monkeypatch.setattr(doctor, "look_here", lambda: CPU_LOOK)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("quick")
def test_warnings_alone_are_a_success(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", *overrides]) == 0

    out = capsys.readouterr().out
    assert out.startswith("OK   Python       ")
    assert "WARN boxes" in out
    assert f"{'':25}fix: univip submit proposals ..." in out.splitlines()


@pytest.mark.usefixtures("quick")
def test_something_missing_is_a_failure(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", *overrides, "cluster=slurm", "--json"]) == 1

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["check"] for row in rows if row["level"] == "MISS"] == ["SLURM"]
    assert all(set(row) == {"level", "check", "found", "fix"} for row in rows)


@pytest.mark.usefixtures("quick")
def test_without_photographs_it_looks_at_the_rest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["doctor", f"paths.runs='{tmp_path}/runs'"]) == 0

    assert "not looked at: no data.root" in capsys.readouterr().out


@pytest.fixture
def site_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Another place for the site file, and a small site."""
    path = tmp_path / "site" / "local.yaml"
    found = Site({"gpu": Partition("gpu", is_default=True)}, [Nodes("gpu", 2, 64, 64000, {"": 4})], None)
    monkeypatch.setattr(site, "SITE_FILE", path)
    monkeypatch.setattr(site, "ask_site", lambda: found)
    return path


@pytest.mark.usefixtures("quick")
def test_the_site_file_is_written_and_another_one_is_shown_and_kept(
    site_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["doctor", "--write", f"paths.runs='{tmp_path}/runs'"]
    assert run(words) == 0
    assert "  gpus_per_node: 4\n" in site_file.read_text()
    site_file.write_text(site_file.read_text().replace("gpu\n", "other\n"))
    before = site_file.read_text()
    capsys.readouterr()

    assert run(words) == 5

    *shown, what, _, fix = capsys.readouterr().err.splitlines()
    assert "-  partition: other" in shown
    assert "+  partition: gpu" in shown
    assert "the site file must not be there yet" in what
    assert f"mv {site_file} " in fix
    assert fix.endswith(shlex.join(["univip", "doctor", words[2], "--write"]))
    assert site_file.read_text() == before


def test_without_slurm_no_site_file_is_written(
    site_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse() -> Site:
        raise SlurmUnavailableError("`scontrol` must be on the PATH, but is not.")

    monkeypatch.setattr(site, "ask_site", refuse)

    assert run(["doctor", "--write", f"paths.runs='{tmp_path}/runs'"]) == 4
    assert not site_file.exists()


def test_a_site_file_that_was_written_can_be_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "configs"
    shutil.copytree(jobs.compose.CONFIGS, folder, ignore=shutil.ignore_patterns("site"))
    (folder / "site").mkdir()
    found = Site(
        {"gpu": Partition("gpu", is_default=True, max_time_h=8)}, [Nodes("gpu", 2, 64, 64000, {"": 4})], None
    )
    (folder / "site" / "local.yaml").write_text(site.site_yaml(found, compose([], needs_data=False).cluster))
    monkeypatch.setattr(jobs.compose, "CONFIGS", folder)

    cluster = compose(["cluster=slurm"], needs_data=False).cluster

    assert (cluster.partition, cluster.gpus_per_node, cluster.time_h) == ("gpu", 4, 8.0)
    assert (str(cluster.kind), cluster.account) == ("slurm", "")


def test_a_site_file_that_was_written_asks_for_nothing_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "configs"
    shutil.copytree(jobs.compose.CONFIGS, folder, ignore=shutil.ignore_patterns("site"))
    (folder / "site").mkdir()
    found = Site(
        {"gpu": Partition("gpu", is_default=True, max_time_h=8), "short": Partition("short", max_time_h=0.7)},
        [Nodes("gpu", 2, 64, 64000, {"": 4}), Nodes("short", 2, 64, 64000)],
        None,
    )
    words = ["cluster=slurm", "cluster.proposals.partition=short"]
    typed = compose(words, needs_data=False).cluster
    assert [row.check for row in offers(found, typed) if row.level is Level.MISS] != []
    (folder / "site" / "local.yaml").write_text(site.site_yaml(found, typed))
    monkeypatch.setattr(jobs.compose, "CONFIGS", folder)

    cluster = compose(["cluster=slurm"], needs_data=False).cluster

    assert [row for row in offers(found, cluster) if row.level is Level.MISS] == []
    assert (cluster.proposals.partition, cluster.proposals.time_h) == ("short", 0.7)
