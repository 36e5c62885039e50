"""From a configuration to what would be done: runs, stages, and how much work they are.

Nothing here writes; `--dry-run` stops after it.
"""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.attempts import newest_attempt
from jobs.config import (
    FILE_NAME,
    INDEX_REPORT,
    ClusterKind,
    Config,
    RunHeader,
    RunKind,
    load,
    load_header,
)
from jobs.identity import run_id
from jobs.outcomes import read_json
from jobs.requests import Request, Stage, stages_of
from launcher.errors import RefusedError
from launcher.runs import free_sibling, is_foreign, refuse_foreign
from univip.config import DataFormat, MethodName
from univip.data.scan import Scan, annotation_file, scan, split_names
from univip.optim.schedules import total_data_steps
from univip.proposals.cut import FOLDER, count_shards, search_seconds, shard_file

_NAMES = 3  # of photographs left out
_STORE_REPORT = "proposals.json"
_MOST_HEADERS = 2000  # of a folder; the rest is looked at by the first stage


@dataclass(frozen=True)
class Plan:
    """What a request means on the data as it is now.

    Attributes:
        header: Of the run that is asked for.
        proposals: Header of the run that holds the boxes; None where the method needs none, where it is the
            run that is asked for, or where another user has made them.
        refused: Names of the photographs left out, by reason.
        unfit: Nodes of SLURM that its jobs shall not be given, beside those that the configuration excludes.
        most_elements: Of an array; the site may allow fewer than this, which is what most do.
    """

    config: Config
    header: RunHeader
    proposals: RunHeader | None
    request: Request
    num_shards: int
    data_steps: int
    refused: dict[str, list[str]]
    unfit: tuple[str, ...] = ()
    most_elements: int = 1000

    @property
    def run_dir(self) -> Path:
        """Directory of the run that is asked for."""
        return Path(self.config.paths.runs) / self.header.id

    @property
    def shards_left(self) -> list[int]:
        """Shards without a report, which an array has to search; the first one if there are none."""
        boxes = self.run_dir.parent / (self.header.proposals or self.header.id)
        try:
            done = {entry.name for entry in os.scandir(boxes / FOLDER)}
        except (FileNotFoundError, NotADirectoryError):
            done = set()
        left = [
            n for n in range(self.num_shards) if Path(shard_file(n)).with_suffix(".json").name not in done
        ]
        return left or [0]

    def lines(self) -> list[str]:
        """The plan in words, for a person."""
        runs = Path(self.config.paths.runs)
        lines = [
            f"run        {self.header.id}",
            f"directory  {self.run_dir}",
            f"images     {self.header.num_images:,}",
        ]
        is_listed = self.config.data.format is DataFormat.folder and self.header.num_images > _MOST_HEADERS
        of = f" of {_MOST_HEADERS:,} looked at" if is_listed else ""
        for reason, names in sorted(self.refused.items()):
            rest = ", ..." if len(names) > _NAMES else ""
            lines.append(f"left out   {len(names):,} {reason}{of}: {', '.join(names[:_NAMES])}{rest}")
        for run, stages in itertools.groupby(self.request.stages, key=lambda stage: stage.run):
            words = [f"{stage.kind}{' (done)' if stage.is_done(runs) else ''}" for stage in stages]
            lines.append(f"stages     {', '.join(words)} of {run}")
        if any(stage.kind == "shards" for stage in self.request.stages):
            images = math.ceil(self.header.num_images / self.num_shards)
            lines.append(f"shards     {self.num_shards:,} of about {images:,} images")
        if any(stage.kind == "train" for stage in self.request.stages):
            batch = self.config.train.global_batch
            lines.append(f"training   {self.data_steps:,} data steps of {batch:,} images")
        return lines


def make_plan(command: str, config: Config, *, forks: bool = False) -> Plan:
    """Look at the data and name the runs.

    Args:
        command: proposals, train, evaluate or pipeline.
        config: A checked configuration.
        forks: Begin a training anew, beside the one of the same configuration that there is.

    Raises:
        DataError: If the photographs cannot be used.
        RefusedError: If a run that would have to be written belongs to another user.
    """
    found = scan(config.data, most_headers=_MOST_HEADERS)
    runs = Path(config.paths.runs)
    if command == "proposals":
        boxes = _boxes_header(config, found, run_id(config, found.fingerprint, RunKind.proposals))
        return _plan(command, config, boxes, None, found)
    train_id, origin = run_id(config, found.fingerprint, RunKind.train), ""
    if forks and (runs / train_id).exists():
        train_id, origin = free_sibling(runs / train_id, "fork").name, train_id
    refuse_foreign(runs / train_id)
    header = RunHeader(train_id, RunKind.train, found.fingerprint, found.num_images, origin=origin)
    if config.method.name is MethodName.byol:
        return _plan(command, config, header, None, found)
    boxes_id = run_id(config, found.fingerprint, RunKind.proposals)
    if _has_foreign_boxes(runs / boxes_id):
        return _plan(command, config, replace(header, proposals=boxes_id), None, found)
    if forks and is_foreign(runs / boxes_id):
        boxes_id = free_sibling(runs / boxes_id, "fork").name
    boxes = _boxes_header(config, found, boxes_id)
    return _plan(command, config, replace(header, proposals=boxes_id), boxes, found)


