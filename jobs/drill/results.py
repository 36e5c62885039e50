"""What trials found: one line of `trials.jsonl` each, and the table made of them.

A trial is one injected fault, or one run without any. A *round trip* is one run that takes some trials; its
line is written when it has ended, so a campaign that is cut off goes on where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE_NAME = "trials.jsonl"


@dataclass
class Result:
    """Of one round trip.

    Attributes:
        kind: Of the fault.
        number: Of the round trip within its kind.
        trials: Faults injected; of a control 1, the run.
        detected: Faults that the run told of; None where there is nothing to tell.
        recovered: Trials after which the run reached its end without a person.
        false_actions: Skips, rollbacks, restarts and reports of damage that no fault explains.
        steps_lost: Computed again, or left out.
        samples_lost: Left out by a decision of the ledger, as the audit proves.
        samples_wrong: Lost without a decision, repeated, or others than planned.
        seconds: From each fault to the next good step.
        is_equal: Whether the digest is that of the calm run; None where it need not be.
        replayed: Bad steps that `univip replay` computed again, with the bits of the run.
        replays: Bad steps to compute again.
        useful: Share of the time that went into steps that count, where faults come as in a real run.
        problems: What went wrong, in words.
        is_last: Whether there is nothing more to try of this kind.
    """

    kind: str
    number: int
    trials: int = 0
    detected: int | None = None
    recovered: int = 0
    false_actions: int = 0
    steps_lost: int = 0
    samples_lost: int = 0
    samples_wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    is_equal: bool | None = None
    replayed: int = 0
    replays: int = 0
    useful: float | None = None
    problems: list[str] = field(default_factory=list)
    is_last: bool = False

    def holds(self) -> bool:
        """Whether everything is as it must be."""
        return (
            self.detected in (None, self.trials)
            and self.recovered == self.trials
            and self.is_equal is not False
            and self.replayed == self.replays
            and not (self.false_actions or self.samples_wrong or self.problems)
        )


def read(path: Path, campaign: str) -> list[Result]:
    """The finished round trips of one campaign; a line that was cut off is none."""
    results = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if document.pop("campaign") == campaign:
            results.append(Result(**document))
    return results


def append(path: Path, campaign: str, result: Result) -> None:
    """Keep one finished round trip."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    cut_off = "\n" if text and not text.endswith("\n") else ""
    with path.open("a", encoding="utf-8") as file:
        file.write(cut_off + json.dumps({"campaign": campaign, **asdict(result)}) + "\n")


def row(kind: str, how: str, results: Sequence[Result]) -> dict[str, Any]:
    """One row of the table: the sum of a kind's round trips."""
    seconds = sorted(each for result in results for each in result.seconds)
    detected = [result.detected for result in results if result.detected is not None]
    equal = [result.is_equal for result in results if result.is_equal is not None]
    return {
        "kind": kind,
        "how": how,
        "trials": sum(result.trials for result in results),
        "detected": sum(detected) if detected else None,
        **{
            name: sum(getattr(result, name) for result in results)
            for name in (
                "recovered",
                "false_actions",
                "steps_lost",
                "samples_lost",
                "samples_wrong",
                "replayed",
                "replays",
            )
        },
        "seconds_p50": _quantile(seconds, 0.5),
        "seconds_p95": _quantile(seconds, 0.95),
        "useful": min((each.useful for each in results if each.useful is not None), default=None),
        "digest_equal": all(equal) if equal else None,
        "problems": [problem for result in results for problem in result.problems],
        "holds": all(result.holds() for result in results) and any(result.trials for result in results),
    }


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that this share of all does not exceed."""
    return round(ordered[math.ceil(share * len(ordered)) - 1], 3) if ordered else None
