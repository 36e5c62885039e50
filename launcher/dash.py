"""Serves the page in this process, or in one that is left behind with a file that tells of it.

RUNS/.dash/            0700
  dash.json prometheus.json    process id, its start time, host and address
  dash.log prometheus.log
  token                        of a server that other machines reach
  prometheus.yml data/         of Prometheus
"""

from __future__ import annotations

import errno
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jobs.attempts import start_ticks
from jobs.outcomes import read_json, write_json
from launcher.errors import RefusedError
from univip.errors import UnivipError

if TYPE_CHECKING:
    from monitoring.server import Routes, Server

FOLDER = ".dash"
_NAMES = ("dash", "prometheus")
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 15.0
_POLL_S = 0.1


def serve(runs: Path, host: str, port: int, token_file: Path | None, *, ready: Callable[..., None]) -> None:
    """Serve until interrupted.

    Args:
        runs: Folder of the runs.
        host: Address to listen at.
        port: 0 takes a free one.
        token_file: Asked for the token in it; needed, and made, for an address that other machines reach.
        ready: Gets the lines that say where the page is, once it is there.

    Raises:
        UnivipError: If the address is taken.
    """
    from launcher.cli.monitor import read_token
    from monitoring.server import is_loopback

    if token_file is None and not is_loopback(host):
        token_file = _folder(runs) / "token"
    token = read_token(token_file) if token_file else ""
    with open_server("dash", runs, host, port, token) as server:
        ready(*_addresses(runs, host, server.server_port, token))
        server.serve_forever()


def open_server(verb: str, runs: Path, host: str, port: int, token: str) -> Server:
    """The server of metrics and page, at its address.

    Args:
        verb: Of the command that serves.
        runs: Folder of the runs.
        host: Address to listen at.
        port: 0 takes a free one.
        token: Asked of every request, unless empty.

    Raises:
        UnivipError: If the address cannot be taken.
    """
    from monitoring.server import Server

    try:
        return Server(host, port, routes_of(runs), token)
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        raise UnivipError(
            f"the address must be free and of this machine, but is not: {error.strerror or error}.",
            where=f"{host}:{port}",
            fix=f"univip {verb} --port {port % 65535 + 1}" if is_taken else f"univip {verb}  # at 127.0.0.1",
        ) from error


def routes_of(runs: Path) -> Routes:
    """Metrics and page of all runs, for the table of a server."""
    from launcher.job_rows import JobRows
    from launcher.summary import summarise
    from monitoring.exporter import Exporter, routes
    from monitoring.web.api import Page

    page = Page(runs, lambda run_dir: summarise(run_dir).to_json(), _changed)
    return {**routes(Exporter(runs, JobRows(runs))), **page.routes()}


def up(runs: Path, host: str, port: int, token_file: Path | None) -> list[str]:
    """Leave the page running, and Prometheus if it is installed.

    Returns:
        Lines that say where they are.

    Raises:
        RefusedError: If it runs already, here or on another machine.
        UnivipError: If it does not start.
    """
    folder = _folder(runs)
    if living := _living(folder / "dash.json"):
        raise RefusedError(
            f"the page must be down to be started, but process {living['pid']} serves it.",
            where=str(living["address"]),
            fix="univip dash --down",
        )
    document = read_json(folder / "dash.json")
    if document and document["host"] != socket.gethostname():  # whether it lives cannot be seen from here
        there, shown = document["host"], shlex.quote(str(runs))
        raise RefusedError(
            f"the page must be down to be started, but process {document['pid']} on {there} serves it.",
            where=str(document["address"]),
            fix=f"ssh {there} univip --runs {shown} dash --down; or, if {there} is gone, "
            f"rm {shlex.quote(str(folder / 'dash.json'))}",
        )
    # `-P`: not `launcher` of a checkout one stands in.
    command = [sys.executable, "-P", "-m", "launcher.cli.main", "--runs", str(runs), "dash", "--host", host]
    command += ["--port", str(port), *(["--token-file", str(token_file)] if token_file else [])]
    log = folder / "dash.log"
    log.unlink(missing_ok=True)
    process = _leave_behind(command, log)
    lines = _first_words(process, log)
    _remember(folder / "dash.json", process.pid, lines[0].split()[1])
    return [
        *lines,
        *_start_prometheus(folder, lines[0].split()[1], token_file),
        "stop       univip dash --down",
    ]


