"""Readings of the GPUs of one node, put into the journal of its agent every half minute, and their errors.

Through NVML, the library of NVIDIA's driver, which `nvidia-smi` prints from: it neither touches CUDA nor
takes memory of a GPU. Training needs none of it. So the driver is first asked in a thread of its own, where
it may be slow or hang as it does on sick nodes; where it is absent there are no readings and no noise; and a
value that a GPU does not know is left out.

Errors are what the driver reports as Xid events: each is recorded within a second. (Tested with a stand-in of
NVML; no event of a real GPU has been seen yet.)
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from monitoring.journal import Journal
from monitoring.kinds import XIDS

EVERY_S = 30.0
_ERRORS_EVERY_S = 1.0
_MAX_ERRORS = 20  # taken of one GPU at a time; the others wait
_LARGEST_XID = 999  # far above NVIDIA's largest: the number becomes a label
_PATIENCE_S = 1.0  # at the end, with a driver that does not answer
_logger = logging.getLogger(__name__)


@contextmanager
def recorded(journal: Journal, node: int, host: str, *, every_s: float = EVERY_S) -> Iterator[None]:
    """Record what the GPUs of this node do, meanwhile.

    Args:
        journal: Of a process of this node; takes records of the kinds `gpu` and `gpu_error`.
        node: Number of the node in its job.
        host: Its name.
        every_s: Time between two readings.
    """
    ended = threading.Event()

    def watch() -> None:
        nvml = _nvml()
        gpus = _visible(nvml) if nvml else []
        if not (nvml and gpus):
            return
        events = _error_events(nvml, gpus)
        due, is_over = time.monotonic(), False
        while True:
            for number, those in events.items():
                for xid in _xids(nvml, those):
                    what = XIDS.get(xid, "NVIDIA's list of Xid errors tells what it is")
                    journal.record("gpu_error", node=node, host=host, gpu=number, xid=xid, what=what)
            if is_over:  # what ended the work may have come last
                return
            if time.monotonic() >= due:
                due += every_s
                if readings := _read(nvml, gpus):
                    journal.record("gpu", node=node, host=host, **readings)
            is_over = ended.wait(min(_ERRORS_EVERY_S, every_s))

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


def _error_events(nvml: ModuleType, gpus: list[Any]) -> dict[int, Any]:
    """By number of the GPU, the set of events in which the driver puts its errors.

    One for each: an event names its GPU by a handle only, and a GPU that is lost answers no question.
    """
    found, refused = {}, []
    for number, gpu in enumerate(gpus):
        try:
            events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(gpu, nvml.nvmlEventTypeXidCriticalError, events)
            found[number] = events
        except nvml.NVMLError_NotSupported:  # such as a part of a GPU (MIG)
            refused.append(number)
        except nvml.NVMLError as error:
            _logger.debug("GPU %d tells of no errors: %s", number, error)
    if refused:
        names = ", ".join(map(str, refused))
        _logger.warning("the driver does not report errors (Xid) of GPU %s; the rest is read", names)
    return found


def _xids(nvml: ModuleType, events: Any) -> list[int]:
    """Numbers of the errors since the last time; 0 for what cannot be one."""
    found: list[int] = []
    try:
        while len(found) < _MAX_ERRORS:
            xid = int(nvml.nvmlEventSetWait_v2(events, 0).eventData)  # ms
            found.append(xid if 0 < xid <= _LARGEST_XID else 0)
    except nvml.NVMLError as error:  # a timeout, as a rule: there are no more
        _logger.debug("no more errors: %s", error)
    return found


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
