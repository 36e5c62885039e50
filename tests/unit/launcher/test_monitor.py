"""`univip monitor`: other machines are served only with a token that only its owner can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cli.main import run
from launcher.cli.monitor import read_token
from univip.errors import ConfigError


def test_other_machines_need_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["monitor", "--host", "0.0.0.0"]) == 2

    said = capsys.readouterr().err
    assert "univip monitor --host 0.0.0.0 --token-file" in said


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
