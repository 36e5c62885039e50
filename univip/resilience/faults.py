"""Planted faults: a drill that a run must survive.

`UNIVIP_PLANT="nan:parameter@30,kill:1@50"` writes one NaN into a parameter at data step 30 and kills rank 1
with SIGKILL at data step 50. Each happens once in the life of a run: a marker file is made before the act.
Nothing is planted unless that variable is set, and then the log of every rank says so.

    nan:PLACE@STEP          a NaN in one pixel (`activation`), the loss, a gradient, a parameter, a buffer of
                            BatchNorm, the optimizer's state or the target network
    overflow:pixel@STEP     a pixel so large that it is finite in fp32 and infinite in bf16
    spike:loss@STEP         the loss times 100, and with it every gradient
    zero:embedding@STEP     the last layer of the predictor puts out exactly zero
    flip:RANK@STEP          the lowest bit of one weight, on one rank
    kill:RANK@STEP          SIGKILL of one rank
    hang:RANK@STEP          one rank goes on for ever while it makes its views
    slow:RANK@STEP          one rank works half a second longer on each micro-batch until its round ends
    matmul:NODE@ATTEMPT     a node computes a wrong number in its pre-flight

The first four happen on rank 0, or where `nan:loss:1@STEP` and `nan:loss:all@STEP` say.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from univip.errors import ConfigError
from univip.types import Method

VARIABLE = "UNIVIP_PLANT"
PLACES = {
    "nan": ("activation", "loss", "gradient", "parameter", "buffer", "optimizer", "target"),
    "overflow": ("pixel",),
    "spike": ("loss",),
    "zero": ("embedding",),
}
OF_A_RANK = ("flip", "kill", "hang", "slow")
OF_A_NODE = "matmul"
SLOW_S = 0.5
SPIKE = 100.0
OVERFLOWING_PIXEL = 3.4e38
_PATTERN = re.compile(r"(?P<kind>[a-z]+):(?P<place>[a-z]+|\d+)(:(?P<rank>\d+|all))?@(?P<data_step>\d+)")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        act: Such as `nan:loss` or `kill`.
        rank: Where it happens; None: on every rank.
    """

    text: str
    act: str
    data_step: int
    rank: int | None


