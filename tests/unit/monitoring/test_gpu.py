"""GPUs are read through NVML; a stand-in of its module takes its place here, where there is no GPU."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from monitoring.gpu import recorded
from monitoring.journal import Journal, Record, read
from monitoring.kinds import KIND


class NVMLError(Exception):
    """As in the real module."""


class NotSupportedError(NVMLError):
    """`NVMLError_NotSupported` of the real module."""


class Events:
    """A set of events."""

    def __init__(self) -> None:
        self.waiting: list[int] = []


def stand_in(num_gpus: int, refuses: Callable[[str, int], bool] = lambda name, gpu: False) -> Any:
    """`pynvml` of a machine with some GPUs, whose handle is their number.

    `happen(gpu, xid)` of the stand-in is an error of a GPU.
    """
    nvml: Any = ModuleType("pynvml")
    nvml.NVMLError, nvml.NVMLError_NotSupported = NVMLError, NotSupportedError
    nvml.NVML_TEMPERATURE_GPU, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC = 0, 1, 0
    nvml.nvmlClocksEventReasonHwSlowdown = 0x8
    nvml.nvmlClocksEventReasonSwThermalSlowdown = 0x20
    nvml.nvmlClocksEventReasonHwThermalSlowdown = 0x40
    nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80

    def answer(name: str, of: Callable[[int], Any]) -> None:
        def ask(gpu: int, *more: int) -> Any:
            if refuses(name, gpu):
                raise NotSupportedError("Not Supported")
            return of(gpu)

        setattr(nvml, name, ask)

    registered: dict[int, Events] = {}
    nvml.nvmlEventTypeXidCriticalError = 8
    nvml.nvmlEventSetCreate = Events
    nvml.registered = registered
    nvml.happen = lambda gpu, xid: registered[gpu].waiting.append(xid)

    def register(gpu: int, kinds: int, events: Events) -> None:
        if refuses("nvmlDeviceRegisterEvents", gpu):
            raise NotSupportedError("Not Supported")
        assert kinds == nvml.nvmlEventTypeXidCriticalError
        registered[gpu] = events

    def wait(events: Events, timeout_ms: int) -> Any:
        assert timeout_ms == 0  # readings are not to wait for an error
        if not events.waiting:
            raise NVMLError("Timeout")
        # The handle of a lost GPU is of no use: nobody may ask it who it is.
        return SimpleNamespace(device=None, eventType=8, eventData=events.waiting.pop(0))

    nvml.nvmlDeviceRegisterEvents, nvml.nvmlEventSetWait_v2 = register, wait
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetCount = lambda: num_gpus
    answer("nvmlDeviceGetHandleByIndex", lambda index: index)
    answer("nvmlDeviceGetHandleByUUID", lambda uuid: int(str(uuid)[-1]))
    answer("nvmlDeviceGetUtilizationRates", lambda gpu: SimpleNamespace(gpu=90 + gpu, memory=1))
    answer("nvmlDeviceGetMemoryInfo", lambda gpu: SimpleNamespace(used=6 * 10**10 + gpu, total=8 * 10**10))
    answer("nvmlDeviceGetTemperature", lambda gpu: 60 + gpu)
    answer("nvmlDeviceGetPowerUsage", lambda gpu: 650_500 + 1000 * gpu)  # mW
    # Of GPU 0 the cap of its power only, as of every GPU that works; of GPU 1 heat too.
    answer("nvmlDeviceGetCurrentClocksEventReasons", lambda gpu: 0x44 if gpu else 0x4)
    answer("nvmlDeviceGetTotalEccErrors", lambda gpu: 2 * gpu)
    return nvml


def records_of(run_dir: Path, every_s: float = 30.0, until: int = 1) -> list[Record]:
    """What is recorded until there are some records, or for a moment if there are to be none."""
    run_dir.mkdir()
    deadline = time.monotonic() + (20.0 if until else 0.3)
    with Journal(run_dir, source="agent3") as journal, recorded(journal, 3, "node4", every_s=every_s):
        while len(found := list(read(run_dir))) < max(until, 1) and time.monotonic() < deadline:
            time.sleep(0.01)
    return found


def test_every_value_is_recorded_in_base_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stand_in(2))

    [record] = records_of(tmp_path / "run")

    assert (record["kind"], record["node"], record["host"], record["rank"]) == ("gpu", 3, "node4", None)
    assert record["busy_ratio"] == {"0": 0.9, "1": 0.91}
    assert record["memory_used_bytes"] == {"0": 6 * 10**10, "1": 6 * 10**10 + 1}
    assert record["memory_bytes"] == {"0": 8 * 10**10, "1": 8 * 10**10}
    assert record["temperature_celsius"] == {"0": 60, "1": 61}
    assert record["power_watts"] == {"0": 650.5, "1": 651.5}
    assert record["slowed"] == {"0": 0.0, "1": 1.0}
    assert record["memory_errors"] == {"0": 0, "1": 2}
    assert {name.removesuffix("{}") for name in KIND["gpu"].fields} <= set(record)


def test_readings_go_on_until_the_end_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stand_in(1))

    assert len(records_of(tmp_path / "run", every_s=0.01, until=5)) >= 5
    assert "gpus" not in {thread.name for thread in threading.enumerate()}


def test_what_a_gpu_does_not_know_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(name: str, gpu: int) -> bool:
        return name == "nvmlDeviceGetTotalEccErrors" or (name == "nvmlDeviceGetPowerUsage" and gpu == 0)

    monkeypatch.setitem(sys.modules, "pynvml", stand_in(2, refuses))

    [record] = records_of(tmp_path / "run")

    assert "memory_errors" not in record
    assert record["power_watts"] == {"1": 651.5}
    assert set(record["busy_ratio"]) == {"0", "1"}


@pytest.mark.parametrize(
    ("visible", "memory"),
    [("1", [1]), ("1,0", [1, 0]), ("GPU-aaaa-1", [1]), (" 0 , 1 ", [0, 1]), ("", []), ("-1", [])],
)
def test_only_the_gpus_of_the_job_are_read_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, memory: list[int]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stand_in(2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    found = records_of(tmp_path / "run", until=len(memory[:1]))

    used = [value - 6 * 10**10 for record in found for value in record["memory_used_bytes"].values()]
    assert used == memory


def errors_of(run_dir: Path, nvml: Any, happen: Callable[[], None], until: int) -> list[Record]:
    """What is recorded of errors that happen once the GPUs are watched."""
    run_dir.mkdir()
    deadline = time.monotonic() + 20
    with Journal(run_dir, source="agent3") as journal, recorded(journal, 3, "node4", every_s=0.01):
        while not list(read(run_dir)) and time.monotonic() < deadline:  # the first reading
            time.sleep(0.01)
        happen()
        while time.monotonic() < deadline:
            found = [record for record in read(run_dir) if record["kind"] == "gpu_error"]
            if len(found) >= until:
                break
            time.sleep(0.01)
    return [record for record in read(run_dir) if record["kind"] == "gpu_error"]


def test_each_error_is_recorded_once_with_the_gpu_that_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = stand_in(4)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")

    def happen() -> None:
        for gpu, xid in ((3, 79), (2, 31), (3, 48), (2, 145), (2, 10**12)):
            nvml.happen(gpu, xid)

    found = errors_of(tmp_path / "run", nvml, happen, 5)

    # Numbers are those of the job: the third and fourth of the machine are its first and second.
    assert sorted(nvml.registered) == [2, 3]
    assert sorted((record["gpu"], record["xid"]) for record in found) == [
        *((0, 0), (0, 31), (0, 145)),
        *((1, 48), (1, 79)),
    ]
    assert {(record["node"], record["host"], record["rank"]) for record in found} == {(3, "node4", None)}
    words = {record["xid"]: record["what"] for record in found}
    assert "fallen off the bus" in words[79]
    assert "NVIDIA's list" in words[145]
    assert set(KIND["gpu_error"].fields) <= set(found[0])


def test_an_error_at_the_very_end_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a bad GPU does to the work may be seen before the error itself is."""
    nvml = stand_in(1)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    run_dir = tmp_path / "run"
    run_dir.mkdir()

    with Journal(run_dir, source="agent3") as journal, recorded(journal, 3, "node4", every_s=60):
        deadline = time.monotonic() + 20
        while not list(read(run_dir)) and time.monotonic() < deadline:
            time.sleep(0.01)
        nvml.happen(0, 79)

    assert [record["xid"] for record in read(run_dir) if record["kind"] == "gpu_error"] == [79]


