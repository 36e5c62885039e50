"""Which checkpoint of a run a command is about."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from jobs.config import RunKind, read_plain
from univip.checkpoint import layout
from univip.errors import CheckpointError, ConfigError


def find_checkpoint(run_dir: Path, data_step: int | None = None) -> Path:
    """Directory of a checkpoint.

    Args:
        run_dir: The run.
        data_step: Of the checkpoint; None means the newest.

    Raises:
        CheckpointError: If the run has none yet.
        ConfigError: If it has none of that data step, or only makes boxes.
    """
    checkpoints = run_dir / "checkpoints"
    data_steps = layout.data_steps(checkpoints)
    if not data_steps:
        if read_plain(run_dir).get("run", {}).get("kind") == RunKind.proposals:
            raise ConfigError(
                f"run `{run_dir.name}` must be a training run to have checkpoints, but only makes boxes.",
                where=str(run_dir),
                fix="univip status --all  # names the training runs",
            )
        raise CheckpointError(
            "the run has no checkpoint yet.",
            where=str(checkpoints),
            fix=f"univip show {shlex.quote(str(run_dir))}",
        )
    if data_step is not None and data_step not in data_steps:
        raise ConfigError(
            f"the data step must be one of {', '.join(map(str, data_steps))}, but is {data_step}.",
            where=str(checkpoints),
            fix=f"--data-step {data_steps[-1]}",
        )
    return checkpoints / layout.name_of(data_steps[-1] if data_step is None else data_step)


def other_than(damaged: Path) -> str:
    """What to type for the newest other checkpoint of a run whose every byte is right."""
    for data_step in reversed(layout.data_steps(damaged.parent)):
        other = damaged.with_name(layout.name_of(data_step))
        if other != damaged:
            with suppress(CheckpointError):
                layout.verify(other)
                return f"--data-step {data_step}  # the newest that is whole"
    return "restore it from a backup: no other checkpoint of the run is whole"
