"""`univip dash`: where it serves, to whom, and that what it leaves behind can be stopped."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qs
from urllib.request import HTTPCookieProcessor, Request, build_opener, urlopen

import pytest

from jobs.config import Config, RunHeader, RunKind, store
from launcher import dash
from launcher.cli.main import run
from monitoring.journal import Journal
from univip.config import DataConfig


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A folder of runs; whatever is left running there is stopped."""
    folder = tmp_path / "runs"
    yield folder
    dash.down(folder)


def univip(runs: Path, *arguments: str, path: str = "/nowhere") -> tuple[int, list[str]]:
    """Exit status of a command line, and what it says, on a machine with the programs of a path."""
    command = [sys.executable, "-P", "-m", "launcher.cli.main", "--runs", str(runs), "dash", *arguments]
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.splitlines()


def get(url: str, **headers: str) -> str:
    with urlopen(Request(url, headers=headers), timeout=10) as response:
        return str(response.read().decode())


def test_it_is_started_once_and_stopped(runs: Path) -> None:
    code, lines = univip(runs, "--up", "--port", "0")

    assert code == 0
    assert lines[-1] == "stop       univip dash --down"
    url = lines[0].split()[1]
    port = url.split(":")[2].rstrip("/")
    assert lines[2].startswith(f"tunnel     ssh -N -L {port}:127.0.0.1:{port} ")
    assert '<script type="module"' in get(url)
    assert json.loads(get(f"{url}api/runs"))["runs"] == []
    assert get(f"{url}metrics").startswith("# HELP")
    assert get(f"{url}healthz") == "ok\n"
    code, lines = univip(runs, "--up", "--port", "0")
    assert (code, lines[-1]) == (5, "  fix:   univip dash --down")

    assert univip(runs, "--down") == (0, ["stopped    dash"])
    with pytest.raises(URLError):
        get(url)
    assert univip(runs, "--down") == (0, ["nothing was running"])
    assert not (runs / ".dash" / "dash.json").exists()


def test_what_is_left_running_is_this_installation_also_in_another_checkout(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "__init__.py").write_text("raise ImportError('of another checkout')")
    monkeypatch.chdir(tmp_path)

    assert univip(runs, "--up", "--port", "0")[0] == 0


def test_for_other_machines_a_token_is_made_that_only_its_owner_reads(runs: Path) -> None:
    url = univip(runs, "--up", "--host", "0.0.0.0", "--port", "0")[1][0].split()[1]

    token = (runs / ".dash" / "token").read_text().strip()
    assert url.endswith(f"/?token={token}")
    assert stat.S_IMODE((runs / ".dash").stat().st_mode) == 0o700
    here = f"http://127.0.0.1:{url.split(':')[2].partition('/')[0]}/api/runs"
    with pytest.raises(HTTPError, match="401") as refused:
        get(here)
    refused.value.close()
    assert get(here, Authorization=f"Bearer {token}").startswith("{")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_prometheus_is_started_with_it_and_stopped_with_it(runs: Path, host: str) -> None:
    """Where other machines reach the page, Prometheus has the token."""
    if shutil.which("prometheus") is None:
        (pytest.fail if os.environ.get("UNIVIP_EXPECT_PROMETHEUS") else pytest.skip)("prometheus is absent")
    (runs / "a-1").mkdir(parents=True)
    with Journal(runs / "a-1") as journal:
        journal.record("step", data_step=7, loss=1.5)

    code, lines = univip(runs, "--up", "--host", host, "--port", "0", path=os.environ["PATH"])

    assert code == 0
    url = next(line.split()[1] for line in lines if line.startswith("prometheus "))
    query = f"{url}/api/v1/query?query=univip_train_data_step"
    deadline = time.monotonic() + 60
    found: list[Any] = []
    while not found:
        assert time.monotonic() < deadline, (runs / ".dash" / "prometheus.log").read_text()
        time.sleep(0.5)
        with suppress(URLError):
            found = json.loads(get(query))["data"]["result"]
    assert (found[0]["metric"]["run"], found[0]["value"][1]) == ("a-1", "7")
    rules = json.loads(get(f"{url}/api/v1/rules"))["data"]["groups"]
    assert {"univip-run", "univip-faults"} <= {group["name"] for group in rules}
    assert dash.down(runs) == ["dash", "prometheus"]
    with pytest.raises(URLError):
        get(query)


def test_an_address_that_is_taken_is_told_before_it_is_left_behind(runs: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        code, lines = univip(runs, "--up", "--port", str(taken.getsockname()[1]))

    assert code == 1
    assert "the address must be free" in lines[0]
    assert "Address already in use" in lines[0]
    assert not (runs / ".dash" / "dash.json").exists()


def test_a_process_that_took_over_the_number_is_not_stopped(runs: Path) -> None:
    """The file of a server that died tells of a process id, which is another process by now."""
    folder = runs / ".dash"
    folder.mkdir(parents=True)
    document = {"pid": os.getpid(), "start_ticks": 1, "host": socket.gethostname(), "address": "x"}
    (folder / "dash.json").write_text(json.dumps(document))

    assert dash.down(runs) == []
    assert not (folder / "dash.json").exists()


def test_what_runs_on_another_machine_is_left_to_it(runs: Path) -> None:
    folder = runs / ".dash"
    folder.mkdir(parents=True)
    document = {"pid": os.getpid(), "start_ticks": 1, "host": "elsewhere", "address": "x"}
    (folder / "dash.json").write_text(json.dumps(document))

    assert dash.down(runs) == []
    assert (folder / "dash.json").exists()


def test_a_page_that_another_machine_serves_is_not_started_again(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file would be lost, and with it the way to stop what runs there."""
    folder = runs / ".dash"
    folder.mkdir(parents=True)
    document = {"pid": 7, "start_ticks": 1, "host": "login2", "address": "http://127.0.0.1:9301/"}
    (folder / "dash.json").write_text(json.dumps(document))

    assert run(["--runs", str(runs), "dash", "--up", "--port", "0"]) == 5

    what, where, fix = capsys.readouterr().err.splitlines()
    assert "process 7 on login2" in what
    assert where == "  where: http://127.0.0.1:9301/"
    assert fix.startswith(f"  fix:   ssh login2 univip --runs {runs} dash --down; or, if login2 is gone, rm ")
    assert json.loads((folder / "dash.json").read_text()) == document


def test_the_link_holds_the_token_whatever_it_is_made_of(runs: Path, tmp_path: Path) -> None:
    token = "aB3+/=~.-_aB3+/=~.-_"
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o600)

    options = ["--up", "--token-file", str(tmp_path / "token"), "--port", "0"]
    url = univip(runs, *options)[1][0].split()[1]

    assert parse_qs(url.partition("?")[2]) == {"token": [token]}
    with build_opener(HTTPCookieProcessor()).open(url, timeout=10) as response:
        assert '<script type="module"' in response.read().decode()


def test_a_report_is_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "runs" / "a-1"
    run_dir.mkdir(parents=True)
    store(Config(data=DataConfig(root="/x")), RunHeader("a-1", RunKind.train, "f", 1), run_dir)

    assert run(["--runs", str(tmp_path / "runs"), "report", "a-1"]) == 0

    path = Path(capsys.readouterr().out.strip())
    assert path == run_dir / "results" / "report.html"
    assert "<h1>a-1</h1>" in path.read_text(encoding="utf-8")