def down(runs: Path) -> list[str]:
    """Stop what `up` left running; returns the names of what was."""
    stopped = []
    for name in _NAMES:
        path = runs / FOLDER / f"{name}.json"
        living = _living(path)
        if living:
            os.kill(living["pid"], signal.SIGTERM)
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            while _living(path):
                if time.monotonic() > deadline:
                    os.kill(living["pid"], signal.SIGKILL)
                time.sleep(_POLL_S)
            stopped.append(name)
        if living or (document := read_json(path)) is None or document["host"] == socket.gethostname():
            path.unlink(missing_ok=True)
    return stopped


def _addresses(runs: Path, host: str, port: int, token: str) -> list[str]:
    """Where the page is, from here and from one's own machine."""
    query = f"/?token={quote(token, safe='')}" if token else "/"
    is_everywhere = host in ("0.0.0.0", "::")
    shown = socket.gethostname() if is_everywhere else host
    from_here = "127.0.0.1" if is_everywhere or host == "localhost" else host
    return [
        f"page       http://{f'[{shown}]' if ':' in shown else shown}:{port}{query}",
        f"runs       {runs}{'' if runs.exists() else '  # no such folder yet'}",
        f"tunnel     ssh -N -L {port}:{from_here}:{port} {getpass.getuser()}@{socket.gethostname()}"
        f"  # at your own machine, then http://127.0.0.1:{port}{query}",
    ]


def _changed(run_dir: Path) -> dict[str, Any]:
    """Keys of a run's configuration that differ from the defaults."""
    from jobs.config import load
    from jobs.identity import changed_keys

    return changed_keys(load(run_dir))


def _start_prometheus(folder: Path, address: str, token_file: Path | None) -> list[str]:
    program = shutil.which("prometheus")
    if program is None:
        return []
    import yaml

    import monitoring

    rules = Path(monitoring.__path__[0]) / "prometheus"
    document = yaml.safe_load((rules / "prometheus.yml").read_text(encoding="utf-8"))
    document["rule_files"] = [str(rules / name) for name in document["rule_files"]]
    del document["alerting"]  # nobody here to send alerts on; its own page shows them
    [scrape] = document["scrape_configs"]
    scrape["static_configs"] = [{"targets": [address.removeprefix("http://").partition("/")[0]]}]
    if "token=" in address:
        scrape["authorization"] = {"credentials_file": str((token_file or folder / "token").absolute())}
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    port = _free_port()
    process = _leave_behind(
        [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        folder / "prometheus.log",
    )
    _remember(folder / "prometheus.json", process.pid, f"http://127.0.0.1:{port}")
    return [f"prometheus http://127.0.0.1:{port}"]


def _leave_behind(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process of its own session, which neither Ctrl-C nor a closed terminal reaches."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def _first_words(process: subprocess.Popen[bytes], log: Path) -> list[str]:
    """What a server says when it serves.

    Raises:
        UnivipError: What it said instead.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        is_over = process.poll() is not None  # looked at first, so that its last words are read
        text = log.read_text(encoding="utf-8", errors="replace")
        if text.startswith("page ") and text.count("\n") >= 3:
            return text.splitlines()[:3]
        if is_over:
            break
        time.sleep(_POLL_S)
    process.terminate()
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise UnivipError(
        f"the page must start, but says: {said[0].removeprefix('univip: ') if said else 'nothing'}",
        where=str(log),
        fix="univip dash  # without --up, to see why; or another --port",
    )


def _remember(path: Path, pid: int, address: str) -> None:
    document = {"pid": pid, "start_ticks": start_ticks(pid), "host": socket.gethostname(), "address": address}
    write_json(path, document)


def _living(path: Path) -> dict[str, Any] | None:
    """What a file tells of, if that process lives and is on this machine."""
    document = read_json(path)
    if document is None or document["host"] != socket.gethostname():
        return None
    ticks = start_ticks(document["pid"])
    return document if ticks and ticks == document["start_ticks"] else None


def _folder(runs: Path) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    folder = runs / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
