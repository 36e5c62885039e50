"""The pre-flight of one node, by its agent: each device it will train on is tried in a process of its own.

The processes are forked from the server that forks the workers, so that the agent itself never touches a GPU
and what a sick driver does to a process is done to another one: a process that hangs, or dies, is an answer.
Torch-free until it is asked for.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

# Of all devices of a node, at the same time, and less than the other nodes wait for it. A sound one takes
# some seconds; its libraries may come slowly from a network file system.
LIMIT_S = 90.0
_GOODBYE_S = 1.0


def fault_of_node(folder: Path, *, workers: int, is_broken: bool = False) -> str:
    """Ask every device of this node, at the same time.

    Args:
        folder: Where a file is written, read and removed.
        workers: Ranks of this node; each will use a GPU of its own, or all of them the CPU.
        is_broken: Plant a wrong number in each answer.

    Returns:
        What is wrong, and with which device; empty if nothing is.
    """
    import torch

    gpus = torch.cuda.device_count()
    devices = [f"cuda:{number}" for number in range(workers)] if gpus >= workers else ["cpu"]
    context = multiprocessing.get_context("forkserver")
    asked: list[tuple[str, BaseProcess, Connection]] = []
    for device in devices:
        answers, answer = context.Pipe(duplex=False)
        process = context.Process(
            target=_look, args=(answer, device, str(folder), is_broken, LIMIT_S), daemon=True
        )
        process.start()
        answer.close()  # so that the end of that process is the end of the pipe
        asked.append((device, process, answers))
    end = time.monotonic() + LIMIT_S
    return "; ".join(filter(None, (_answer(*each, end) for each in asked)))


def _answer(device: str, process: BaseProcess, answers: Connection, end: float) -> str:
    with answers:
        if not answers.poll(max(0.0, end - time.monotonic())):
            process.kill()
            return f"{device}: no answer within {LIMIT_S:.0f} s"
        try:
            return answers.recv_bytes().decode()
        except EOFError:
            process.join(_GOODBYE_S)
            return f"{device}: the process that tried it ended with exit code {process.exitcode}"


def _look(answer: Connection, device: str, folder: str, is_broken: bool, limit_s: float) -> None:
    """What the process of one device runs; it ends by itself where nobody is left to wait for it."""
    faulthandler.dump_traceback_later(limit_s, exit=True)
    import torch

    from univip.resilience import preflight

    torch.set_num_threads(1)  # starting more would take longer than the work
    answer.send_bytes(preflight.look(torch.device(device), Path(folder), is_broken=is_broken).encode())
    answer.close()
    faulthandler.cancel_dump_traceback_later()
