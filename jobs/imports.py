"""Proposals runs that search nothing: boxes from files, or those of another run under another filter.

Both leave what a searched run leaves (index, store, report, attempts, journal), so that training finds them
in the same way. They run in the command that asks for them; the same command goes on where a killed one was.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jobs import proposals
from jobs.attempts import attempt
from jobs.config import INDEX_NAME, Config, data_dir, load, load_header
from jobs.identity import run_facts
from jobs.outcomes import Cause, ExitCode, Outcome
from monitoring.journal import Journal
from univip.atomic import replacing
from univip.data.images import ImageIndex
from univip.data.proposals import FORMAT, RAW, STORE_NAME, ProposalStore, report_path
from univip.data.scan import listed
from univip.errors import ConfigError, DataError
from univip.proposals import foreign, orl
from univip.proposals.foreign import ForeignBoxes, Mark, Source
from univip.proposals.refill import Report, StoreWriter
from univip.types import Boxes

_BLOCK_IMAGES = 256

Tell = Callable[[int], None]


def import_boxes(run_dir: Path, sources: Sequence[Source], tell: Tell) -> Report:
    """Fill the store of a run from files; see `univip.proposals.foreign`.

    Args:
        run_dir: A run whose `config.yaml` is there.
        sources: The files, examined.
        tell: Receives the bytes read so far.

    Returns:
        The report, with how the files were read and the shortest edge of any box, px.

    Raises:
        DataError: If a file is damaged, hostile or of other images.
        RunBusyError: If another process works on the run.
    """
    with _stage(run_dir, "prepare"):
        config, header = load(run_dir), load_header(run_dir)
        index = proposals.prepare(config, run_dir, expected_fingerprint=header.fingerprint)
    with _stage(run_dir, "shards"):
        boxes = ForeignBoxes(sources, index, [row for row, _ in listed(config.data)])
        provenance = {
            "store": FORMAT,
            "source": boxes.kind,
            "source_sha256": [source.sha256 for source in sources],
            "import_version": foreign.VERSION,
            "fingerprint": index.fingerprint,
            "exif": index.exif,
            **_limits(config),
        }
        writer = StoreWriter(index, provenance, run_dir)
        if writer.report() is None:
            for block in boxes.blocks(Mark(*writer.mark), tell):
                writer.add(block.boxes, block.counts, mark=block.mark)
    return _finish(run_dir, writer) | {"left_out": boxes.left_out}


def refilter(run_dir: Path, source_dir: Path, tell: Tell) -> Report:
    """Fill the store of a run with the raw boxes of another one, filtered as its own configuration says.

    Args:
        run_dir: A run whose `config.yaml` is there.
        source_dir: The run of the same photographs that has the boxes.
        tell: Receives the images done so far.

    Returns:
        The report; the store is, byte for byte, the one a search with these limits would have made.

    Raises:
        ConfigError: If the source has no boxes.
        DataError: If its store is damaged.
        RunBusyError: If another process works on the run.
    """
    store, index = open_boxes(source_dir)
    with _stage(run_dir, "prepare"):
        for original in (index.source, report_path(index.source)):
            with replacing(run_dir / original.name) as temporary:
                shutil.copyfile(original, temporary)
    with _stage(run_dir, "shards"):
        config = load(run_dir)
        made = {key: value for key, value in store.provenance.items() if key != "code_version"}
        writer = StoreWriter(index, made | _limits(config), run_dir)
        if writer.report() is None:
            ProposalStore.verify(store.source)
            for start in range(writer.done, len(index), _BLOCK_IMAGES):
                ids = index.ids[start : start + _BLOCK_IMAGES].tolist()
                lists = [store[image_id] for image_id in ids]
                counts = np.array([len(boxes) for boxes in lists])
                statuses = [store.status(image_id) for image_id in ids]
                writer.add(np.concatenate(lists), counts, statuses=statuses)
                tell(start + len(ids))
    return _finish(run_dir, writer)


def export_boxes(run_dir: Path, path: Path, min_size_px: int | None, tell: Tell) -> int:
    """Write the boxes of a run as ORL's JSON, one row for every image of the annotations.

    Args:
        run_dir: A proposals run, or a run that uses one.
        path: The file to create or replace.
        min_size_px: Which filtered list; None writes the raw boxes, as ORL's files hold them.
        tell: Receives the rows done so far.

    Returns:
        Rows without a box, because the photograph could not be used or none was found.

    Raises:
        ConfigError: If the run has no boxes, or not this list.
        DataError: If the photographs are no longer those of the run.
    """
    store, index = open_boxes(run_dir)
    rows = [row for row, _ in listed(load(data_dir(run_dir)).data)]
    known = set(index.ids.tolist())
    if [row.id for row in rows if row.id in known] != index.ids.tolist():
        raise DataError(
            "the photographs must be those of the run, but other ones are listed now.",
            where=f"{load(run_dir).data.root}, {run_dir}",
            fix="restore the annotations the run was made for",
        )
    empty = 0

    def boxes() -> Iterator[Boxes]:
        nonlocal empty
        for number, row in enumerate(rows):
            tell(number + 1)
            if row.id not in known:
                found = np.empty((0, 4), np.int32)
            else:
                found = store[row.id] if min_size_px is None else store.filtered(row.id, min_size_px)
            empty += len(found) == 0
            yield found

    orl.write_rows(path, boxes())
    return empty


def open_boxes(run_dir: Path) -> tuple[ProposalStore, ImageIndex]:
    """Store and index of a run that has or uses boxes.

    Raises:
        ConfigError: If there are none.
    """
    files = data_dir(run_dir)
    if not (files / STORE_NAME).exists():
        raise ConfigError(
            f"run `{run_dir.name}` must have boxes, but has none yet.",
            where=str(files),
            fix=f"univip resume {shlex.quote(str(run_dir))}",
        )
    return ProposalStore.open(files / STORE_NAME), ImageIndex.open(files / INDEX_NAME)


def _limits(config: Config) -> dict[str, Any]:
    return {
        "min_sizes": list(config.proposals.min_sizes),
        "max_ratio": config.proposals.max_ratio,
        "max_iou": config.proposals.max_iou,
    }


@contextmanager
def _stage(run_dir: Path, kind: str) -> Iterator[Journal]:
    """An attempt at one stage, as `run_job` makes it, but in this process."""
    run = run_facts(run_dir)
    with attempt(run_dir, kind) as mine, Journal(run_dir, attempt=mine.number, source=kind) as journal:
        journal.record("attempt", host=mine.host, slurm_job_id=mine.slurm_job_id, stage="proposals")
        journal.record("run", state="proposals", **run)
        try:
            yield journal
        except BaseException as error:
            is_stopped = isinstance(error, KeyboardInterrupt)
            outcome = (
                Outcome(ExitCode.REQUEUE, Cause.STOPPED, "interrupted")
                if is_stopped
                else Outcome.of_error(error)
            )
            journal.record("run", state="stopped" if is_stopped else "failed", **run)
            raise
        else:
            outcome = Outcome(ExitCode.DONE)
            if kind == "merge":
                journal.record("run", state="done", **run)
        finally:
            mine.exit_code, mine.cause = int(outcome.exit_code), str(outcome.cause)
            mine.message = outcome.message


def _finish(run_dir: Path, writer: StoreWriter) -> Report:
    """Join the parts; tell of one shard that is the whole."""
    with _stage(run_dir, "merge") as journal:
        report = writer.report() or writer.finish()
        journal.record("shard", shard=0, state="done")
        journal.record(
            "proposals",
            shard=0,
            images_done=report["images"],
            images=report["images"],
            boxes=report["boxes"][RAW],
            failed={reason: len(paths) for reason, paths in report["failed"].items()},
        )
        return report
