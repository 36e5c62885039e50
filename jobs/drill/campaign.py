"""The campaign: every kind in turn, trials until there are enough of each, and what is said about them."""

from __future__ import annotations

import hashlib
import json
import logging
import pkgutil
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jobs
import univip
from jobs.drill import results
from jobs.drill.kinds import KINDS, Kind
from jobs.drill.lab import Lab
from jobs.drill.results import Result
from jobs.locks import locked
from univip.resilience import faults

_LOCK_FILE = "lock"

Tell = Callable[[str], None]


def run(
    folder: Path,
    photographs: Path,
    overrides: Sequence[str],
    *,
    kinds: Sequence[str],
    trials: int,
    seed: int,
    resume: bool,
    tell: Tell,
) -> dict[str, Any]:
    """Run a campaign and keep every finished round trip.

    Args:
        folder: Where runs are made and results are kept.
        photographs: Made by `launcher.demo_data`.
        overrides: Of the user.
        kinds: Names, in the order of `KINDS`.
        trials: Of each kind, at least and times its `times`; of exhaustive kinds as many as there are points.
        seed: Of everything that is drawn.
        resume: Keep the round trips that an earlier campaign of the same code and request finished.
        tell: Takes one line of progress.

    Returns:
        `{"seed", "seconds", "rows", "failing", "holds"}`.

    Raises:
        RunBusyError: If another campaign is at work in this folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / _LOCK_FILE, wait=False):
        return _run(folder, photographs, overrides, kinds, trials, seed, resume, tell)


def _run(
    folder: Path,
    photographs: Path,
    overrides: Sequence[str],
    kinds: Sequence[str],
    trials: int,
    seed: int,
    resume: bool,
    tell: Tell,
) -> dict[str, Any]:
    """Of the one that holds the lock."""
    begun = time.monotonic()
    path = folder / results.FILE_NAME
    campaign = _identity(seed, overrides)
    if not resume:
        path.unlink(missing_ok=True)
    kept = results.read(path, campaign)
    logger = logging.getLogger(faults.__name__)
    was_disabled, logger.disabled = logger.disabled, True  # the table says what was planted
    lab: Lab | None = None
    rows = []
    try:
        for kind in (each for each in KINDS if each.name in kinds):
            found = [result for result in kept if result.kind == kind.name]
            while not _is_enough(kind, found, trials):
                lab = lab or Lab(folder, photographs, overrides)
                result = _round_trip(lab, kind, len(found), seed)
                results.append(path, campaign, result)
                found.append(result)
            rows.append(results.row(kind.name, kind.how, found))
            tell(f"{kind.name}: {rows[-1]['trials']} trials, {'ok' if rows[-1]['holds'] else 'FAILING'}")
    finally:
        logger.disabled = was_disabled
    failing = [row["kind"] for row in rows if not row["holds"]]
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - begun, 1),
        "rows": rows,
        "failing": failing,
        "holds": not failing,
    }


def _is_enough(kind: Kind, found: Sequence[Result], trials: int) -> bool:
    if found and found[-1].is_last:
        return True
    return not kind.is_exhaustive and sum(max(result.trials, 1) for result in found) >= kind.times * trials


def _round_trip(lab: Lab, kind: Kind, number: int, seed: int) -> Result:
    """One run with its faults; whatever is raised is a failing trial, not the end of the campaign."""
    draws = random.Random(f"{seed} {kind.name} {number}")
    before = set(lab.runs.iterdir())
    exercise = pkgutil.resolve_name(f"jobs.drill.{kind.entry}")
    try:
        result = exercise(lab, number, draws)
    except Exception as error:  # noqa: BLE001 - of any kind; the table tells
        what = f"{type(error).__name__}: {error}"
        return Result(kind.name, number, trials=1, problems=[what], is_last=kind.is_exhaustive)
    assert isinstance(result, Result)
    if result.holds():
        lab.clear(before)
    return result


def _identity(seed: int, overrides: Sequence[str]) -> str:
    """Of a campaign: a result holds for the code that it was found with."""
    total = hashlib.sha256(json.dumps([seed, list(overrides), sys.version]).encode())
    for package in (univip, jobs):
        for source in sorted(Path(package.__path__[0]).rglob("*.py")):
            total.update(source.read_bytes())
    return total.hexdigest()[:16]
