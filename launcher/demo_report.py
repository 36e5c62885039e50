"""What the demo has to show for itself: counted from the files of the run, not from what was intended."""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import Any

from jobs.outcomes import read_json
from launcher.plan import Plan
from monitoring.journal import Record, read

Rows = list[tuple[str, str]]


def report(plan: Plan) -> Rows:
    """Names and values of the summary table."""
    run_dir, batch = plan.run_dir, plan.config.train.global_batch
    records = list(read(run_dir))
    # Ordered by time: a rollback or a new round moves the data step back, and it can be seen.
    steps = [record for record in records if record["kind"] == "step"]
    boxes = read_json(run_dir.parent / plan.header.proposals / "proposals.json") or {}
    counts = boxes.get("boxes", {})
    rows = [
        ("images", f"{plan.header.num_images} crops of photographs"),
        ("boxes", ", ".join(f"{count:,} {name}" for name, count in counts.items())),
    ]
    if steps:
        last = steps[-1]
        rows += [
            ("steps", f"{last['step']} applied of {last['data_step']} data steps, {batch} images each"),
            ("images/s", f"{_median_rate(steps):.1f} (median)"),
        ]
        rows += _faults(records, steps)
        rows += _samples(records, last, batch)
    rows += _results(read_json(run_dir / "results" / "evaluate.json") or {})
    rows += [("run directory", str(run_dir))]
    return rows


def _faults(records: list[Record], steps: list[Record]) -> Rows:
    """Every fault the run met, and what it cost."""
    rows = []
    for record in records:
        if record["kind"] == "rollback":
            at, back_to = record["data_step"], record["target"]
            rows.append(
                (
                    "rollback",
                    f"{record['reason']} {record['where']} at data step {at}, back to {back_to}: "
                    f"{at - back_to} steps discarded, {_seconds_lost(record, at, steps)}",
                )
            )
        elif record["kind"] == "restart":
            reached = max((step["data_step"] for step in _before(record, steps)), default=0)
            after = [step["data_step"] for step in steps if step["time"] > record["time"]]
            again = after[0] if after else reached + 1
            rows.append(
                (
                    "restart",
                    f"a worker ended ({record['cause']}) after data step {reached}: "
                    f"{reached + 1 - again} steps done again, {_seconds_lost(record, reached, steps)}",
                )
            )
        elif record["kind"] == "skip":
            rows.append(
                ("skip", f"{record['reason']} in {record['where']} at data step {record['data_step']}")
            )
    return rows or [("faults", "none")]


def _before(fault: Record, steps: list[Record]) -> list[Record]:
    return [step for step in steps if step["time"] <= fault["time"]]


def _seconds_lost(fault: Record, reached: int, steps: list[Record]) -> str:
    """From the last step before a fault until the run was past that point again."""
    before = _before(fault, steps)
    again = [step for step in steps if step["time"] > fault["time"] and step["data_step"] > reached]
    if not before or not again:
        return "time unknown"
    return f"{again[0]['time'] - before[-1]['time']:.1f} s until the run was past it"


def _samples(records: list[Record], last: Record, batch: int) -> Rows:
    """Samples whose step is missing from the state at the end, or is in it twice.

    A data step is in the state if it was applied; the jumped and the skipped ones are not. So applied steps
    and missing ones must add up to the data steps; what is over was counted twice.
    """
    jumped: set[int] = set()
    for record in records:
        if record["kind"] == "rollback":
            jumped |= set(range(record["window_start"], record["window_stop"]))
        if record["kind"] == "skip":
            jumped.add(record["data_step"])
    missing = len([step for step in jumped if step < last["data_step"]])
    repeated = last["step"] + missing - last["data_step"]
    return [
        ("samples lost", f"{missing * batch} (the {missing} data steps around the bad value, on purpose)"),
        ("samples repeated", str(repeated * batch)),
    ]


def _results(results: dict[str, Any]) -> Rows:
    """Trained beside untrained, whichever way it goes."""
    names = {
        "top1": "kNN top-1",
        "mean_average_precision": "kNN mAP",
        "feature_std": "feature std",
        "effective_rank": "effective rank",
    }
    trained, untrained = results.get("trained", {}), results.get("untrained", {})
    return [
        (title, f"{trained[name]:.4g}  (untrained network: {untrained[name]:.4g})")
        for name, title in names.items()
        if name in trained and name in untrained
    ]


def _median_rate(steps: list[Record]) -> float:
    rates = [
        (after["images"] - before["images"]) / (after["time"] - before["time"])
        for before, after in pairwise(steps)
        if after["time"] > before["time"] and after["images"] > before["images"]
    ]
    return statistics.median(rates) if rates else 0.0