class PlantedFaults:
    """The faults of one rank.

    Args:
        text: Comma-separated, as in the head of this file.
        markers: Folder of the marker files; without one every fault happens whenever its data step comes.
        rank: This rank.

    Raises:
        ConfigError: If the text is not of that form.

    Attributes:
        happened: Texts of those that happened on the way to the present state.
    """

    def __init__(self, text: str = "", *, markers: Path | None = None, rank: int = 0) -> None:
        faults = _parse_all(text)
        self._faults = [fault for fault in faults if fault.rank in (rank, None) and fault.act != OF_A_NODE]
        self._markers = markers
        self._rank = rank
        self._now: set[str] = set()
        self._is_slow = False
        self.happened: list[str] = []
        if faults:
            _logger.warning("FAULTS ARE PLANTED in this run, %s=%s", VARIABLE, text)

    def begin(self, data_step: int, method: Method, optimizer: Optimizer) -> None:
        """Called at the start of a step: kills this process or damages the state if it is time.

        Raises:
            ConfigError: If it is the optimizer's turn, and it has no state yet.
        """
        now = [fault for fault in self._faults if fault.data_step == data_step and self._first(fault)]
        self._now = {fault.act for fault in now}
        self.happened += [fault.text for fault in now]
        for fault in now:
            _logger.warning("planted fault: %s", fault.text)
        if "kill" in self._now:
            os.kill(os.getpid(), signal.SIGKILL)
        online = method.online
        with torch.no_grad():
            if "nan:parameter" in self._now:
                next(online.parameters()).view(-1)[0] = math.nan
            if "nan:buffer" in self._now:
                buffers = (buffer for buffer in online.buffers() if buffer.is_floating_point())
                next(buffers).view(-1)[0] = math.nan
            if "nan:optimizer" in self._now:
                _first_slot(optimizer).view(-1)[0] = math.nan
            if "nan:target" in self._now:
                next(method.target.parameters()).view(-1)[0] = math.nan
            if "flip" in self._now:
                next(online.parameters()).view(-1)[:1].view(torch.int32).bitwise_xor_(1)
            if "zero:embedding" in self._now:
                layers = online.get_submodule("predictor").modules()
                for parameter in [layer for layer in layers if isinstance(layer, nn.Linear)][-1].parameters():
                    parameter.zero_()

    def image(self, images: Tensor) -> Tensor:
        """The images of the step; a NaN in one pixel makes the first activation NaN."""
        while "hang" in self._now:
            time.sleep(1.0)
        self._is_slow |= "slow" in self._now
        if self._is_slow:
            time.sleep(SLOW_S)
        if "nan:activation" in self._now:
            return _with_pixel(images, math.nan)
        return _with_pixel(images, OVERFLOWING_PIXEL) if "overflow:pixel" in self._now else images

    def loss(self, loss: Tensor) -> Tensor:
        """The loss of the step."""
        if "nan:loss" in self._now:
            return loss * math.nan
        return loss * SPIKE if "spike:loss" in self._now else loss

    def gradient(self, online: nn.Module) -> None:
        """Called between backward and reduction."""
        if "nan:gradient" in self._now:
            for parameter in online.parameters():
                if parameter.grad is not None:
                    parameter.grad.view(-1)[0] = math.nan
                    return

    def _first(self, fault: Fault) -> bool:
        if self._markers is None:
            return True
        self._markers.mkdir(exist_ok=True)
        try:
            marker_of(self._markers, fault.text, self._rank).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def breaks_preflight(node: int, attempt: int) -> bool:
    """Whether a node is to compute a wrong number in the pre-flight of an attempt."""
    found = _parse_all(os.environ.get(VARIABLE, ""))
    return any((fault.act, fault.rank, fault.data_step) == (OF_A_NODE, node, attempt) for fault in found)


def marker_of(folder: Path, text: str, rank: int) -> Path:
    """The file that is made as a fault happens on a rank; when it was made tells when that was."""
    return folder / f"{text.replace(':', '-')}-rank{rank}"


def _parse_all(text: str) -> list[Fault]:
    return [_parse(item.strip()) for item in text.split(",") if item.strip()]


def _parse(item: str) -> Fault:
    match = _PATTERN.fullmatch(item)
    if match:
        kind, place, data_step = match["kind"], match["place"], int(match["data_step"])
        if place in PLACES.get(kind, ()):
            rank = None if match["rank"] == "all" else int(match["rank"] or 0)
            return Fault(item, f"{kind}:{place}", data_step, rank)
        if kind in (*OF_A_RANK, OF_A_NODE) and place.isdigit() and not match["rank"]:
            return Fault(item, kind, data_step, int(place))
    known = [f"{kind}:{place}" for kind, places in PLACES.items() for place in places]
    known += [*(f"{kind}:RANK" for kind in OF_A_RANK), f"{OF_A_NODE}:NODE"]
    raise ConfigError(
        f"a planted fault must be `KIND:PLACE[:RANK]@DATA_STEP` or `KIND:RANK@DATA_STEP`, but is `{item}`",
        where=f"the environment variable {VARIABLE}",
        fix=f"one of {', '.join(known)}; then @ and the data step",
    )


def _first_slot(optimizer: Optimizer) -> Tensor:
    """The optimizer's memory of its first parameter."""
    for slots in optimizer.state.values():
        for value in slots.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                return value
    raise ConfigError(
        "a fault in the optimizer's state needs one, but there is none before the first step",
        where=f"the environment variable {VARIABLE}",
        fix="a later data step",
    )


def _with_pixel(images: Tensor, value: float) -> Tensor:
    images = images.clone()
    images[(0,) * images.ndim] = value  # they need not be contiguous
    return images
