"""Which checkpoints exist, which one to resume from, and writing the next in the background.

The step loop is blocked only while tensors are copied to host memory; one thread writes. A write that fails -
a full disk - is reported and training goes on from the state in memory with the older checkpoints intact.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from safetensors.torch import load_file
from torch import Tensor

from univip.atomic import forget, sync, write_text
from univip.checkpoint import layout, writer
from univip.checkpoint.bits import sums_of_bits
from univip.checkpoint.host import Held, to_host
from univip.checkpoint.layout import Manifest
from univip.errors import CheckpointError
from univip.observe import NullObserver, Observer

# Storage that gives back other bytes than it took does so again and again: one checkpoint in ten shows it. To
# read one takes about half of what its write took.
READ_BACK_EVERY = 10
_logger = logging.getLogger(__name__)


class Snapshot(Protocol):
    """What a checkpoint holds: named tensors and JSON facts."""

    data_step: int
    step: int

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that must survive, by name."""
        ...

    def facts(self) -> dict[str, object]:
        """Everything else that must survive."""
        ...

    def load(self, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
        """Take both back."""
        ...


class Found(NamedTuple):
    """The checkpoint to resume from, and those that were passed over with the reason."""

    data_step: int
    passed_over: dict[int, str]
    in_memory: bool = False  # its state is `CheckpointManager.held`


@dataclass(frozen=True)
class Origin:
    """What a manifest says about where it was written."""

    world_size: int = 1
    config_hash: str = ""
    line: int = 0
    versions: tuple[tuple[str, str], ...] = ()


class Cost(NamedTuple):
    """What the newest save of this process took."""

    saves: int  # so far, this one included
    blocked_s: float  # of the step loop
    background_s: float


def _always() -> bool:
    return True


class CheckpointManager:
    """The checkpoints of one run.

    Args:
        directory: The `checkpoints/` folder; made when the first checkpoint is written.
        keep_last: How many to keep besides the newest two healthy ones.
        still_owner: False once a newer attempt owns the run.
        observer: Told about every write, failure, and damaged checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int = 3,
        still_owner: Callable[[], bool] = _always,
        observer: Observer | None = None,
    ) -> None:
        self.directory = directory
        self.keep_last = keep_last
        self.still_owner = still_owner
        self.observer = observer or NullObserver()
        self.last_success = (
            0,
            0.0,
        )  # data step and Unix time of the newest durable checkpoint of this process
        self._host: dict[str, Tensor] = {}  # what is written, by name; kept, as fresh memory is slow to touch
        self.held: Held | None = None  # the newest save, from when it is on the disk until the next begins
        self.cost: Cost | None = None
        self.unfit: set[int] = set()  # data steps of checkpoints that can never become healthy
        self._pruning = threading.Lock()  # the writing thread prunes
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def path(self, data_step: int) -> Path:
        """Directory of the checkpoint at a data step."""
        return self.directory / layout.name_of(data_step)

    def latest(self) -> int | None:
        """Data step of the newest checkpoint, None if there is none."""
        return max(layout.data_steps(self.directory), default=None)

    def is_healthy(self, data_step: int) -> bool:
        """Whether enough good steps followed it."""
        return (self.path(data_step) / layout.HEALTHY).exists()

    def verify(self, data_step: int) -> Manifest:
        """Check every byte of one checkpoint.

        Raises:
            CheckpointError: If anything differs from its manifest, or it is the checkpoint of another step.
            ConfigError: If it is of another format.
        """
        manifest = layout.verify(self.path(data_step))
        if manifest.data_step != data_step:  # such as a backup put back under a newer name
            raise CheckpointError(
                f"the checkpoint must be of data step {data_step}, but is of {manifest.data_step}",
                where=str(self.path(data_step)),
                fix="an older checkpoint is used",
            )
        return manifest

    def manifests(self) -> dict[int, Manifest]:
        """Manifests by data step, without the damaged: `newest_good` reports those and passes over them."""
        manifests = {}
        for data_step in layout.data_steps(self.directory):
            with suppress(CheckpointError):
                manifests[data_step] = layout.read_manifest(self.path(data_step))
        return manifests

    def newest_good(
        self, *, healthy_only: bool = False, at_most: int | None = None, or_held: bool = False
    ) -> Found | None:
        """The newest checkpoint whose every byte is right; damaged ones are reported and passed over.

        Args:
            healthy_only: Only targets of rollbacks.
            at_most: Only those up to this data step.
            or_held: Take one whose state is held in memory, and good there, without reading it from the disk.

        Raises:
            CheckpointError: If all are damaged.
            ConfigError: If it is of another format.
        """
        passed_over: dict[int, str] = {}
        for data_step in reversed(layout.data_steps(self.directory)):
            if (healthy_only and not self.is_healthy(data_step)) or (
                at_most is not None and data_step > at_most
            ):
                continue
            if or_held and self._holds(data_step):
                return Found(data_step, passed_over, in_memory=True)
            try:
                self.verify(data_step)
            except CheckpointError as error:
                passed_over[data_step] = error.what
                self.observer.record(
                    "corruption", data_step=data_step, checkpoint=layout.name_of(data_step), what=error.what
                )
            else:
                return Found(data_step, passed_over)
        if passed_over and at_most is None:
            raise CheckpointError(
                f"every checkpoint is damaged: {', '.join(layout.name_of(step) for step in passed_over)}",
                where=str(self.directory),
                fix="restore one from a backup, or start a new run with another `train.seed=`",
            )
        return None

    def _holds(self, data_step: int) -> bool:
        """Whether memory holds the state of this checkpoint, with the bits that were written.

        The manifest must be the one that was written, too, and the size of the file: a checkpoint that is
        missing, cut off or another one since is no target, whether or not this process happens to remember
        it. Damage that keeps the size goes unseen here, and does no harm: memory is right, and a process that
        was started since would have found it, gone back further and written this checkpoint anew.
        """
        if self.held is None or self.held.manifest.data_step != data_step:
            return False
        written = self.held.manifest
        try:
            manifest = layout.read_manifest(self.path(data_step))
            size_bytes = (self.path(data_step) / layout.TENSORS).stat().st_size
        except (CheckpointError, OSError):
            return False  # `verify` says what is wrong with it
        if manifest.to_json() != written.to_json() or size_bytes != written.files[layout.TENSORS].size_bytes:
            return False
        if sums_of_bits(self.held.tensors) != self.held.sums:
            _logger.warning(
                "the copy of %s in memory has changed since it was made: the memory of this machine may be "
                "failing; the disk is read instead",
                layout.name_of(data_step),
            )
            return False
        return True

    def load(self, data_step: int, state: Snapshot) -> Manifest:
        """Put one checkpoint into a training state; checksums are `newest_good`'s work.

        Raises:
            CheckpointError: If its tensors are not those of this state.
        """
        checkpoint = self.path(data_step)
        manifest = layout.read_manifest(checkpoint)
        state.load(load_file(str(checkpoint / layout.TENSORS)), manifest.facts)
        return manifest

    def restore(self, state: Snapshot) -> Found | None:
        """Load the newest good checkpoint, if there is any."""
        found = self.newest_good()
        if found:
            self.load(found.data_step, state)
        return found

    def save(self, state: Snapshot, origin: Origin, *, wait: bool = False) -> float:
        """Copy the state to host memory and write it in the background.

        Args:
            state: Read before this returns; may change afterwards.
            origin: For the manifest.
            wait: Return only when it is durable, and raise if it cannot be. On a full disk older checkpoints
                make room for it.

        Returns:
            Seconds the caller was blocked, waiting for the previous write included.
        """
        start = time.perf_counter()
        self.wait()
        self.held = None  # its memory is filled anew
        self._host = to_host(state.tensors(), self._host)
        manifest = Manifest(
            format=layout.FORMAT,
            data_step=state.data_step,
            step=state.step,
            world_size=origin.world_size,
            config_hash=origin.config_hash,
            line=origin.line,
            versions=dict(origin.versions),
            facts=state.facts(),
            files={},
        )
        blocked_s = time.perf_counter() - start
        self._start_writing(manifest, blocked_s)
        if wait:
            self.wait()
            if _is_full_disk(self._error) and self._make_room():
                self._start_writing(manifest, blocked_s)
                self.wait()
            if self._error is not None:
                raise CheckpointError(
                    f"the checkpoint could not be written: {self._error}",
                    where=str(self.directory),
                    fix="free space on this file system or move the run to another, then resume it",
                ) from self._error
        return blocked_s

    def _start_writing(self, manifest: Manifest, blocked_s: float) -> None:
        self._error = None
        self._thread = threading.Thread(
            target=self._write, args=(self._host, manifest, blocked_s), name="checkpoint-writer", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait for the write in progress."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, tensors: dict[str, Tensor], manifest: Manifest, blocked_s: float) -> None:
        start = time.perf_counter()
        saves = self.cost.saves + 1 if self.cost else 1
        try:
            sums = sums_of_bits(tensors)
            written = writer.write(self.directory, tensors, manifest, still_owner=self.still_owner)
            background_s = time.perf_counter() - start
            self.cost = Cost(saves, blocked_s, background_s)
            if saves % READ_BACK_EVERY == 0:
                self._read_back(manifest.data_step)
        except Exception as error:  # noqa: BLE001 - of any kind: nobody else would hear of it in this thread
            self._error = error
            self.observer.record(
                "checkpoint",
                data_step=manifest.data_step,
                outcome="failure",
                what=str(error),
                blocked_s=blocked_s,
                background_s=time.perf_counter() - start,
            )
            return
        self.held = Held(written, tensors, sums)
        self.last_success = (manifest.data_step, time.time())
        self.observer.record(
            "checkpoint",
            data_step=manifest.data_step,
            outcome="success",
            bytes=sum(entry.size_bytes for entry in written.files.values()),
            blocked_s=blocked_s,
            background_s=background_s,
        )
        try:
            self.prune()
        except OSError as error:  # the new checkpoint is there; an old one that stays costs space only
            _logger.warning("an old checkpoint could not be deleted: %s", error)

    def _read_back(self, data_step: int) -> None:
        """Check a checkpoint as the disk gives it back, and put it aside if that is not what it was given.

        Raises:
            CheckpointError: If it is not.
        """
        for path in self.path(data_step).iterdir():
            forget(path)
        try:
            self.verify(data_step)
        except CheckpointError as error:
            self.observer.record(
                "corruption", data_step=data_step, checkpoint=layout.name_of(data_step), what=error.what
            )
            with self._pruning:
                self.abandon([data_step], layout.DAMAGED)
            raise

    @property
    def is_writing(self) -> bool:
        """Whether a write is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def mark_healthy(self, data_step: int) -> bool:
        """Make a checkpoint a target of rollbacks; False if it does not exist (yet)."""
        if not self.path(data_step).is_dir():
            return False
        write_text(self.path(data_step) / layout.HEALTHY, "")
        return True

    def pin(self, at_most: int, why: str) -> Manifest:
        """Keep the newest checkpoint up to a data step from being pruned.

        Args:
            at_most: The data step.
            why: What needs it; a word.

        Returns:
            Its manifest.

        Raises:
            CheckpointError: If there is none, or its manifest cannot be read.
            OSError: If it cannot be marked.
        """
        with self._pruning:
            candidates = [step for step in layout.data_steps(self.directory) if step <= at_most]
            if not candidates:
                raise CheckpointError(
                    f"there is no checkpoint up to data step {at_most}", where=str(self.directory)
                )
            manifest = layout.read_manifest(self.path(candidates[-1]))
            path = self.path(candidates[-1]) / layout.PINNED
            others = path.read_text(encoding="utf-8") if path.exists() else ""
            write_text(path, f"{others}{why}\n")
        return manifest

    def abandon(self, data_steps: list[int], why: str) -> None:
        """Move checkpoints out of reach of every resume, keeping them for a look."""
        if not data_steps:
            return
        target = self.directory / layout.ABANDONED / why
        target.mkdir(parents=True, exist_ok=True)
        for data_step in data_steps:
            self.path(data_step).rename(_free_name(target / layout.name_of(data_step)))
        for folder in (target, target.parent, self.directory):
            sync(folder)
        newest = self.latest()
        if newest is not None:
            write_text(self.directory / layout.LATEST, layout.name_of(newest))

    def prune(self) -> None:
        """Delete all but the last `keep_last`, the newest two healthy, the next to be, and the pinned ones.

        The next to become healthy matters where checkpoints come faster than health: were the oldest one on
        probation deleted, none would ever become a target of rollbacks.
        """
        with self._pruning:
            self._prune()

    def _prune(self) -> None:
        steps = layout.data_steps(self.directory)
        healthy = [step for step in steps if self.is_healthy(step)][-2:]
        unproven = [step for step in steps if step > max(healthy, default=-1) and step not in self.unfit]
        self._delete_all_but({*steps[-self.keep_last :], *healthy, *unproven[:1]})

    def _make_room(self) -> bool:
        """Delete all but the newest checkpoint, the newest healthy one and the pinned; whether one went."""
        with self._pruning:
            steps = layout.data_steps(self.directory)
            healthy = [step for step in steps if self.is_healthy(step)][-1:]
            self._delete_all_but({*steps[-1:], *healthy})
            return len(layout.data_steps(self.directory)) < len(steps)

    def _delete_all_but(self, kept: set[int]) -> None:
        for data_step in layout.data_steps(self.directory):
            if data_step not in kept and not (self.path(data_step) / layout.PINNED).exists():
                # Renamed first: a half-deleted checkpoint must not look like a damaged one.
                doomed = _free_name(self.directory / f"{layout.TEMPORARY_PREFIX}pruned-{data_step}")
                self.path(data_step).rename(doomed)
                shutil.rmtree(doomed)

    def clear_temporary(self) -> None:
        """Remove what interrupted writes left behind; only the owner of the run may call this."""
        for path in self.directory.glob(f"{layout.TEMPORARY_PREFIX}*"):
            shutil.rmtree(path)
        for path in self.directory.glob(".*.tmp"):  # of `univip.atomic`
            path.unlink()


def _free_name(path: Path) -> Path:
    """The path itself, or the first `path.N` that is free."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate


def _is_full_disk(error: Exception | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
