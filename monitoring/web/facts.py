"""What became of a run, from its files: attempts, faults and what each cost, where the time went, results.

Costs are counted from the records, not from what was intended: a fault has cost the steps that are not part
of the present state, and the time until the run was past the point it had reached.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.lines import Record
from monitoring.web.history import History, finite

# What a person wants to hear of, and how it is told.
FAULTS = {
    "skip": "batch skipped: {reason} value in {where}",
    "rollback": "rolled back to data step {target}: {reason} value in {where}",
    "restart": "new round of workers: {cause}",
    "interruption": "attempt {attempt} ({stage}) ended: {cause}",
    "checkpoint_failed": "checkpoint not written: {what}",
    "corruption": "damaged checkpoint {checkpoint} put aside",
    "preflight": "node {host} failed its pre-flight and is left out: {what}",
    "stall": "rank {rank} takes far longer than usual in {phase}",
    "straggler": "rank {slowest} is slower than the others, step after step",
    "collapse": "the embeddings are near one point",
    "gpu_error": "GPU {gpu} of {host} (node {node}) reported Xid {xid}: {what}",
    "image_failed": "photograph cannot be used: {reason}",
    "dropped": "{records} journal records lost",
}
TRAIN = "train"
_ATTEMPT_TEXTS = ("stage", "host", "slurm_job_id", "cause", "message")
_RESULTS = Path("results") / "evaluate.json"
PICTURE = "samples.webp"  # in the run directory
MAX_PICTURE_BYTES = 200_000
_LOGS = ("attempts/*/round-*/rank-*.log", "logs/*.log", "submitit/*_log.out", "submitit/*_log.err")
_MAX_FILE_BYTES = 1 << 20
_LOG_BYTES = 65_536
_MAX_LINE_CHARS = 2_000
_MAX_SAMPLES = 16

_PATH = re.compile(
    r"(?<![\w.:/~-])(?:~|file://)?/(?:[^\s/'\"`:,;()\[\]<>|]+/)+(?=[^\s/'\"`:,;()\[\]<>|]|\b|$)"
)
_SECRET_NAME = r"[\w.-]*(?:token|secret|passw(?:or)?d|api_?key|access_?key|credential)[\w-]*"
_SECRET = re.compile(rf"(?i)\b({_SECRET_NAME})(['\"]?\s*[=:]\s*['\"]?)(?!['\"\s])[^\s'\",;]+")
_LOGIN = re.compile(r"(\w+://)[^\s/@:]+:[^\s/@]+@")
HIDDEN = "(hidden)"


def scrub(text: str) -> str:
    """Text that may leave this machine: of absolute paths the last part, of secrets nothing."""
    text = _LOGIN.sub(rf"\1{HIDDEN}@", text)
    text = _SECRET.sub(rf"\1\2{HIDDEN}", text)
    text = _PATH.sub("…/", text)
    return text.encode("utf-8", "replace").decode("utf-8")


def clean(value: Any) -> Any:
    """A JSON value as it may be shown: text scrubbed, and names for what JSON has no numbers for."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {scrub(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else scrub(str(value))


def _number(path: Path) -> int:
    name = path.parent.name
    return int(name) if name.isdecimal() else 0


def attempts(run_dir: Path) -> list[dict[str, Any]]:
    """Every attempt, oldest first; times in Unix seconds, `ended` null while it runs or if it was lost."""
    found = []
    for path in sorted((run_dir / "attempts").glob("[0-9]*/attempt.json"), key=_number):
        document = _read_json(path) or {}
        started, ended = finite(document.get("started")), finite(document.get("ended"))
        if started is None:
            continue
        exit_code = document.get("exit_code")
        found.append(
            {
                "number": document.get("number"),
                **{name: str(document.get(name) or "") for name in _ATTEMPT_TEXTS},
                "started": started,
                "ended": ended,
                "exit_code": exit_code if isinstance(exit_code, int) else None,
            }
        )
    return sorted(found, key=lambda each: float(each["started"]))


