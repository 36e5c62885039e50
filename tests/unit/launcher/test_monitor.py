"""`univip monitor`: all there is to see at one address, for other machines only with a token."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from launcher.cli.main import run
from launcher.cli.monitor import read_token
from monitoring.journal import Journal
from univip.errors import ConfigError


def test_other_machines_need_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["monitor", "--host", "0.0.0.0"]) == 2

    said = capsys.readouterr().err
    assert "univip monitor --host 0.0.0.0 --token-file" in said


def test_an_address_of_another_machine_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--host", "192.0.2.1", "--token-file", str(tmp_path / "token")]  # of nobody: RFC 5737

    assert run(["--runs", str(tmp_path), "monitor", *options]) == 1

    said = capsys.readouterr().err.splitlines()
    assert said[1:] == ["  where: 192.0.2.1:9300", "  fix:   univip monitor  # at 127.0.0.1"]


def test_metrics_page_and_json_are_served_at_one_address(tmp_path: Path) -> None:
    (tmp_path / "a-1").mkdir()
    with Journal(tmp_path / "a-1") as journal:
        journal.record("step", data_step=7, loss=1.5)
    command = [sys.executable, "-m", "launcher.cli.main", "--runs", str(tmp_path), "monitor", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        told = process.stderr.readline()
        address = re.search(r"(http://\S+)/metrics", told)
        assert address, told

        def get(path: str, accept: str = "*/*") -> str:
            with urlopen(Request(address[1] + path, headers={"Accept": accept}), timeout=30) as response:
                return str(response.read().decode())

        assert 'univip_train_loss{run="a-1"} 1.5\n' in get("/metrics")
        assert get("/metrics", "application/openmetrics-text").endswith("# EOF\n")
        assert get("/healthz") == "ok\n"
        assert '<script type="module"' in get("/")
        assert [row["run"] for row in json.loads(get("/api/runs"))["runs"]] == ["a-1"]
        assert json.loads(get("/api/runs/a-1/series?keys=loss"))["series"]["loss"]["mean"] == [1.5]
    finally:
        process.kill()
        process.wait(30)
        if process.stderr is not None:
            process.stderr.close()


def test_a_token_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "univip" / "token"

    token = read_token(path)

    assert len(token) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_token(path) == token


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        ("a-long-enough-token\n", 0o644),
        ("short\n", 0o600),
        ("", 0o600),
        ("two lines of\nsome length\n", 0o600),
    ],
)
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, content: str, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(mode)

    with pytest.raises(ConfigError) as error:
        read_token(path)
    assert error.value.fix.startswith(f"rm {path}")
