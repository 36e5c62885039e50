"""Planted faults: a drill that a run must survive.

`UNIVIP_PLANT="nan:parameter@30,kill:1@50"` writes one NaN into a parameter at data step 30 and kills rank 1
with SIGKILL at data step 50. Each happens once in the life of a run: a marker file is made before the act.

    nan:PLACE@STEP          a NaN in one pixel (`activation`), the loss, a gradient or a parameter
    overflow:pixel@STEP     a pixel so large that it is finite in fp32 and infinite in bf16
    spike:loss@STEP         the loss times 100, and with it every gradient
    zero:embedding@STEP     the last layer of the predictor puts out exactly zero
    flip:RANK@STEP          the lowest bit of one weight, on one rank
    kill:RANK@STEP          SIGKILL of one rank

The first four happen on rank 0.
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

PLACES = {
    "nan": ("activation", "loss", "gradient", "parameter"),
    "overflow": ("pixel",),
    "spike": ("loss",),
    "zero": ("embedding",),
}
SPIKE = 100.0
OVERFLOWING_PIXEL = 3.4e38
_PATTERN = re.compile(r"(?P<kind>[a-z]+):(?P<place>[a-z]+|\d+)@(?P<data_step>\d+)")


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        act: Such as `nan:loss`, or `kill`, which happens on `rank`.
    """

    text: str
    act: str
    data_step: int
    rank: int


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
        faults = [_parse(item.strip()) for item in text.split(",") if item.strip()]
        self._faults = [fault for fault in faults if fault.rank == rank]
        self._markers = markers
        self._now: set[str] = set()
        self.happened: list[str] = []

    def begin(self, data_step: int, online: nn.Module) -> None:
        """Called at the start of a step: kills this process or damages a parameter if it is time."""
        now = [fault for fault in self._faults if fault.data_step == data_step and self._first(fault)]
        self._now = {fault.act for fault in now}
        self.happened += [fault.text for fault in now]
        if "kill" in self._now:
            os.kill(os.getpid(), signal.SIGKILL)
        with torch.no_grad():
            if "nan:parameter" in self._now:
                next(online.parameters()).view(-1)[0] = math.nan
            if "flip" in self._now:
                next(online.parameters()).view(-1)[:1].view(torch.int32).bitwise_xor_(1)
            if "zero:embedding" in self._now:
                layers = online.get_submodule("predictor").modules()
                for parameter in [layer for layer in layers if isinstance(layer, nn.Linear)][-1].parameters():
                    parameter.zero_()

    def image(self, images: Tensor) -> Tensor:
        """The images of the step; a NaN in one pixel makes the first activation NaN."""
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
            (self._markers / fault.text.replace(":", "-")).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _parse(item: str) -> Fault:
    match = _PATTERN.fullmatch(item)
    if match:
        kind, place, data_step = match["kind"], match["place"], int(match["data_step"])
        if place in PLACES.get(kind, ()):
            return Fault(item, f"{kind}:{place}", data_step, 0)
        if kind in ("kill", "flip") and place.isdigit():
            return Fault(item, kind, data_step, int(place))
    known = [f"{kind}:{place}" for kind, places in PLACES.items() for place in places]
    raise ConfigError(
        f"a planted fault must be `KIND:PLACE@DATA_STEP` or `KIND:RANK@DATA_STEP`, but is `{item}`",
        where="the environment variable UNIVIP_PLANT",
        fix=f"one of {', '.join(known)}, flip:RANK, kill:RANK; then @ and the data step",
    )


def _with_pixel(images: Tensor, value: float) -> Tensor:
    images = images.clone()
    images[(0,) * images.ndim] = value  # they need not be contiguous
    return images
