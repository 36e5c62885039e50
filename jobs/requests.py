"""What was asked for: the stages of a request, in order, and which of them are done.

A request is one `univip submit`. Its stages belong to two runs: the boxes to a proposals run, shared by every
training on the same photographs, and the rest to the training run. `request.json` lies in the run that was
asked for; runs are named by id and lie beside each other, so a moved folder of runs keeps working. Whether a
stage is done is read from the attempts of its run. Torch-free.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jobs.attempts import read_attempts
from jobs.outcomes import ExitCode, read_json, write_json

FILE_NAME = "request.json"
SUPERVISOR_FILE = "supervisor.json"
CANCELLED_FILE = "cancelled"  # a job of SLURM that finds it does not queue itself again
# Carries CUDA_VISIBLE_DEVICES of the shell that submitted to the supervisor; `all` where it was not set.
VISIBLE_GPUS = "UNIVIP_VISIBLE_GPUS"


@dataclass(frozen=True)
class Stage:
    """One kind of work on one run.

    Attributes:
        kind: prepare, shards, merge, train or evaluate.
        run: Id of the run it works on.
        since: Only an attempt begun after this time (Unix, s) counts; a repeated evaluation has it.
    """

    kind: str
    run: str
    since: float = 0.0

    def is_done(self, runs: Path) -> bool:
        """Whether an attempt of this stage has succeeded; merged shards need no further look."""
        kinds = (self.kind, "merge") if self.kind == "shards" else (self.kind,)
        return any(
            attempt.stage in kinds and attempt.exit_code == ExitCode.DONE and attempt.started >= self.since
            for attempt in read_attempts(runs / self.run)
        )


@dataclass(frozen=True)
class Request:
    """One `univip submit`; `request.json` is this object.

    Attributes:
        command: proposals, train, evaluate or pipeline.
        id: Unlike every other request's; tells whether a supervisor works on this one.
    """

    command: str
    stages: list[Stage]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    submitted: float = field(default_factory=time.time)

    def save(self, run_dir: Path) -> None:
        """Write `request.json`, whole or not at all."""
        write_json(run_dir / FILE_NAME, asdict(self))

    @classmethod
    def load(cls, run_dir: Path) -> Request | None:
        """The newest request for a run; None for one made on the way, such as the boxes of a pipeline."""
        document = read_json(run_dir / FILE_NAME)
        if document is None:
            return None
        return cls(**{**document, "stages": [Stage(**stage) for stage in document["stages"]]})


def stages_of(command: str, run: str, proposals: str, *, now: float) -> list[Stage]:
    """Stages of a request, done or not.

    Args:
        command: proposals, train, evaluate or pipeline.
        run: Id of the run asked for.
        proposals: Id of the run that holds index and boxes; empty where the method needs no boxes.
        now: Time of the request.
    """
    boxes = [Stage(kind, proposals or run) for kind in ("prepare", "shards", "merge")]
    index = boxes if proposals else boxes[:1]
    return {
        "proposals": boxes,
        "train": [*([] if proposals else index), Stage("train", run)],
        "evaluate": [Stage("evaluate", run, since=now)],
        "pipeline": [*index, Stage("train", run), Stage("evaluate", run)],
    }[command]
