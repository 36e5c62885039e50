"""What was asked for: the stages of a request, in order, and which of them are done.

A request is one `univip submit`. Its stages belong to two runs: the boxes to a proposals run, shared by every
training on the same photographs, and the rest to the training run. `request.json` lies in the run that was
asked for; runs are named by id and lie beside each other, so a moved folder of runs keeps working. Whether a
stage is done is read from the attempts of its run. Torch-free.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.attempts import known_fields, read_attempts
from jobs.outcomes import ExitCode, read_json, write_json

FILE_NAME = "request.json"
SUPERVISOR_FILE = "supervisor.json"
# Made by `univip cancel` before it signals the jobs: one that finds it does not begin nor queue itself again.
# Whoever submits the run again removes it before there is a new job.
CANCELLED_FILE = "cancelled"
# Carries CUDA_VISIBLE_DEVICES of the shell that submitted to the supervisor; `all` where it was not set.
VISIBLE_GPUS = "UNIVIP_VISIBLE_GPUS"


@dataclass(frozen=True)
class Stage:
    """One kind of work on one run.

    Attributes:
        kind: prepare, shards, merge, train or evaluate.
        run: Id of the run it works on.
        after: Only an attempt with a greater number counts (the clocks of two nodes differ). An evaluation
            asked for by itself has it; any other one is of the trained network, and counts only if training
            was done before. So has an index that must be made anew.
    """

    kind: str
    run: str
    after: int | None = None

    def is_done(self, runs: Path) -> bool:
        """Whether an attempt of this stage has succeeded; merged shards need no further look."""
        kinds = (self.kind, "merge") if self.kind == "shards" else (self.kind,)
        done = [each for each in read_attempts(runs / self.run) if each.exit_code == ExitCode.DONE]
        after = self.after or 0
        if self.kind == "evaluate" and self.after is None:
            trained = [each.number for each in done if each.stage == "train"]
            if not trained:
                return False
            after = max(trained)
        return any(each.stage in kinds and each.number > after for each in done)


@dataclass(frozen=True)
class Request:
    """One `univip submit`; `request.json` is this object.

    Attributes:
        command: proposals, train, evaluate or pipeline.
        id: Unlike every other request's; tells whether a supervisor works on this one.
        unfinished: The request that was not through when an evaluation was asked for; `univip resume` goes
            on with it.
    """

    command: str
    stages: list[Stage]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    submitted: float = field(default_factory=time.time)
    unfinished: Request | None = None

    def remaining(self, runs: Path) -> list[Stage]:
        """Stages that are not done yet, of this request alone."""
        return [stage for stage in self.stages if not stage.is_done(runs)]

    def directories(self, run_dir: Path) -> set[Path]:
        """Directories of all runs that it works on, the one that was asked for among them."""
        return {run_dir, *(run_dir.parent / stage.run for stage in self.stages)}

    def renamed(self, old: str, new: str) -> Request:
        """The same request after a run that it works on got another id."""
        return replace(
            self,
            stages=[replace(stage, run=new) if stage.run == old else stage for stage in self.stages],
            unfinished=self.unfinished and self.unfinished.renamed(old, new),
        )

    def save(self, run_dir: Path) -> None:
        """Write `request.json`, whole or not at all."""
        write_json(run_dir / FILE_NAME, asdict(self))

    @classmethod
    def load(cls, run_dir: Path) -> Request | None:
        """The newest request for a run; None for one made on the way, such as the boxes of a pipeline."""
        document = read_json(run_dir / FILE_NAME)
        return None if document is None else cls._of(document)

    @classmethod
    def _of(cls, document: dict[str, Any]) -> Request:
        unfinished = document.get("unfinished")
        known = {
            "stages": [Stage(each["kind"], each["run"], each.get("after")) for each in document["stages"]],
            "unfinished": None if unfinished is None else cls._of(unfinished),
        }
        return cls(**known_fields(cls, document) | known)


def is_cancelled(run_dir: Path) -> bool:
    """Whether somebody cancelled a run whose stages are jobs of SLURM."""
    try:
        # A network file system asks its server when a file is opened, but may remember for a minute that it
        # was there: a job that is resumed at once must not take itself for the one that was cancelled.
        (run_dir / CANCELLED_FILE).open("rb").close()
    except FileNotFoundError:
        return False
    return True


def stages_of(command: str, run: str, proposals: str, *, newest: int = 0) -> list[Stage]:
    """Stages of a request, done or not.

    Args:
        command: proposals, train, evaluate or pipeline.
        run: Id of the run asked for.
        proposals: Id of the run that holds index and boxes; empty where the method needs no boxes.
        newest: Number of the newest attempt of the run asked for.
    """
    boxes = [Stage(kind, proposals or run) for kind in ("prepare", "shards", "merge")]
    index = boxes if proposals else boxes[:1]
    return {
        "proposals": boxes,
        "train": [*([] if proposals else index), Stage("train", run)],
        "evaluate": [Stage("evaluate", run, after=newest)],
        "pipeline": [*index, Stage("train", run), Stage("evaluate", run)],
    }[command]
