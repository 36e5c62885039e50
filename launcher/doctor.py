"""What can be wrong before a run begins, each with what was found and what to type against it.

Checks look and measure; none of them changes anything but a few temporary files in the folder of the runs,
and with `deep` one short job of SLURM. A check that cannot be made says so, and is no error.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from jobs.config import Config, RunKind
from jobs.identity import run_id
from jobs.locks import has_locks
from jobs.outcomes import read_json
from jobs.requests import Stage
from launcher.dash import FOLDER as DASH_FOLDER
from univip.config import SEARCH, MethodName
from univip.data.scan import Scan, annotation_file, scan, split_names
from univip.errors import UnivipError

_PROMETHEUS = "http://127.0.0.1:9090"  # where it listens if nobody says otherwise
_PROMETHEUS_TIMEOUT_S = 2.0
_LOOK_TIMEOUT_S = 300  # torch, from a cold network file system
_MOST_FILES = 5000  # of a data set; evenly spaced
_MOST_HEADERS = 2000  # of a folder, as `univip submit` does
_STAT_THREADS = 16
_NAMES = 3
_MB = 1 << 20
_FULL_BYTES, _TIGHT_BYTES = 1 << 30, 20 << 30  # a ResNet-50's checkpoint has 0.6 GB, and several are kept
_SYNCS, _SYNC_BYTES = 20, 64 * _MB
_SLOW_SYNC_S, _SLOW_MB_PER_S = 0.1, 20.0
_SKEW_S = 2.0
# File systems of one machine; of the others a compute node may be expected to see the same.
_LOCAL = frozenset("btrfs ext2 ext3 ext4 f2fs overlay ramfs squashfs tmpfs vfat xfs zfs".split())  # noqa: SIM905


class Level(StrEnum):
    """How bad it is: MISS stops a run, WARN does not."""

    OK = "OK"
    WARN = "WARN"
    MISS = "MISS"


@dataclass(frozen=True)
class Row:
    """One check.

    Attributes:
        found: What is there.
        fix: The command or the option against it; empty where all is well.
    """

    level: Level
    check: str
    found: str
    fix: str = ""


def ok(check: str, found: str) -> Row:
    """All is well."""
    return Row(Level.OK, check, found)


def warn(check: str, found: str, fix: str) -> Row:
    """A run goes on without it."""
    return Row(Level.WARN, check, found, fix)


def miss(check: str, found: str, fix: str) -> Row:
    """A run fails without it."""
    return Row(Level.MISS, check, found, fix)


def machine() -> Iterator[Row]:
    """Python, torch and GPUs of this machine, submitit."""
    yield ok("Python", platform.python_version())
    yield from torch_and_gpus("torch", look_here())
    try:
        yield ok("submitit", importlib.metadata.version("submitit"))
    except importlib.metadata.PackageNotFoundError:
        yield miss("submitit", "not installed", f"{sys.executable} -m pip install submitit")


def look_here() -> dict[str, Any]:
    """What `jobs.probe` sees, in a process of its own: it loads torch."""
    command = [sys.executable, "-P", "-m", "jobs.probe"]  # not that of a checkout one stands in
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LOOK_TIMEOUT_S)
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:  # such as an instruction that this processor lacks
        last = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        return {"error": last, "driver": ""}
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return {"error": str(error), "driver": ""}
    assert isinstance(found, dict)
    return found


def torch_and_gpus(check: str, found: dict[str, Any]) -> Iterator[Row]:
    """Whether torch loads, and was built for a CUDA that the driver serves.

    Args:
        check: Name of the row.
        found: What `jobs.probe.look` gave, here or on a node.
    """
    pip = f"{sys.executable} -m pip install"
    if found["error"]:
        yield miss(check, f"cannot be loaded: {found['error']}", f"{pip} --force-reinstall torch torchvision")
        return
    build = f"CUDA {found['cuda']}" if found["cuda"] else "the CPU alone"
    what = f"{found['torch']}, built for {build}"
    if found["gpus"]:
        kinds = {name: found["gpus"].count(name) for name in found["gpus"]}
        gpus = ", ".join(f"{count} x {name}" for name, count in kinds.items())
        yield ok(check, f"{what}; {gpus}, driver {found['driver'] or 'unknown'}")
    elif not found["driver"]:
        yield ok(check, f"{what}; no NVIDIA driver on {found['host']}, so this is no place to train on a GPU")
    elif os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        yield warn(check, f"{what}; CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES")
    else:
        newest = found["driver_cuda"] or "..."
        yield miss(
            check,
            f"{what}, but sees no GPU; driver {found['driver']} serves CUDA up to {newest}",
            f"{pip} --force-reinstall torch torchvision  # builds for CUDA {newest} or older",
        )


def runs_folder(runs: Path, *, asks_kind: bool) -> Iterator[Row]:
    """Whether runs can be kept there: rights, space, speed and clock.

    Args:
        runs: The folder, made or not.
        asks_kind: Whether its file system must be one that other machines may see.
    """
    check = "run root"
    try:
        above = next(folder for folder in (runs, *runs.parents) if folder.exists())
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=above) as folder:
            sync_s, mb_per_s = _sync_speed(Path(folder))
            can_lock = has_locks(Path(folder))
            before = time.time()
            (Path(folder) / "clock").touch()
            skew_s = (Path(folder) / "clock").stat().st_mtime - before
    except OSError as error:
        yield miss(check, f"{runs}: {error.strerror or error}", "paths.runs=/where/you/may/write")
        return
    yield ok(check, f"{runs}{'' if above == runs else f' (to be made in {above})'} can be written")
    system = os.statvfs(above)
    free = system.f_bavail * system.f_frsize
    space = f"{free / 1e9:,.1f} GB are free"
    fix = f"df -h {above}  # make room, or paths.runs=/another/disk"
    if free < _FULL_BYTES:
        yield miss("space", space, fix)
    else:
        yield warn("space", space, fix) if free < _TIGHT_BYTES else ok("space", space)
    speed = f"a durable write takes {1000 * sync_s:.1f} ms, and {mb_per_s:,.0f} MB/s"
    if sync_s > _SLOW_SYNC_S or mb_per_s < _SLOW_MB_PER_S:
        yield warn("fsync", speed, "paths.runs=/a/faster/disk, or a larger checkpoint.every_steps")
    else:
        yield ok("fsync", speed)
    if can_lock:
        yield ok("locks", "files can be locked")
    else:
        what = "the file system has none, so files `*.owner` stand for them"
        yield warn("locks", what, "rm RUN/*.owner  # after a machine died that had submitted or run it")
    skew = f"the file system's clock is {round(skew_s, 1) + 0.0:+.1f} s off this machine's"
    if abs(skew_s) > _SKEW_S:
        yield warn("clock", skew, "timedatectl  # is the clock of this machine synchronised?")
    else:
        yield ok("clock", skew)
    if asks_kind:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
        kind = file_system(above.resolve(), mounts)  # the table knows no links
        if kind in _LOCAL:
            yield warn(
                "shared", f"{above} is on {kind}, which other machines may not see", "univip doctor --deep"
            )
        else:
            yield ok("shared", f"{above} is on {kind or 'a file system of unknown kind'}")


def _sync_speed(folder: Path) -> tuple[float, float]:
    """Median time of a small durable write, s, and speed of a large one, MB/s."""
    times = []
    with (folder / "sync").open("wb") as file:
        for _ in range(_SYNCS):
            begun = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for _ in range(_SYNC_BYTES // _MB):
            file.write(os.urandom(_MB))  # not zeros: some file systems keep none of them
        file.flush()
        os.fsync(file.fileno())
        return statistics.median(times), _SYNC_BYTES / 1e6 / (time.perf_counter() - begun)


def file_system(path: Path, mounts: str) -> str:
    """Kind of the file system that holds `path`, such as nfs4; empty if the table of mounts does not tell."""
    found = {}
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        found[Path(point.replace("\\040", " "))] = kind  # a later mount hides an earlier one
    return next((found[each] for each in (path, *path.parents) if each in found), "")


def data(config: Config) -> Iterator[Row]:
    """Whether the photographs and the boxes are there."""
    if not config.data.root:
        yield warn("data", "not looked at: no data.root", "univip doctor data.root=/path/to/photographs ...")
        return
    try:
        found = scan(config.data, most_headers=_MOST_HEADERS)
    except UnivipError as error:
        yield miss("data", f"{error.what} ({error.where})", error.fix)
        return
    yield _photographs(config, found)
    for reason, names in sorted(found.refused.items()):
        yield warn("data", f"{len(names):,} {reason}, which are left out: {_some(names)}", "none is needed")
    if config.evaluate.split and not found.exif:
        try:
            for split in split_names(config.evaluate.split):
                annotation_file(Path(config.data.root), split, key="evaluate.split")
        except UnivipError as error:
            yield miss("evaluation", f"{error.what} ({error.where})", error.fix)
    if config.method.name is not MethodName.byol:
        yield _boxes(config, found)


def _photographs(config: Config, found: Scan) -> Row:
    """Whether every photograph of the annotations is a file that is not empty."""
    root, rows = Path(config.data.root), found.rows
    count = min(len(rows), _MOST_FILES)
    names = [rows[number * len(rows) // count].path for number in range(count)]

    def is_there(name: str) -> bool:
        try:
            return (root / name).stat().st_size > 0
        except OSError:
            return False

    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        gone = [name for name, there in zip(names, pool.map(is_there, names), strict=True) if not there]
    looked_at = "all were looked for" if count == found.num_images else f"{count:,} of them were looked for"
    said = f"{found.num_images:,} photographs in {root}; {looked_at}"
    if gone:
        what = f"{said}, and {len(gone):,} are missing or empty: {_some(gone)}"
        return miss("data", what, "fetch the rest of the photographs, or data.root=/where/all/of/them/are")
    return ok("data", said)


def _boxes(config: Config, found: Scan) -> Row:
    """Whether the boxes of these photographs are made."""
    runs = Path(config.paths.runs)
    run = run_id(config, found.fingerprint, RunKind.proposals)
    if Stage("merge", run).is_done(runs) and (runs / run / "proposals.arrow").exists():
        return ok("boxes", f"{run} has them")
    if config.proposals.source != SEARCH:
        return miss("boxes", f"{runs / run} has none yet", "univip proposals import FILE ...")
    return warn("boxes", f"{runs / run} has none yet; a pipeline makes them", "univip submit proposals ...")


def prometheus(runs: Path) -> Row:
    """Whether a Prometheus answers: the one of `univip dash --up`, else the usual one of this machine."""
    try:
        mine = read_json(runs / DASH_FOLDER / "prometheus.json") or {}
    except PermissionError:  # another user's
        mine = {}
    address = str(mine.get("address", _PROMETHEUS))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/-/ready", timeout=_PROMETHEUS_TIMEOUT_S):
            return ok("Prometheus", f"{address} is ready")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return warn("Prometheus", f"{address}: {reason}; runs do not need it", "univip dash --up")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES]) + (", ..." if len(names) > _NAMES else "")
