"""Readings of the GPUs of one node, put into the journal of its agent every half minute.

Through NVML, the library of NVIDIA's driver, which `nvidia-smi` prints from: it neither touches CUDA nor
takes memory of a GPU. Training needs none of it. So the driver is first asked in a thread of its own, where
it may be slow or hang as it does on sick nodes; where it is absent there are no readings and no noise; and a
value that a GPU does not know is left out.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from monitoring.journal import Journal

EVERY_S = 30.0
_PATIENCE_S = 1.0  # at the end, with a driver that does not answer
_logger = logging.getLogger(__name__)


@contextmanager
def recorded(journal: Journal, node: int, host: str, *, every_s: float = EVERY_S) -> Iterator[None]:
    """Record what the GPUs of this node do, meanwhile.

    Args:
        journal: Of a process of this node; takes records of the kind `gpu`.
        node: Number of the node in its job.
        host: Its name.
        every_s: Time between two readings.
    """
    ended = threading.Event()

    def watch() -> None:
        nvml = _nvml()
        gpus = _visible(nvml) if nvml else []
        while nvml and gpus:
            if readings := _read(nvml, gpus):
                journal.record("gpu", node=node, host=host, **readings)
            if ended.wait(every_s):
                return

    thread = threading.Thread(target=watch, name="gpus", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_PATIENCE_S)


def _nvml() -> ModuleType | None:
    """NVML, ready to be asked; None without it or without a driver."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a driver, training goes on
        _logger.debug("no readings of GPUs: %s", error)
        return None
    return nvml


def _visible(nvml: ModuleType, environment: Mapping[str, str] = os.environ) -> list[Any]:
    """Handles of the GPUs that this job may use, in its order: the others of a node are somebody else's."""
    names = environment.get("CUDA_VISIBLE_DEVICES")
    try:
        if names is None:
            return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [
            nvml.nvmlDeviceGetHandleByIndex(int(name))
            if name.isdecimal()
            else nvml.nvmlDeviceGetHandleByUUID(name)
            for name in map(str.strip, names.split(","))
            if name and name not in ("-1", "NoDevFiles")
        ]
    except nvml.NVMLError as error:
        _logger.debug("no readings of GPUs: %s", error)
        return []


def _read(nvml: ModuleType, gpus: list[Any]) -> dict[str, dict[str, float]]:
    """Every value that is known, by field of the record and number of the GPU."""
    for_heat_or_power = (
        nvml.nvmlClocksEventReasonHwSlowdown
        | nvml.nvmlClocksEventReasonSwThermalSlowdown
        | nvml.nvmlClocksEventReasonHwThermalSlowdown
        | nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
    )
    values: dict[str, Callable[[Any], float]] = {
        "busy_ratio": lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
        "memory_used_bytes": lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
        "memory_bytes": lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
        "temperature_celsius": lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "power_watts": lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        "slowed": lambda gpu: float(
            bool(nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) & for_heat_or_power)
        ),
        "memory_errors": lambda gpu: nvml.nvmlDeviceGetTotalEccErrors(
            gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
    }
    found: dict[str, dict[str, float]] = {}
    for field, value in values.items():
        for number, gpu in enumerate(gpus):
            try:
                found.setdefault(field, {})[str(number)] = value(gpu)
            except nvml.NVMLError as error:  # not supported, or the GPU is lost
                _logger.debug("GPU %d has no %s: %s", number, field, error)
    return {field: numbers for field, numbers in found.items() if numbers}
