"""The kinds of faults, in the order of the table. Torch-free: the command line names them.

The first part of a name says what is hit: nan, overflow and spike a value, file a checkpoint, crash and power
the process at a point of its writing, disk the disk, and so on.
"""

from __future__ import annotations

from typing import NamedTuple

IN_PROCESS, PROCESSES = "in process", "processes"
TRIALS = 3  # of each kind, unless asked otherwise; kinds of which every point counts take all of them


class Kind(NamedTuple):
    """One kind of fault.

    Attributes:
        entry: Function of a lab, a number and a source of random numbers that makes one round trip.
        how: In this process through the real engine, or with the processes of a real job.
        what: In words.
        is_exhaustive: Whether every point there is counts, and not a number of trials.
        times: Trials, as a multiple of the number asked for: more of what happens most, fewer of what lasts.
    """

    name: str
    entry: str
    how: str
    what: str
    is_exhaustive: bool = False
    times: float = 1.0


# A table: one row a kind.
# fmt: off
KINDS = (
    Kind("control", "values:controls", IN_PROCESS, "a run that nothing happens to"),
    Kind("nan:activation", "values:nan_activation", IN_PROCESS, "a NaN in one pixel"),
    Kind("nan:loss", "values:nan_loss", IN_PROCESS, "a loss that is NaN"),
    Kind("nan:gradient", "values:nan_gradient", IN_PROCESS, "a NaN in a gradient"),
    Kind("nan:parameter", "values:nan_parameter", IN_PROCESS, "a NaN in a weight"),
    Kind("nan:buffer", "values:nan_buffer", IN_PROCESS, "a NaN in the statistics of BatchNorm"),
    Kind("nan:optimizer", "values:nan_optimizer", IN_PROCESS, "a NaN in the optimizer's state"),
    Kind("nan:target", "values:nan_target", IN_PROCESS, "a NaN in the target network"),
    Kind("overflow:pixel", "values:overflow_pixel", IN_PROCESS, "a pixel beyond bf16"),
    Kind("spike:loss", "values:persistent_spike", IN_PROCESS, "two losses a hundred times too large"),
    Kind("file:bitflip", "damage:bit_flip", IN_PROCESS, "a bit of a checkpoint is another"),
    Kind("file:truncated", "damage:truncated", IN_PROCESS, "a file of a checkpoint ends early"),
    Kind("file:missing", "damage:missing", IN_PROCESS, "a file of a checkpoint is gone"),
    Kind("file:swapped", "damage:swapped", IN_PROCESS, "a file of a checkpoint is that of another"),
    Kind("file:stale", "damage:stale", IN_PROCESS, "a checkpoint is an old one under a newer name"),
    Kind("file:manifest", "damage:manifest", IN_PROCESS, "a manifest says something else, or nothing"),
    Kind("file:pointer", "damage:pointer", IN_PROCESS, "the file `latest` is gone or wrong"),
    Kind("photograph", "damage:photograph", IN_PROCESS, "a photograph cannot be read any more"),
    Kind("crash:publish", "disk:crash_in_publish", IN_PROCESS, "the process ends at any write", True),
    Kind("crash:rollback", "disk:crash_in_rollback", IN_PROCESS, "the same around a rollback", True),
    Kind("power:publish", "disk:power_in_publish", IN_PROCESS, "the power fails at any write", True),
    Kind("power:rollback", "disk:power_in_rollback", IN_PROCESS, "the same around a rollback", True),
    Kind("disk:full", "disk:full", IN_PROCESS, "no space for some writes"),
    Kind("disk:readonly", "disk:read_only", IN_PROCESS, "the disk is read-only for some writes"),
    Kind("disk:error", "disk:failing", IN_PROCESS, "some writes fail"),
    Kind("disk:slow", "disk:slow", IN_PROCESS, "every write is slow"),
    Kind("disk:rot", "disk:rotten", IN_PROCESS, "the disk gives back another bit than it was given"),
    Kind("control:job", "processes:controls", PROCESSES, "a job that nothing happens to"),
    Kind("nan:ranks", "processes:values", PROCESSES, "NaN anywhere, on one of two ranks or both"),
    Kind("flip", "processes:flip", PROCESSES, "a bit of a weight flips on one of three ranks"),
    Kind("kill:rank", "processes:kill_rank", PROCESSES, "SIGKILL, SIGSEGV or SIGABRT of any rank", times=4),
    Kind("kill:write", "processes:kill_write", PROCESSES, "SIGKILL of rank 0 while it writes a checkpoint"),
    Kind("kill:agent", "processes:kill_agent", PROCESSES, "SIGKILL of the agent"),
    Kind("kill:all", "processes:kill_all", PROCESSES, "SIGKILL of every process at once"),
    Kind("kill:reader", "processes:kill_reader", PROCESSES, "SIGKILL of a process that reads photographs"),
    Kind("stop:rank", "processes:stop_rank", PROCESSES, "SIGSTOP of a rank"),
    Kind("hang:rank", "processes:hang_rank", PROCESSES, "a rank hangs while it makes its views"),
    Kind("preempt", "processes:preempt", PROCESSES, "SIGTERM, as before a time limit; then a new attempt"),
    Kind("world", "processes:world", PROCESSES, "SIGKILL, and another number of ranks: 4, 2, 3, 4"),
    Kind("minute", "minute:minutes", PROCESSES, "SIGKILL of a rank or reader in every minute", times=0.2),
)
# fmt: on
