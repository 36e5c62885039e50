"""What a machine is for a training: its Python, torch, GPUs and clock; `univip doctor` asks it.

The command line never loads torch, so it asks in a process of its own, `python -m jobs.probe`; on a compute
node the same look is a job, whose answer is a file that the command line must come to see.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from jobs.outcomes import write_json

_TIMEOUT_S = 60


def look() -> dict[str, Any]:
    """This machine.

    Returns:
        `host`, `python`; `scontrol` (its path; empty without it); `torch` (its version;
        empty if it cannot be loaded, and `error` says why), `cuda` (that torch was built for), `gpus` (names
        of those that torch sees); `driver` and `driver_cuda` (the newest CUDA that the driver serves), empty
        without one.
    """
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "scontrol": shutil.which("scontrol") or "",
        "torch": "",
        "error": "",
        "cuda": "",
        "gpus": [],
    }
    found["driver"], found["driver_cuda"] = parse_driver(_nvidia_smi())
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it is linked with
        found["error"] = f"{type(error).__name__}: {error}"
        return found
    found |= {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda or "",
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }
    return found


def probe(name: str, folder: str) -> None:
    """The same as a job of SLURM: leaves what it sees in a file of `folder`, with the `time` (Unix, s)."""
    seen = look()
    write_json(Path(folder) / name, {**seen, "time": time.time()})


def parse_driver(shown: str) -> tuple[str, str]:
    """Version of the driver, and of the newest CUDA that it serves, from the head of nvidia-smi's table."""
    driver = re.search(r"Driver Version: *([\d.]+)", shown)
    cuda = re.search(r"CUDA(?: UMD)? Version: *([\d.]+)", shown)
    return driver[1] if driver else "", cuda[1] if cuda else ""


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return ""  # no driver
    return done.stdout


if __name__ == "__main__":
    print(json.dumps(look()))  # noqa: T201 - the answer