def faults(history: History, tries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What went wrong and was survived, oldest first.

    Returns:
        Objects with time, kind, data_step, text, and where it is known what it cost: `steps_lost`, data steps
        whose work is not part of the present state, and `seconds_lost` until the run was past that point.
    """
    told = [record for record in history.events if record["kind"] in FAULTS]
    events = [*told, *_interruptions(tries)]
    times, steps = history.x("time"), history.x("step")
    restores = [record for record in history.events if record["kind"] == "restore"]
    found = []
    for record in sorted(events, key=lambda each: float(each["time"])):
        kind = record["kind"]
        fault = {
            "time": record["time"],
            "kind": kind,
            "data_step": finite(record.get("data_step")),
            "attempt": record.get("attempt"),
            "text": FAULTS[kind].format_map(_Unknown(record)),
            "steps_lost": 1 if kind == "skip" else None,
            "seconds_lost": None,
        }
        if (
            kind in ("rollback", "restart", "interruption")
            and record.get("stage", TRAIN) == TRAIN
            and len(times)
        ):
            fault |= _cost(record, times, steps, restores)
        found.append(fault)
    return found


def time_spent(
    history: History, tries: list[dict[str, Any]], *, is_over: bool, now: float
) -> dict[str, float]:
    """Where the wall time of training went, in seconds.

    Returns:
        `useful`: steps that led to the present state. `redone`: steps that a rollback or restart discarded.
        `overhead`: starting, restoring, waiting for a first batch, and what no record tells of. `between`:
        nobody worked, such as in the queue.
    """
    training = [each for each in tries if each["stage"] == TRAIN]
    if not training:
        return {}
    times = history.x("time")
    last = float(times.max()) if len(times) else training[-1]["started"]
    spans: list[tuple[float, float]] = []
    for each, after in _pairs(training):
        until = after["started"] if after else last if is_over else max(now, last)
        ended = each["ended"]
        if ended is None:  # it lives, or was lost after its last record
            mine = times[(times >= each["started"]) & (times <= until)]
            ended = until if after is None else float(mine.max()) if len(mine) else each["started"]
        spans.append((each["started"], max(ended, each["started"])))
    inside = sum(ended - started for started, ended in spans)
    total = max(ended for _, ended in spans) - spans[0][0]
    seconds, gone = np.nan_to_num(history.seconds()), history.is_superseded()
    useful, redone = float(seconds[~gone].sum()), float(seconds[gone].sum())
    return {
        "useful": useful,
        "redone": redone,
        "overhead": max(0.0, inside - useful - redone),
        "between": max(0.0, total - inside),
    }


def results(run_dir: Path) -> dict[str, Any] | None:
    """What the last evaluation measured."""
    return _read_json(run_dir / _RESULTS)


def picture(run_dir: Path) -> bytes | None:
    """The picture of the last samples; None if there is none, or if what lies there is something else."""
    try:
        # Neither through a link to somewhere else nor waiting for a pipe.
        descriptor = os.open(run_dir / PICTURE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(MAX_PICTURE_BYTES + 1)
    except OSError:
        return None
    is_picture = data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) <= MAX_PICTURE_BYTES
    return data if is_picture else None


def samples_shown(history: History) -> dict[str, Any] | None:
    """What is on that picture; None if none was ever to be drawn.

    Returns:
        Its data step, when it was drawn, image id and epoch of each sample, all of it in words for those who
        do not see it, and `problem`, why the newest one could not be drawn.
    """
    record = history.picture
    if not (record or history.picture_problem):
        return None
    ids, epochs = (record.get(name) for name in ("image_ids", "epochs"))
    pairs = zip(ids, epochs, strict=False) if isinstance(ids, list) and isinstance(epochs, list) else ()
    samples = [
        {"image_id": image_id, "epoch": epoch}
        for image_id, epoch in itertools.islice(pairs, _MAX_SAMPLES)
        if type(image_id) is int and type(epoch) is int
    ]
    photographs = ", ".join(str(sample["image_id"]) for sample in samples)
    return {
        "time": record.get("time"),
        "data_step": finite(record.get("data_step")),
        "samples": samples,
        "words": f"Samples of the photographs {photographs}: each photograph with two scenes and the boxes "
        "in their overlap, and beside it scenes and boxes as the network sees them",
        "problem": history.picture_problem,
    }


def configuration(run_dir: Path) -> list[tuple[str, str]]:
    """Dotted keys and values of `config.yaml`, in its order, secrets left out; empty if it cannot be read."""
    import yaml

    try:
        document = yaml.safe_load(_head(run_dir / "config.yaml"))
    except (OSError, yaml.YAMLError, RecursionError):
        return []
    return list(_flatten(document, "")) if isinstance(document, dict) else []


def overrides(run_dir: Path) -> list[str]:
    """What was typed."""
    try:
        return [scrub(line) for line in _head(run_dir / "overrides.txt").splitlines()]
    except OSError:
        return []


def log_files(run_dir: Path) -> list[str]:
    """Names of what the processes printed, relative to the run; of each kind the last changed one first."""
    found = []
    inside = run_dir.resolve()
    for order, pattern in enumerate(_LOGS):
        for path in run_dir.glob(pattern):
            try:
                if path.resolve().is_relative_to(inside) and path.is_file():
                    found.append((order, -path.stat().st_mtime, path.relative_to(run_dir).as_posix()))
            except OSError:
                continue  # gone in between
    return [name for _, _, name in sorted(found)]


def log_tail(run_dir: Path, name: str) -> list[str]:
    """Last lines of one of `log_files`.

    Raises:
        OSError: If it cannot be read.
    """
    with (run_dir / name).open("rb") as file:
        start = max(0, file.seek(0, 2) - _LOG_BYTES)
        file.seek(start)
        data = file.read(_LOG_BYTES)
    lines = data.decode("utf-8", "replace").splitlines()
    return [scrub(line[:_MAX_LINE_CHARS]) for line in lines[1 if start else 0 :]]


def _interruptions(tries: list[dict[str, Any]]) -> list[Record]:
    """Attempts that did not do their work; of training, also one that was lost and followed by another."""
    found = []
    trained = [each for each in tries if each["stage"] == TRAIN]
    others = [each for each in tries if each["stage"] != TRAIN and each["ended"] is not None]
    for each, after in [*_pairs(trained), *((each, None) for each in others)]:
        is_good = each["exit_code"] == 0 or (each["ended"] is None and after is None)
        if is_good or each["cause"] == "busy":
            continue
        ended = each["ended"]
        found.append(
            {
                "kind": "interruption",
                "time": ended if ended is not None else after["started"] if after else each["started"],
                "attempt": each["number"],
                "stage": each["stage"],
                "cause": each["cause"] or "without a word",
            }
        )
    return found


def _pairs(tries: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Each attempt with the one that followed it."""
    return list(zip(tries, [*tries[1:], None][: len(tries)], strict=True))


def _cost(record: Record, times: Any, steps: Any, restores: list[Record]) -> dict[str, float | None]:
    """What was lost by going back."""
    before = times <= record["time"]
    if not before.any():
        return {}
    told = finite(record.get("data_step")) if record["kind"] == "rollback" else None
    reached = float(steps[before][-1]) if told is None else told
    target = finite(record.get("target"))
    if target is None:
        after = [each for each in restores if each["time"] >= record["time"]]
        target = finite(after[0].get("data_step")) if after else None
    again = ~before & (steps > reached)
    cost: dict[str, float | None] = {"data_step": reached}
    if target is not None:
        cost["steps_lost"] = max(0.0, reached - target)
    if again.any():
        cost["seconds_lost"] = float(times[again][0] - times[before][-1])
    return cost


def _flatten(value: Any, prefix: str) -> Any:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif re.fullmatch(_SECRET_NAME, prefix.rpartition(".")[2], flags=re.IGNORECASE):
        yield scrub(prefix), HIDDEN
    else:
        yield scrub(prefix), scrub(value if isinstance(value, str) else json.dumps(value, default=str))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(_head(path))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _head(path: Path) -> str:
    """Text of a small file; what is larger was not written by us."""
    with path.open("rb") as file:
        return file.read(_MAX_FILE_BYTES).decode("utf-8", "replace")


class _Unknown(dict[str, Any]):
    """A record whose missing fields read as a question mark."""

    def __missing__(self, key: str) -> str:
        return "?"
