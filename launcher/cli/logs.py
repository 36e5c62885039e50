"""`univip logs`: what a run recorded and what its processes printed, and what comes next."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli import completing

if TYPE_CHECKING:
    from launcher.journal_lines import JournalLines

_POLL_S = 0.5
_END_BYTES = 1 << 20  # of a file that was printed, to find its last lines in
_RANK_LOG = re.compile(r"rank-(\d+)\.log")
_RANK_JOURNAL = re.compile(r"(\d+)\.\d+-rank(\d+)\.jsonl")
_LAUNCHER_TALK = b"submitit INFO "  # that it starts, and what it loads

_Told = tuple[float, str, str]  # when (Unix, s), by what, and the text


@click.command()
@click.argument("run", shell_complete=completing.runs)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes next, until the run is over.")
@click.option("--rank", type=click.IntRange(0), help="Only what this rank recorded and printed.")
@click.option("--attempt", type=click.IntRange(1), help="Only what was recorded and printed in this attempt.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Last lines of the journal and of each file.",
)
def command(run: str, follow: bool, rank: int | None, attempt: int | None, lines: int) -> None:
    """Print progress and events of a run, and the output of its processes, the newest last.

    Of all stages, attempts, rounds and ranks; progress is told every half minute, by rank 0.
    """
    from jobs.attempts import read_attempts
    from launcher.follow import ending
    from launcher.journal_lines import JournalLines
    from launcher.render import moment, say
    from launcher.runs import find_run, what_next
    from launcher.states import State, read_state

    run_dir = find_run(run)
    journals: dict[Path, JournalLines] = {}
    shown: dict[Path, int] = {}
    last = ""
    while True:
        state = read_state(run_dir)  # looked at first, so that the last words are read
        is_last = not follow or state.is_over()
        if is_last or not shown:
            _refuse_unknown(run_dir, rank, attempt, may_come=not is_last)
        told: list[_Told] = []
        for each in _directories(run_dir, attempt):
            if each in journals:
                new = journals[each].new()
            else:
                journals[each] = JournalLines(each, rank, attempt)
                new = journals[each].last(lines)
            told += [(at, f"{each.name}/journal", f"{moment(at)}  {line}\n") for at, line in new]
        for path in _files(run_dir, rank, attempt):
            text, shown[path] = _read(path, shown.get(path), lines, is_last=is_last)
            told.append((path.stat().st_mtime, str(path.relative_to(run_dir.parent)), text))
        last = _print(told, last)
        if is_last:
            if follow:
                ended = max((each.ended or 0.0 for each in read_attempts(run_dir)), default=0.0)
                click.echo(f"{moment(ended or time.time())}  {ending(run_dir, state)}")
                if state.state is not State.done:
                    say(what_next(run_dir, "show RUN", "resume RUN"))
            elif not last:
                by = "" if rank is None else f" by rank {rank}"
                within = "" if attempt is None else f" in attempt {attempt}"
                click.echo(f"nothing was recorded or printed{by}{within} yet", err=True)
            return
        time.sleep(_POLL_S)


def _print(told: Iterable[_Told], last: str) -> str:
    """Print in order of time, with a head where the source changes; returns the last source."""
    for _, source, text in sorted(told, key=lambda each: each[0]):
        if text and source != last:
            click.echo(click.style(f"==> {source} <==", bold=True))
            last = source
        click.echo(text, nl=False)
    return last


def _directories(run_dir: Path, attempt: int | None) -> list[Path]:
    """The run and the boxes made for it; of an attempt, which has its number in one run, only that."""
    from jobs.requests import Request

    request = Request.load(run_dir)
    return sorted(request.directories(run_dir)) if request and attempt is None else [run_dir]


def _files(run_dir: Path, rank: int | None, attempt: int | None) -> list[Path]:
    """Output files of a run and of the boxes made for it.

    Of an attempt only those of its ranks: what SLURM keeps of a job goes on through its requeues.
    """
    if rank is not None or attempt is not None:
        number = "*" if attempt is None else f"{attempt:04d}"
        patterns = [f"attempts/{number}/round-*/rank-{'*' if rank is None else rank}.log"]
    else:
        patterns = ["attempts/*/round-*/rank-*.log", "logs/*.log", "submitit/*_log.out", "submitit/*_log.err"]
    return sorted(
        path for run in _directories(run_dir, attempt) for pattern in patterns for path in run.glob(pattern)
    )


def _read(path: Path, start: int | None, lines: int, *, is_last: bool) -> tuple[str, int]:
    """New text of a file and where it ends; of a file not seen before, its last lines."""
    size = path.stat().st_size
    begin = max(0, size - _END_BYTES) if start is None else start
    if size <= begin:
        return "", begin
    with path.open("rb") as file:
        file.seek(begin)
        data = file.read()
    if path.parent.name == "submitit":
        if not is_last:
            data = data[: data.rfind(b"\n") + 1]  # of half a line it cannot be told whose it is
        end = begin + len(data)
        whole = data.splitlines(keepends=True)
        data = b"".join(line for line in whole if not line.startswith(_LAUNCHER_TALK))
    else:
        end = begin + len(data)
    if start is None:
        data = b"".join(data.splitlines(keepends=True)[-lines:] if lines else [])
    return data.decode("utf-8", "replace"), end


def _refuse_unknown(run_dir: Path, rank: int | None, attempt: int | None, *, may_come: bool) -> None:
    """Refuse an attempt or a rank that the run has not, and will not have; before there is any, none.

    Raises:
        click.UsageError: With those that there are.
    """
    from jobs.attempts import read_attempts

    attempts = {each.number for each in read_attempts(run_dir)}
    attempts |= {int(path.name) for path in (run_dir / "attempts").glob("[0-9]*")}
    is_awaited = may_come and attempt is not None and attempt > max(attempts, default=0)
    if attempt is not None and attempts and attempt not in attempts and not is_awaited:
        raise click.UsageError(f"--attempt must be one that there is, {_named(attempts)}, but is {attempt}.")
    if rank is None or may_come:
        return
    number = "*" if attempt is None else f"{attempt:04d}"
    logs = run_dir.glob(f"attempts/{number}/round-*/rank-*.log")
    ranks = {int(match[1]) for path in logs if (match := _RANK_LOG.fullmatch(path.name))}
    files = (run_dir / "journal").glob(f"{number}.*-rank*.jsonl")
    ranks |= {int(match[2]) for path in files if (match := _RANK_JOURNAL.fullmatch(path.name))}
    if ranks and rank not in ranks:
        raise click.UsageError(f"--rank must be one that there is, {_named(ranks)}, but is {rank}.")


def _named(numbers: set[int]) -> str:
    """Such as 0 to 7, or 1, 2, 5."""
    if len(numbers) > 2 and max(numbers) - min(numbers) == len(numbers) - 1:
        return f"{min(numbers)} to {max(numbers)}"
    return ", ".join(map(str, sorted(numbers)))
