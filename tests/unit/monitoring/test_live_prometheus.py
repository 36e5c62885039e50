"""A real Prometheus scrapes the exporter while a run goes on: every rule, alert and panel has data.

Queries are asked of a real run, that of `univip demo`, from its first photograph to its evaluation. Alerts
and deaths of the exporter are tried on journals written for it, with more faults in less time.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import monitoring
from monitoring.board_json import to_json
from monitoring.boards import BOARDS, Board
from monitoring.catalog import METRICS
from monitoring.exporter import Exporter, routes
from monitoring.journal import Journal, read
from monitoring.kinds import PHASES, TERMS
from monitoring.server import Server

FOLDER = Path(monitoring.__path__[0]) / "prometheus"
RUN = "coco_univip-0a1b2c3d"
STEP_S = 0.1
DEADLINE_S = 120.0
DEMO_S = 500.0  # one minute or two on two cores at rest
# Stands in for NVIDIA's module in the process of the agent: one GPU that answers every question with 1, and
# reports one error.
NVML = """
from types import SimpleNamespace
class NVMLError(Exception): pass
class NVMLError_NotSupported(NVMLError): pass
nvmlEventTypeXidCriticalError = 8
def nvmlEventSetCreate(): return [31]
def nvmlDeviceRegisterEvents(gpu, kinds, events): pass
def nvmlEventSetWait_v2(events, timeout_ms):
    if not events: raise NVMLError("Timeout")
    return SimpleNamespace(eventData=events.pop())
nvmlClocksEventReasonHwSlowdown = nvmlClocksEventReasonSwThermalSlowdown = 1
nvmlClocksEventReasonHwThermalSlowdown = nvmlClocksEventReasonHwPowerBrakeSlowdown = 2
NVML_TEMPERATURE_GPU = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 0
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUtilizationRates(gpu): return SimpleNamespace(gpu=100)
def nvmlDeviceGetMemoryInfo(gpu): return SimpleNamespace(used=1, total=1)
def one(*arguments): return 1
def __getattr__(name):
    if name.startswith("nvmlDeviceGet"): return one
    raise AttributeError(name)
