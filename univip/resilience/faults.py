"""Planted faults: a drill that a run must survive.

`UNIVIP_PLANT="nan:parameter@30,kill:1@50"` writes one NaN into a parameter at data step 30 and kills rank 1
with SIGKILL at data step 50. Each happens once in the life of a run: a marker file is made before the act.
"""

from __future__ import annotations

import math
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from univip.errors import ConfigError

PLACES = ("activation", "loss", "gradient", "parameter")
_PATTERN = re.compile(
    rf"nan:(?P<place>{'|'.join(PLACES)})@(?P<nan_at>\d+)|kill:(?P<rank>\d+)@(?P<kill_at>\d+)"
)


@dataclass(frozen=True)
class Fault:
    """One planted fault; `place` is empty for a kill."""

    text: str
    data_step: int
    place: str
    rank: int


class PlantedFaults:
    """The faults of one rank.

    Args:
        text: Comma-separated `nan:PLACE@DATA_STEP` (on rank 0) and `kill:RANK@DATA_STEP`.
        markers: Folder of the marker files.
        rank: This rank.

    Raises:
        ConfigError: If the text is not of that form.
    """

    def __init__(self, text: str = "", *, markers: Path | None = None, rank: int = 0) -> None:
        faults = [_parse(item.strip()) for item in text.split(",") if item.strip()]
        self._faults = [fault for fault in faults if fault.rank == rank]
        self._markers = markers
        self._now: set[str] = set()

    def begin(self, data_step: int, online: nn.Module) -> None:
        """Called at the start of a step: kills this process or plants a NaN in a parameter if it is time."""
        self._now = {
            fault.place for fault in self._faults if fault.data_step == data_step and self._first(fault)
        }
        if "" in self._now:
            os.kill(os.getpid(), signal.SIGKILL)
        if "parameter" in self._now:
            with torch.no_grad():
                next(online.parameters()).view(-1)[0] = math.nan

    def image(self, images: Tensor) -> Tensor:
        """The images of the step; a NaN in one pixel makes the first activation NaN."""
        return _with_nan(images) if "activation" in self._now else images

    def loss(self, loss: Tensor) -> Tensor:
        """The loss of the step."""
        return loss * math.nan if "loss" in self._now else loss

    def gradient(self, online: nn.Module) -> None:
        """Called between backward and reduction."""
        if "gradient" in self._now:
            for parameter in online.parameters():
                if parameter.grad is not None:
                    parameter.grad.view(-1)[0] = math.nan
                    return

    def _first(self, fault: Fault) -> bool:
        if self._markers is None:
            return True
        self._markers.mkdir(exist_ok=True)
        try:
            (self._markers / fault.text.replace(":", "-")).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _parse(item: str) -> Fault:
    match = _PATTERN.fullmatch(item)
    if not match:
        raise ConfigError(
            f"a planted fault must be `nan:PLACE@DATA_STEP` or `kill:RANK@DATA_STEP`, but is `{item}`",
            where="the environment variable UNIVIP_PLANT",
            fix=f"PLACE is one of {', '.join(PLACES)}",
        )
    if match["place"]:
        return Fault(item, int(match["nan_at"]), match["place"], 0)
    return Fault(item, int(match["kill_at"]), "", int(match["rank"]))


def _with_nan(images: Tensor) -> Tensor:
    images = images.clone()
    images.view(-1)[0] = math.nan
    return images
