"""`univip show`: one run, in facts; its configuration, alone or beside another's; or its journal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli import completing

if TYPE_CHECKING:
    from jobs.attempts import Attempt

_NAMES = 10  # of unusable photographs, of stragglers, and of unfit nodes
_ATTEMPTS = 20  # the newest, and as many others that did not end well
_LOST = "substituted_"  # and the reason: how the journal counts samples of lost photographs


@click.command()
@click.argument("run", shell_complete=completing.runs)
@click.argument("what", type=click.Choice(["facts", "config", "diff", "journal"]), default="facts")
@click.argument("other", required=False, shell_complete=completing.runs)
def command(run: str, what: str, other: str | None) -> None:
    """Show a run: its facts, the configuration it was started with, or every record of its journal.

    With diff, the keys in which its configuration differs from that of OTHER.
    """
    from jobs.config import FILE_NAME
    from launcher.runs import find_run

    if (what == "diff") != (other is not None):
        raise click.UsageError("another run goes with diff, and only with it: univip show RUN diff OTHER.")
    run_dir = find_run(run)
    if other is not None:
        _diff(run_dir, find_run(other))
    elif what == "config":
        click.echo((run_dir / FILE_NAME).read_text(encoding="utf-8"), nl=False)
    elif what == "journal":
        from monitoring.journal import read

        for record in read(run_dir):
            click.echo(_line(record))
    else:
        _facts(run_dir)


def _diff(run_dir: Path, other_dir: Path) -> None:
    """Differing keys: first those that make it another run, then those that say where it runs."""
    from jobs.config import read_plain
    from jobs.identity import differing, is_site
    from launcher import render

    differ = differing(read_plain(run_dir), read_plain(other_dir))
    rows = [
        (key, f"{_value(mine)} -> {_value(theirs)}{'  (where it runs)' if is_site(key) else ''}")
        for key, (mine, theirs) in sorted(differ.items(), key=lambda item: (is_site(item[0]), item[0]))
        if key != "run.id"
    ]
    render.fact_table(f"{run_dir.name} -> {other_dir.name}", rows or [("", "no key differs")])


def _facts(run_dir: Path) -> None:
    from jobs import unfit
    from jobs.attempts import read_attempts
    from jobs.config import read_plain
    from jobs.outcomes import ExitCode, read_json
    from jobs.requests import Request
    from launcher import render
    from launcher.states import State
    from launcher.summary import summarise

    summary = summarise(run_dir)
    request = Request.load(run_dir)
    state = summary.state
    rows = [
        ("directory", str(run_dir)),
        ("state", " ".join(part for part in (str(state.state), state.stage, state.cause) if part)),
    ]
    if origin := read_plain(run_dir).get("run", {}).get("origin"):
        rows.append(("begun beside", origin))
    if summary.done is not None:
        rows.append(("progress", render.progress_line(summary)))
    last_rate = summary.last_rate if summary.rate is None else None  # which is told with the progress
    rates = [(last_rate, "in its last minutes"), (summary.mean_rate, "over all its steps")]
    if known := [f"{rate:.1f} images/s {when}" for rate, when in rates if rate is not None]:
        rows.append(("throughput", ", ".join(known)))
    rows += [("straggler", each.words()) for each in summary.stragglers[:_NAMES]]
    if state.message:
        rows.append(("why", state.message))
    if summary.problem and summary.problem not in state.message:
        rows.append(("last problem", summary.problem))
    rows += _unusable(request.directories(run_dir) if request else {run_dir})
    if summary.counts:
        rows.append(("samples", _samples(summary.counts)))
    requests = [each for each in (request, request and request.unfinished) if each]
    for stage in [stage for each in requests for stage in each.stages]:
        is_now = state.state is State.running and stage.kind == state.stage
        word = "done" if stage.is_done(run_dir.parent) else "running" if is_now else "to do"
        rows.append(("stage", f"{stage.kind} of {stage.run}: {word}"))
    attempts = read_attempts(run_dir)
    # Of an array: what did not end well, and the newest.
    told = [each for each in attempts[:-_ATTEMPTS] if each.exit_code != ExitCode.DONE][-_ATTEMPTS:]
    told += attempts[-_ATTEMPTS:]
    if len(told) < len(attempts):
        rows.append(("attempts", f"{len(attempts):,}; {len(attempts) - len(told):,} are not shown"))
    for attempt in told:
        rows.append((f"attempt {attempt.number}", _attempt(run_dir, attempt, is_over=state.is_over())))
    rows += [("unfit node", _unfit(record)) for record in [*unfit.records(run_dir)][-_NAMES:]]
    rows += _anomalies(run_dir)
    results = read_json(run_dir / "results" / "evaluate.json")
    for name, value in (results or {}).items():
        rows.append((name.replace("_", " "), _value(value)))
    render.fact_table(run_dir.name, rows)


def _attempt(run_dir: Path, attempt: Attempt, *, is_over: bool) -> str:
    """What, where, when, and how it ended."""
    from launcher.render import duration, moment
    from launcher.workers import newest_round

    workers = newest_round(run_dir, attempt.number)
    words = f"{attempt.stage} on {', '.join(workers.hosts) if workers else attempt.host}"
    if workers:
        words += f" ({workers.count} worker{'s' if workers.count > 1 else ''})"
    if attempt.slurm_job_id:
        words += f", SLURM job {attempt.slurm_job_id}"
    took = f", {duration(attempt.ended - attempt.started)}" if attempt.ended else ""
    # Of an owner on another host only the state of the run tells.
    end = "running" if attempt.is_alive() and not is_over else attempt.cause or "ended without a word"
    return f"{words}, {moment(attempt.started)}{took}: {end}"


def _unfit(record: dict[str, Any]) -> str:
    """A node that failed its pre-flight or was lost."""
    from launcher.render import moment

    return f"{record['host']}, attempt {record['attempt']}, {moment(record['time'])}: {record['what']}"


def _unusable(run_dirs: set[Path]) -> Iterator[tuple[str, str]]:
    """Photographs that cannot be used: how many, why, and the first names."""
    from jobs.outcomes import read_json

    for path in [run_dir / name for run_dir in run_dirs for name in ("images.json", "proposals.json")]:
        for reason, names in (read_json(path) or {}).get("failed", {}).items():
            rest = f" and others: {path}" if len(names) > _NAMES else ""
            yield "unusable", f"{len(names):,} {reason}: {', '.join(names[:_NAMES])}{rest}"


def _anomalies(run_dir: Path) -> Iterator[tuple[str, str]]:
    """Bad steps that can be computed again, and how."""
    from jobs.outcomes import read_json
    from univip.resilience.anomaly import FILE_NAME, FOLDER

    for path in sorted((run_dir / FOLDER).glob(f"*/{FILE_NAME}")):
        if capsule := read_json(path):
            step, what = capsule["data_step"], capsule["what"]
            again = f"univip replay {shlex.quote(str(run_dir))} {path.parent.name}"
            yield "anomaly", f"{capsule['verdict']} at data step {step}, {what}: {again}"


def _samples(counts: dict[str, float]) -> str:
    """What became of the samples so far."""
    lost = {name.removeprefix(_LOST): count for name, count in counts.items() if name.startswith(_LOST)}
    reasons = ", ".join(f"{count:,.0f} {reason}" for reason, count in lost.items() if count)
    parts = [f"{counts.get('images', 0):,.0f}"]
    for count, words in (
        (sum(lost.values()), f"replaced by other photographs ({reasons})"),
        (counts.get("too_small", 0), "too small for instances"),
        (counts.get("fallback", 0), "with random boxes"),
    ):
        if count:
            parts.append(f"{count:,.0f} {words}")
    return ", ".join(parts)


def _line(record: dict[str, Any]) -> str:
    """A journal record for people."""
    from launcher.render import moment

    rank = "-" if record.get("rank") is None else record["rank"]
    envelope = ("v", "kind", "seq", "time", "attempt", "round", "rank")
    rest = " ".join(
        f"{name}={' '.join(_value(value).split())}"
        for name, value in record.items()
        if name not in envelope and value is not None
    )
    place = f"{record.get('attempt')}.{record.get('round')} rank {rank}"
    return f"{moment(record['time'])}  {place}  {record['kind']}  {rest}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} {_value(item)}" for name, item in value.items()) + "}"
    return str(value)