"""

pytestmark = pytest.mark.slow


class Training:
    """Writes the journals of a training until it is told to end: steps, and one fault of each kind."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.ended = threading.Event()
        self.may_fail = threading.Event()
        self.faults = 0
        self._images = 0
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Training:
        self.run_dir.mkdir(parents=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self._thread.join()

    def _write(self) -> None:
        agent = Journal(self.run_dir, attempt=2, source="agent0")
        agent.record("attempt", host="node1", slurm_job_id="4711", stage="train")
        for number in range(10**6):
            with Journal(self.run_dir, attempt=2, round=number) as rank:
                self._round(rank, number)
            if self.ended.is_set():
                break
            agent.record("restart", cause="killed", message="rank 1 ended")
            self.faults += 1
        agent.close()

    def _round(self, rank: Journal, number: int) -> None:
        rank.record(
            "run", state="training", experiment="coco_univip", method="univip", config_hash="0a1b2c3d",
            target_steps=100_000, num_images=640, global_batch=64,
        )  # fmt: skip
        rank.record("round", world_size=2)
        rank.record("restore", checkpoint="step-000000000", seconds=0.5, passed_over={})
        for step in range(1, 100_000):
            if self.ended.wait(STEP_S):
                return
            if step % 5 == 0:
                where = {"data_step": step, "outcome": "success", "bytes": 10**6}
                rank.record("checkpoint", blocked_s=0.01, background_s=0.1, **where)
            if step > 20 and self.may_fail.is_set():
                rank.record("skip", where="loss", reason="nonfinite", what="the loss is NaN")
                rank.record("checkpoint", outcome="failure", what="no space", blocked_s=0.1, background_s=0.1)
                rank.record("rollback", where="state", reason="nonfinite", steps_discarded=9, target=40)
                return
            self._images += 64
            rank.record(
                "step",
                step=step,
                data_step=step,
                loss=3 / step,
                terms=dict.fromkeys(TERMS, 1 / step),
                lr=0.4,
                momentum=0.99,
                gradient_norm=2.5,
                images=self._images,
                steps=self._images / 64,
                seconds=self._images / 64 * STEP_S,
                phases=dict.fromkeys(PHASES, self._images / 64 * STEP_S / len(PHASES)),
                statistics={
                    "embedding_std_online": 0.9,
                    "embedding_std_target": 0.8,
                    "sinkhorn_residual": 1e-6,
                    "norm_parameters": 50.0,
                    "norm_buffers": 20.0,
                },
                counts={"too_small": 3, "fallback": 4, "substituted_missing": 1},
                slowest_rank=1,
                straggler_ratio=1.1,
            )


class Prometheus:
    """Its API."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **parameters: object) -> Any:
        query = urllib.parse.urlencode(parameters)
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}"
        with urllib.request.urlopen(url, timeout=10) as response:
            answer = json.loads(response.read())
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        result: list[Any] = self.get("query", query=expression)["result"]
        return result

    def query_range(self, expression: str, start: float, end: float) -> list[Any]:
        result: list[Any] = self.get("query_range", query=expression, start=start, end=end, step=1)["result"]
        return result


def wait_until(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


@contextmanager
def started(command: list[str], folder: Path, port: int) -> Iterator[Prometheus]:
    """Prometheus with our configuration in seconds instead of minutes, and our exporter."""
    (folder / "tsdb").mkdir(parents=True)
    for name in ("prometheus.yml", "recording.yml", "alerts.yml"):
        text = (FOLDER / name).read_text(encoding="utf-8").replace(": 15s", ": 1s")
        (folder / name).write_text(text.replace("127.0.0.1:9300", f"127.0.0.1:{port}"), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    arguments = [f"--web.listen-address=127.0.0.1:{own}", "--config.file=prometheus.yml"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *arguments, "--storage.tsdb.path=tsdb"], cwd=folder, stdout=log, stderr=log
        )
        try:
            yield Prometheus(own)
        finally:
            process.kill()
            process.wait()


def is_ready(prometheus: Prometheus) -> bool:
    try:
        return bool(prometheus.query('up{job="univip"} == 1'))
    except OSError:
        return False


@pytest.fixture(scope="module")
def watched(
    program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Prometheus, Training]]:
    """A run that has been watched through faults and through deaths of the exporter."""
    root = tmp_path_factory.mktemp("watched")
    server = Server("127.0.0.1", 0, routes(Exporter(root / "runs")))
    server.start()
    with (
        Training(root / "runs" / RUN) as training,
        started([program("prometheus")], root / "prometheus", server.server_port) as prometheus,
    ):
        wait_until("Prometheus is up", lambda: is_ready(prometheus))
        wait_until("zeros are seen", lambda: prometheus.query("univip_fault_rollbacks_total offset 3s"))
        training.may_fail.set()
        for _ in range(5):  # the exporter dies, and another takes its place
            time.sleep(2)
            server.shutdown()
            server.server_close()
            server = Server("127.0.0.1", server.server_port, routes(Exporter(root / "runs")))
            server.start()
        wait_until("faults", lambda: training.faults >= 2)
        training.may_fail.clear()
        wait_until("rates", lambda: prometheus.query("run:univip_train_images:median_rate1d"))
        time.sleep(5)
        yield prometheus, training
    server.shutdown()
    server.server_close()


@dataclass(frozen=True)
class Watched:
    """A run from its first photograph to its evaluation, and the run of its boxes."""

    prometheus: Prometheus
    run_dir: Path
    boxes: str
    began: float
    ended: float

    def has_data(self, expression: str) -> bool:
        """Whether there was something to show at any time."""
        return bool(self.prometheus.query_range(expression, self.began, self.ended))

    def filled_in(self, expression: str, of_run: str) -> str:
        """What Grafana would send."""
        name = self.run_dir.name
        run = name if of_run == "one" else f"({name}|{self.boxes})"
        return expression.replace("$run", run).replace("$__rate_interval", "5s").replace("$__range", "10m")


@pytest.fixture(scope="module")
def demo(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """`univip demo`, watched. SLURM and a GPU are made up: this machine need not have them."""
    root = tmp_path_factory.mktemp("demo")
    (root / "nvml").mkdir()
    (root / "nvml" / "pynvml.py").write_text(NVML)
    runs = root / "runs"
    began = time.time()

    def jobs() -> list[tuple[str, str, str]]:
        return [(path.parent.name, "RUNNING", "None") for path in runs.glob("demo-*/journal")]

    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root / "nvml"), os.environ.get("PYTHONPATH", "")])
    with Server("127.0.0.1", 0, routes(Exporter(runs, jobs))) as server:
        server.start()
        with started([program("prometheus")], root / "prometheus", server.server_port) as prometheus:
            wait_until("Prometheus is up", lambda: is_ready(prometheus))
            done = subprocess.run(
                [sys.executable, "-m", "launcher.cli.main", "--runs", str(runs), "demo"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=DEMO_S,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            time.sleep(5)
            [boxes] = runs.glob("proposals-*")
            run_dir = runs / done.stdout.split()[-1]
            yield Watched(prometheus, run_dir, boxes.name, began, time.time())
        server.shutdown()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_every_panel_and_annotation_has_data(demo: Watched, board: Board) -> None:
    made = to_json(board)
    queries = [(panel["title"], target["expr"]) for panel in made["panels"] for target in panel["targets"]]
    queries += [(each["name"], each["target"]["expr"]) for each in made["annotations"]["list"]]

    empty = [
        (title, query) for title, query in queries if not demo.has_data(demo.filled_in(query, board.of_run))
    ]

    assert empty == []


def test_every_recording_rule_and_every_metric_has_data(demo: Watched) -> None:
    rules = yaml.safe_load((FOLDER / "recording.yml").read_text(encoding="utf-8"))
    names = [rule["record"] for group in rules["groups"] for rule in group["rules"]]

    assert not demo.has_data("univip_train_nothing")
    assert [name for name in names if not demo.has_data(name)] == []
    assert [metric.name for metric in METRICS if not demo.has_data(metric.name)] == []


def test_the_faults_of_a_real_run_are_those_of_its_journal(demo: Watched) -> None:
    kinds = [record["kind"] for record in read(demo.run_dir)]

    for kind, name in (
        ("rollback", "univip_fault_rollbacks_total"),
        ("restart", "univip_fault_restarts_total"),
        ("gpu_error", "univip_gpu_xid_errors_total"),
    ):
        [sample] = demo.prometheus.query(f'sum({name}{{run="{demo.run_dir.name}"}})')
        assert float(sample["value"][1]) == kinds.count(kind) == 1


def test_every_alert_is_evaluated_without_an_error(watched: tuple[Prometheus, Training]) -> None:
    prometheus, _ = watched
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    alerts = [rule for rule in rules if rule["type"] == "alerting"]

    assert len(alerts) > 20
    assert [rule["name"] for rule in rules if rule["health"] != "ok" or rule.get("lastError")] == []
    for alert in alerts:
        prometheus.query(alert["query"])


def test_the_faults_of_the_run_are_told_with_the_counts_of_the_journal(
    watched: tuple[Prometheus, Training],
) -> None:
    prometheus, training = watched
    kinds = [record["kind"] for record in read(training.run_dir)]

    def total(expression: str) -> float:
        [sample] = prometheus.query(f"sum({expression})")
        return float(sample["value"][1])

    assert total("univip_fault_rollbacks_total") == kinds.count("rollback") > 1
    assert total("univip_fault_skipped_steps_total") == kinds.count("skip") > 1
    assert total("univip_fault_nonfinite_total") == kinds.count("skip") + kinds.count("rollback")
    assert total("univip_fault_restarts_total") == kinds.count("restart") > 1
    assert total('univip_checkpoint_saves_total{outcome="failure"}') == kinds.count("skip")
    firing = {
        alert["labels"]["alertname"]: alert
        for alert in prometheus.get("alerts")["alerts"]
        if alert["state"] == "firing"
    }
    own = {"UnivipNonFinite", "UnivipRolledBack", "UnivipRestarted", "UnivipCheckpointFailing"}
    loops = {"UnivipRollbackLoop", "UnivipRestartLoop"}  # two faults in less than a minute may look like one
    assert set(firing) - loops == {"UnivipWatchdog", *own}
    assert firing["UnivipRolledBack"]["annotations"]["summary"].startswith(f"Run {RUN} went back")
    assert firing["UnivipRolledBack"]["annotations"]["fix"] == f"univip show {RUN}"


def test_no_counter_went_back_while_exporters_died(watched: tuple[Prometheus, Training]) -> None:
    prometheus, _ = watched
    counters = [metric.name for metric in METRICS if metric.type == "counter"]

    assert sum(bool(prometheus.query(name)) for name in counters) > len(counters) / 2
    assert [name for name in counters if prometheus.query(f"resets({name}[10m]) > 0")] == []
