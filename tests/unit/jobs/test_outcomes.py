import errno
import json
from pathlib import Path

import pytest

from jobs.outcomes import Cause, ExitCode, Outcome, read_json, write_json
from univip.errors import ConfigError, DataError, ImageError, PreflightError, RollbackExhaustedError


def test_exit_codes_are_the_promised_numbers() -> None:
    assert [code.value for code in ExitCode] == [0, 1, 5, 75, 76, 77]


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (ConfigError("no"), 77, "refused"),
        (DataError("no"), 77, "refused"),
        (ImageError("missing", "no"), 77, "refused"),
        (RollbackExhaustedError("no"), 76, "nonfinite"),
        (PreflightError("no"), 1, "node_failure"),
        (MemoryError(), 1, "out_of_memory"),
        (OSError(errno.ENOSPC, "no space"), 1, "full_disk"),
        (OSError(errno.EIO, "broken"), 1, "crash"),
        (ZeroDivisionError("oops"), 1, "crash"),
    ],
)
def test_an_error_has_one_exit_code_and_one_cause(error: Exception, code: int, cause: str) -> None:
    outcome = Outcome.of_error(error)

    assert (outcome.exit_code, str(outcome.cause)) == (code, cause)


def test_a_death_by_signal_is_a_crash_that_somebody_killed() -> None:
    assert Outcome.of_exit(-9) == Outcome(ExitCode.CRASH, Cause.KILLED, "killed by signal 9")
    assert Outcome.of_exit(3).cause is Cause.CRASH
    assert Outcome.of_exit(0).cause is Cause.DONE


def test_an_outcome_survives_its_file(tmp_path: Path) -> None:
    outcome = Outcome(ExitCode.REFUSED, Cause.REFUSED, "what\n  where: there\n  fix:   that")

    outcome.save(tmp_path / "rank-0.json")

    assert Outcome.load(tmp_path / "rank-0.json") == outcome
    assert Outcome.load(tmp_path / "rank-1.json") is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})

    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})

    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "nonsense"])
def test_a_damaged_file_reads_as_absent(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)

    assert read_json(tmp_path / "a.json") is None
