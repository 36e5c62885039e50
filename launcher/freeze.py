"""The code of a run, copied when it is submitted: an edit in the checkout cannot change what is requeued.

    RUN/code/<digest12>/      univip, jobs, launcher, monitoring, configs, as they were
    RUN/code/<digest12>.patch what differed from the commit in environment.json; only where git knows

A copy is named by its content and never changes, so the same code is copied once, and what an earlier request
still runs stays as it is. Jobs find it by PYTHONPATH; what else is installed is not copied.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import uuid
from pathlib import Path

from jobs.outcomes import read_json
from univip.atomic import sync, write_text

FOLDER = "code"
ENVIRONMENT_FILE = "environment.json"  # of a run; its `code` names the copy
_PACKAGES = ("configs", "jobs", "launcher", "monitoring", "univip")
_GIT_TIMEOUT_S = 30


def code_dir(run_dir: Path) -> Path:
    """Where the code as it is now lies in a run, or would lie."""
    return _place_of(run_dir, _read())


def frozen(run_dir: Path) -> Path | None:
    """The code that the newest request of a run was submitted with; None if no copy is there."""
    document = read_json(run_dir / ENVIRONMENT_FILE) or {}
    code = run_dir / FOLDER / str(document.get("code") or "none")
    return code if code.is_dir() else None


def freeze(run_dir: Path) -> Path:
    """Copy the code into a run, whole or not at all, unless it is there already."""
    sources = _read()  # once: they may be edited meanwhile
    final = _place_of(run_dir, sources)
    if final.is_dir():
        return final
    final.parent.mkdir(exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
    for relative, content in sources:
        target = temporary / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if patch := _patch():
        write_text(final.with_suffix(".patch"), patch)
    temporary.rename(final)
    sync(final.parent)
    return final


def environment(code: Path) -> dict[str, str]:
    """Variables with which Python takes the packages from there, wherever it is started."""
    before = os.environ.get("PYTHONPATH")
    # Without the second, `python -m` would look into the current folder first, which may be the checkout.
    return {"PYTHONPATH": f"{code}{os.pathsep}{before}" if before else str(code), "PYTHONSAFEPATH": "1"}


def _place_of(run_dir: Path, sources: list[tuple[Path, bytes]]) -> Path:
    digest = hashlib.sha256()
    for relative, content in sources:
        digest.update(f"{relative}\0{len(content)}\0".encode())
        digest.update(content)
    return run_dir / FOLDER / digest.hexdigest()[:12]


def _read() -> list[tuple[Path, bytes]]:
    """Every file of the packages, sorted: its place in the copy, and what it holds."""
    found = []
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        for folder, inner, names in os.walk(package):
            inner[:] = sorted(each for each in inner if each != "__pycache__" and not each.startswith("."))
            for each in sorted(each for each in names if not each.startswith(".")):
                path = Path(folder) / each
                found.append((Path(name) / path.relative_to(package), path.read_bytes()))
    return found


def _patch() -> str:
    """What was changed in the checkout since its commit; new files are in the copy only."""
    command = ["git", "-C", str(Path(__file__).parent.parent), "diff", "HEAD", "--", *_PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_GIT_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return ""  # no checkout
    return done.stdout.decode(errors="replace")