def test_a_gpu_without_events_is_read_all_the_same_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nvml = stand_in(3, lambda name, gpu: name == "nvmlDeviceRegisterEvents" and gpu != 1)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)

    [error] = errors_of(tmp_path / "run", nvml, lambda: nvml.happen(1, 64), 1)

    assert (error["gpu"], error["xid"]) == (1, 64)
    readings = [record for record in read(tmp_path / "run") if record["kind"] == "gpu"]
    assert set(readings[0]["busy_ratio"]) == {"0", "1", "2"}
    [word] = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "of GPU 0, 2" in word


def no_driver() -> Any:
    nvml = stand_in(0)

    def fail() -> None:
        raise NVMLError("Driver Not Loaded")

    nvml.nvmlInit = fail
    return nvml


@pytest.mark.parametrize(
    "nvml",
    [None, no_driver(), stand_in(0), stand_in(1, lambda name, gpu: name != "nvmlDeviceRegisterEvents")],
    ids=["no package", "no driver", "no GPU", "lost GPU"],
)
def test_without_a_gpu_there_is_no_reading_no_file_and_no_word(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    nvml: Any,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # None: the import fails

    assert records_of(tmp_path / "run", until=0) == []
    assert not (tmp_path / "run" / "journal").exists()
    assert not [each for each in caplog.records if each.levelname != "DEBUG"]
    assert capfd.readouterr() == ("", "")


def test_a_driver_that_hangs_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml, let_go = stand_in(1), threading.Event()
    nvml.nvmlInit = let_go.wait
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("monitoring.gpu._PATIENCE_S", 0.05)

    assert records_of(tmp_path / "run", until=0) == []
    let_go.set()
