"""A run that everything happens to, watched: metrics, page, report and alerts tell what the journal tells."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import monitoring
from launcher.dash import routes_of
from monitoring.exporter import Exporter
from monitoring.server import Request, find

if TYPE_CHECKING:
    from conftest import Job, Run, Runs

pytestmark = pytest.mark.slow
Totals = dict[str, float]
Samples = dict[str, float]

RULES = Path(monitoring.__path__[0]) / "prometheus"
# Stands in for NVIDIA's module, in the process of the agent: one GPU that knows nothing but how warm it is,
# and that falls off the bus.
NVML = """
from types import SimpleNamespace
class NVMLError(Exception): pass
class NVMLError_NotSupported(NVMLError): pass
nvmlEventTypeXidCriticalError = 8
def nvmlEventSetCreate(): return [79]
def nvmlDeviceRegisterEvents(gpu, kinds, events): pass
def nvmlEventSetWait_v2(events, timeout_ms):
    if not events: raise NVMLError("Timeout")
    return SimpleNamespace(eventData=events.pop())
NVML_TEMPERATURE_GPU = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 0
nvmlClocksEventReasonHwSlowdown = nvmlClocksEventReasonSwThermalSlowdown = 1
nvmlClocksEventReasonHwThermalSlowdown = nvmlClocksEventReasonHwPowerBrakeSlowdown = 2
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetTemperature(gpu, sensor): return 61
def refuse(*arguments): raise NVMLError("Not Supported")
def __getattr__(name):
    if name.startswith("nvmlDeviceGet"): return refuse
    raise AttributeError(name)