def plan_again(run_dir: Path) -> Plan:
    """The newest request of a run once more, as its own configuration says.

    After an evaluation in the middle of another request, that other one.

    Raises:
        DataError: If the photographs cannot be used.
        RefusedError: If they are no longer those the run was made for, or the run is another user's.
    """
    refuse_foreign(run_dir)
    config, header = load(run_dir), load_header(run_dir)
    config = replace(config, paths=replace(config.paths, runs=str(run_dir.parent)))
    request = Request.load(run_dir)
    if request and request.unfinished:
        request = request.unfinished
    found = scan(config.data, most_headers=_MOST_HEADERS)
    if found.fingerprint != header.fingerprint:
        raise RefusedError(
            f"the photographs must be those of run `{run_dir.name}`, but ids, names or sizes have changed.",
            where=config.data.root,
            fix="restore them, or submit again: other photographs are another run",
        )
    boxes = None
    if header.proposals and not _has_foreign_boxes(run_dir.parent / header.proposals):
        boxes_dir = run_dir.parent / header.proposals
        # Removed since, they are made again.
        is_there = (boxes_dir / FILE_NAME).exists()
        boxes = load_header(boxes_dir) if is_there else _boxes_header(config, found, boxes_dir.name)
    command = request.command if request else str(header.kind)
    return _plan(command, config, header, boxes, found)


def _plan(command: str, config: Config, header: RunHeader, boxes: RunHeader | None, found: Scan) -> Plan:
    train, num_images = config.train, found.num_images
    if (
        config.evaluate.split
        and config.data.format is DataFormat.coco
        and command in ("pipeline", "evaluate")
    ):
        for split in split_names(config.evaluate.split):  # told now, and not when the training is done
            annotation_file(Path(config.data.root), split, key="evaluate.split")
    return Plan(
        config=config,
        header=header,
        proposals=boxes,
        request=Request(command, _stages(command, config, header, found)),
        num_shards=_num_shards(config, header.proposals or header.id, found),
        data_steps=train.max_steps or total_data_steps(train.epochs, num_images, train.global_batch),
        refused=found.refused,
    )


def _boxes_header(config: Config, found: Scan, boxes_id: str) -> RunHeader:
    """Header of a run that makes boxes, which must be ours or new."""
    refuse_foreign(Path(config.paths.runs) / boxes_id)
    num_shards = _num_shards(config, boxes_id, found)
    return RunHeader(boxes_id, RunKind.proposals, found.fingerprint, found.num_images, num_shards=num_shards)


def _has_foreign_boxes(boxes: Path) -> bool:
    """Whether another user has made these boxes and lets us read them: then they only have to be read."""
    is_readable = is_foreign(boxes) and os.access(boxes, os.R_OK | os.X_OK)
    return is_readable and Stage("merge", boxes.name).is_done(boxes.parent)


def _num_shards(config: Config, boxes: str, found: Scan) -> int:
    """Shards of a run of boxes: as it was cut, else as it was asked for, else by the work there is."""
    run_dir, proposals = Path(config.paths.runs) / boxes, config.proposals
    if borders := (read_json(run_dir / INDEX_REPORT) or {}).get("shards"):
        return len(borders) - 1
    if (run_dir / FILE_NAME).exists() and (before := load_header(run_dir).num_shards):
        return before
    in_slurm = config.cluster.kind is ClusterKind.slurm
    cores = proposals.processes or (
        config.cluster.proposals.cpus_per_task if in_slurm else len(os.sched_getaffinity(0))
    )
    return count_shards(
        found.num_images,
        search_seconds(found.pixels, str(proposals.engine), str(proposals.mode)),
        shard_core_seconds=60 * proposals.shard_minutes * cores,
        most_images=proposals.shard_images,
    )


def _stages(command: str, config: Config, header: RunHeader, found: Scan) -> list[Stage]:
    """Stages of the request.

    The index is made again where photographs moved to folders of other names, and boxes whose store was
    removed, because it was damaged, are merged again.
    """
    runs = Path(config.paths.runs)
    stages = stages_of(command, header.id, header.proposals, newest=newest_attempt(runs / header.id))
    boxes = runs / (header.proposals or header.id)
    index = read_json(boxes / INDEX_REPORT)
    again = set()
    if index is not None and index.get("layout") != found.layout:
        again.add("prepare")
    if index is not None and not (boxes / _STORE_REPORT).exists():
        again |= {"shards", "merge"}
    newest = newest_attempt(boxes)
    return [replace(stage, after=newest) if stage.kind in again else stage for stage in stages]
