"""Rules and alerts: Prometheus accepts them, each has a case for and against, and they name what exists."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import monitoring
from launcher.cli.main import cli
from monitoring.catalog import METRICS
from monitoring.kinds import BAD_XIDS, XIDS

FOLDER = Path(monitoring.__path__[0]) / "prometheus"
METRIC = {metric.name: metric for metric in METRICS}
OTHER_PROGRAMS = {"df"}
SELECTOR = re.compile(r"\b(univip_\w+)(?:\{([^}]*)\})?")


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in load(name)["groups"] for rule in group["rules"]]


ALERTS = rules("alerts.yml")
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Metrics of an expression, with the label values that they must equal or not."""
    for name, inside in SELECTOR.findall(re.sub(r"\brun:\w+:\w+", "", expression)):
        yield name, dict(re.findall(r'(\w+)\s*[!=]~?\s*"([^"]*)"', inside))


@pytest.mark.parametrize(
    "command",
    [
        ["promtool", "check", "config", "prometheus.yml"],
        ["promtool", "check", "rules", "recording.yml", "alerts.yml"],
        ["promtool", "test", "rules", "tests.yml"],
        ["amtool", "check-config", "alertmanager.yml"],
    ],
    ids=" ".join,
)
def test_prometheus_accepts_it(program: Callable[[str], str], command: list[str]) -> None:
    done = subprocess.run(
        [program(command[0]), *command[1:]],
        cwd=FOLDER,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "lint" not in done.stdout + done.stderr


def test_a_wrong_rule_would_be_noticed(program: Callable[[str], str], tmp_path: Path) -> None:
    for name in ("recording.yml", "alerts.yml"):
        text = (FOLDER / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace(">= 3", ">= 2"), encoding="utf-8")
    tests = load("tests.yml")
    tests["tests"] = [case for case in tests["tests"] if case["name"].startswith("UnivipRollbackLoop")]
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests), encoding="utf-8")

    done = subprocess.run(
        [program("promtool"), "test", "rules", "tests.yml"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert len(tests["tests"]) == 2
    assert done.returncode != 0
    assert "UnivipRollbackLoop" in done.stdout + done.stderr


def test_each_alert_has_a_case_for_and_one_against() -> None:
    cases = {case["name"] for case in load("tests.yml")["tests"]}

    names = {alert["alert"] for alert in ALERTS}
    assert {f"{name} fires" for name in names} <= cases
    assert {f"{name} stays silent" for name in names - {"UnivipWatchdog"}} <= cases


@each_alert
def test_an_alert_says_what_it_is_and_what_to_type(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"Univip([A-Z][a-z]+)+", alert["alert"])
    assert alert["labels"]["severity"] in {"critical", "warning", "info", "none"}
    assert set(alert["annotations"]) == {"summary", "description", "fix"}
    is_of_a_run = "absent" not in alert["expr"] and "vector" not in alert["expr"]
    assert ("$labels.run" in alert["annotations"]["summary"]) == is_of_a_run
    for command in alert["annotations"]["fix"].partition(" #")[0].split("; "):
        program, verb, *_ = [*command.split(), ""]
        assert program in OTHER_PROGRAMS or (program == "univip" and verb in cli.list_commands(None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "expression",
    [rule["expr"] for name in ("recording.yml", "alerts.yml") for rule in rules(name)]
    + [series["series"] for case in load("tests.yml")["tests"] for series in case.get("input_series", ())],
)
def test_what_a_rule_names_is_in_the_catalogue(expression: str) -> None:
    recorded = {rule["record"] for rule in rules("recording.yml")}
    assert set(re.findall(r"\brun:\w+:\w+", expression)) <= recorded
    for name, labels in selectors(expression):
        metric = METRIC[name]
        for label, value in labels.items():
            known = metric.labels.get(label, ())
            assert label in {"run", "job", "instance", *metric.labels}
            assert not known or set(value.split("|")) <= set(known), (name, label, value)


def test_the_errors_that_a_gpu_is_drained_for_are_those_of_the_catalogue() -> None:
    [alert] = [alert for alert in ALERTS if alert["alert"] == "UnivipGpuBroken"]
    [(_, labels)] = selectors(alert["expr"])

    assert labels["xid"].split("|") == list(map(str, BAD_XIDS))
    assert set(BAD_XIDS) < set(XIDS)
    assert "scontrol update nodename=HOST state=drain" in alert["annotations"]["fix"]


@pytest.mark.parametrize(
    ("severity", "receiver"),
    [("critical", "person"), ("warning", "person"), ("info", "nobody"), ("none", "nobody")],
)
def test_a_person_hears_of_what_a_person_must_do(
    program: Callable[[str], str], severity: str, receiver: str
) -> None:
    labels = [f"severity={severity}", "run=coco_univip-0a1b2c3d", "alertname=UnivipRunFailed"]
    command = [program("amtool"), "config", "routes", "test", "--config.file=alertmanager.yml", *labels]
    done = subprocess.run(command, cwd=FOLDER, text=True, capture_output=True, timeout=60, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, receiver), done.stderr


def test_one_message_is_sent_for_a_run() -> None:
    route = load("alertmanager.yml")["route"]

    assert route["group_by"] == ["run"]
    receivers = {receiver["name"] for receiver in load("alertmanager.yml")["receivers"]}
    assert {route["receiver"], *(each["receiver"] for each in route["routes"])} <= receivers