"""
# What each kind of record must raise, and what a person reads of it on the page and in the report.
ALERTS = {
    "skip": "UnivipNonFinite",
    "rollback": "UnivipRolledBack",
    "restart": "UnivipRestarted",
    "checkpoint_failed": "UnivipCheckpointFailing",
    "stall": "UnivipRankStalls",
    "spike": "UnivipSpikes",
    "corruption": "UnivipCheckpointCorrupt",
    "dropped": "UnivipRecordsDropped",
    "gpu_error": "UnivipGpuBroken",
}
TOLD = {
    "skip": "batch skipped",
    "rollback": "rolled back to data step",
    "restart": "new round of workers",
    "checkpoint_failed": "checkpoint not written",
    "gpu_error": "reported Xid 79: the GPU has fallen off the bus",
}


def totals(exporter: Exporter, run: Run) -> Totals:
    """Every counter of a run, summed over its labels."""
    found: Totals = {}
    for family in text_string_to_metric_families(exporter.exposition().decode()):
        for sample in family.samples:
            if sample.name.endswith("_total") and sample.labels["run"] == run.directory.name:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def outcomes(run: Run) -> list[str]:
    """Of all saves so far."""
    return [record["outcome"] for record in run.records("checkpoint")]


def samples(exporter: Exporter, run: Run) -> Samples:
    """Every series of a run, as Prometheus writes it, and its value."""
    found = {}
    for family in text_string_to_metric_families(exporter.exposition().decode()):
        for sample in family.samples:
            if sample.labels["run"] == run.directory.name:
                labels = ", ".join(f"{name}={json.dumps(value)}" for name, value in sample.labels.items())
                found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def alerts_of(snapshots: list[Samples], folder: Path) -> set[str]:
    """Which alerts fire if Prometheus sees these snapshots, one a minute, by its own program."""
    series: dict[str, list[str]] = {}
    for minute, seen in enumerate(snapshots):
        for name, value in seen.items():
            series.setdefault(name, ["_"] * minute).append(
                repr(value).replace("inf", "Inf").replace("nan", "NaN")
            )
    rules = yaml.safe_load((RULES / "alerts.yml").read_text(encoding="utf-8"))
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    expression = 'group by (alertname) (last_over_time(ALERTS{alertstate="firing", alertname="%s"}[3h]))'
    case = {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": " ".join(values)}
            for name, values in ({'up{job="univip"}': ["1"] * len(snapshots)} | series).items()
        ],
    }
    for name in ("alerts.yml", "recording.yml"):
        shutil.copy(RULES / name, folder / name)
    firing = set()
    for name in names:  # each in a case of its own: promtool says only whether a case holds
        sample = {"labels": f'{{alertname="{name}"}}', "value": 1}
        test = {"expr": expression % name, "eval_time": f"{len(snapshots)}m", "exp_samples": [sample]}
        document = {
            "rule_files": ["alerts.yml", "recording.yml"],
            "evaluation_interval": "1m",
            "tests": [{**case, "promql_expr_test": [test]}],
        }
        (folder / "tests.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
        done = subprocess.run(
            ["promtool", "test", "rules", "tests.yml"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 or "got:" in done.stdout + done.stderr, done.stdout + done.stderr
        if done.returncode == 0:
            firing.add(name)
    return firing


def ask(run: Run, view: str) -> str:
    """What the page is told."""
    path = f"/api/runs/{run.directory.name}{view}"
    handler = find(routes_of(run.directory.parent), path)
    assert handler is not None
    response = handler(Request(path, {}))
    assert isinstance(response.body, bytes)
    return response.body.decode()


def test_every_fault_of_a_run_is_told_everywhere_and_no_counter_goes_back(
    runs: Runs, start: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)  # the job inherits it, and this:
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    overrides = ["train.max_steps=40", "resilience.collective_timeout_s=4"]
    run = runs.new("watched", workers=2, overrides=overrides)
    living = Exporter(run.directory.parent)
    seen: list[Totals] = []
    snapshots: list[Samples] = []
    job = start(run, plant="nan:loss@3,nan:parameter@8,kill:1@14")

    def look() -> bool:
        seen.extend([totals(living, run), totals(Exporter(run.directory.parent), run)])
        now = samples(living, run)
        if now and (not snapshots or faults_in(now) != faults_in(snapshots[-1])):
            snapshots.append(now)
        return run.reached() >= 4

    job.until(look, "data step 4")
    # Room for the journal and none for a checkpoint, as on a full disk.
    writer = job.ranks()[0]
    _, hard = resource.prlimit(writer, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    job.until(lambda: look() and "failure" in outcomes(run), "a failed checkpoint")
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (hard, hard))
    job.until(lambda: look() and run.records("restart"), "the kill")
    job.until(lambda: look() and run.reached() >= 16 and 1 in job.ranks(), "data step 16")
    os.kill(job.ranks()[1], signal.SIGSTOP)
    job.until(lambda: look() and len(run.records("restart")) == 2, "the hang")
    assert job.process.wait(120) == 0, job.stderr
    look()
    last = totals(Exporter(run.directory.parent), run)
    seen.extend([totals(living, run), last])

    assert [record["cause"] for record in run.records("restart")] == ["killed", "hang"]
    assert last["univip_fault_rollbacks_total"] == len(run.ledger("rollback")) == 1
    assert last["univip_fault_skipped_steps_total"] == len(run.ledger("skip")) == 1
    assert last["univip_fault_nonfinite_total"] == 2
    assert last["univip_fault_restarts_total"] == len(run.records("restart")) == 2
    assert last["univip_gpu_xid_errors_total"] == len(run.records("gpu_error")) == 1
    assert last["univip_checkpoint_saves_total"] == len(outcomes(run))
    assert last["univip_checkpoint_restores_total"] == sum(
        not each["rank"] for each in run.records("restore")
    )
    assert last["univip_train_steps_total"] == max(record["steps"] for record in run.records("step"))
    assert len(seen) > 20
    for before, after in itertools.pairwise(seen):
        assert all(after[name] >= value for name, value in before.items())

    told = Counter({kind: len(run.records(kind)) for kind in ALERTS if run.records(kind)})
    told["checkpoint_failed"] = outcomes(run).count("failure")
    assert set(TOLD) <= set(told)
    page = json.loads(ask(run, ""))
    shown = Counter(fault["kind"] for fault in page["faults"])
    for kind in TOLD:
        assert page["counts"][kind] == shown[kind] == told[kind], kind
    written = (run.directory / "results" / "report.html").read_text(encoding="utf-8")  # at its end
    for report in (ask(run, "/report"), written):
        rows = re.findall(r"<tr>.*?</tr>", report, flags=re.DOTALL)
        for kind, words in TOLD.items():
            assert sum(words in row for row in rows) == told[kind], kind
    assert {fault["text"] for fault in page["faults"] if fault["kind"] == "restart"} == {
        "new round of workers: killed",
        "new round of workers: hang",
    }

    text = living.exposition().decode()
    assert f'univip_gpu_temperature_celsius{{run="{run.directory.name}",node="0",gpu="0"}} 61\n' in text
    assert {record["host"] for record in run.records("gpu")} == {page["attempts"][0]["host"]}
    assert str(run.directory.parent) not in text
    assert str(runs.data) not in text
    assert "hunter2" not in text

    if shutil.which("promtool") is None:
        (pytest.fail if os.environ.get("UNIVIP_EXPECT_PROMETHEUS") else pytest.skip)("promtool is absent")
    fired = alerts_of([snapshots[0]] * 3 + snapshots[1:] + [snapshots[-1]] * 2, tmp_path)
    # Of a run that is over in minutes, nothing that needs a while can be told.
    assert fired - {"UnivipWatchdog"} == {ALERTS[kind] for kind in told}


def faults_in(snapshot: Samples) -> Samples:
    """What alerts on faults are made of."""
    names = ("univip_fault_", "univip_checkpoint_saves", "univip_monitoring_dropped")
    return {
        name: value for name, value in snapshot.items() if name.startswith(names) and "success" not in name
    }
