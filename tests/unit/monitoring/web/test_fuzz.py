"""Whatever is asked and whatever lies in a run: an answer, no stack trace, no path, no foreign file."""

from __future__ import annotations

import json
import shutil
import socket
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from launcher.dash import routes_of
from monitoring.journal import Journal
from monitoring.kinds import KINDS
from monitoring.server import Request, Routes, Server, find

RUN = "coco_univip-0a1b2c3d"
SECRET = "hunter2"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"
relaxed = settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=120, derandomize=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A run, and beside the folder of runs a file that is nobody's business."""
    root = tmp_path_factory.mktemp("served")
    (root / "secret.txt").write_text(SECRET)
    run_dir = root / "runs" / RUN
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "logs" / "train.log").write_text("epoch 1\n")
    (run_dir / "logs" / "link.log").symlink_to(root / "secret.txt")
    (run_dir / "config.yaml").write_text("train:\n  seed: 3\n")
    with Journal(run_dir) as journal:
        for step in range(30):
            journal.record("step", data_step=step, loss=1.0)
    with Server("127.0.0.1", 0, routes_of(root / "runs")) as server:
        server.start()
        yield server
        server.shutdown()


def raw(server: Server, target: bytes) -> tuple[int, bytes]:
    """Status and body, of a request whose target no client library has put in order."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := connection.recv(1 << 20):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


PIECES = [
    *(b"api", b"runs", b"static", RUN.encode(), b"series", b"log", b"config", b"report"),
    *(b"samples", b"metrics", b"healthz"),
    *(b"..", b".", b"", b"%2e%2e", b"%2E%2e%2f", b"..%2f..%2f", b"%00", b"%ff", b"%", b"%zz", b"\\..", b"~"),
    *(b"secret.txt", b"%c0%ae%c0%ae", b"//", b"a" * 500, b"\xc3\xa9", b"app.js", b"journal", b"etc/passwd"),
]
QUERIES = [
    *(
        b"keys=loss",
        b"keys=" + b"x," * 300,
        b"x=time",
        b"x=%00",
        b"points=1e400",
        b"points=-1",
        b"points=nan",
    ),
    *(b"since=a.1.1.1", b"since=" + b"9" * 5000, b"from=inf", b"to=-1e309", b"file=../../secret.txt"),
    *(b"file=logs/link.log", b"file=%2fetc%2fpasswd", b"file=logs/../../../secret.txt", b"&&&", b"=", b"%"),
]
targets = st.tuples(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=7).map(b"/".join),
    st.lists(st.sampled_from(QUERIES) | st.binary(max_size=6), max_size=4).map(b"&".join),
).map(lambda parts: b"/" + parts[0] + (b"?" + parts[1] if parts[1] else b""))


@relaxed
@given(targets)
@example(b"/api/runs/" + RUN.encode() + b"/log?file=logs/link.log")
@example(b"/static/..%2f..%2f..%2fapi.py")
@example(b"//etc/passwd")
def test_no_request_upsets_the_server(served: Server, target: bytes) -> None:
    # What would end the line of the request asks for something else.
    line = bytes(byte for byte in target if byte not in b"\r\n \t\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0")

    status, body = raw(served, line)

    assert status in (200, 400, 404, 414)
    assert b"Traceback" not in body
    assert SECRET.encode() not in body
    assert b"root:x:" not in body
    assert b"/served" not in body


texts = st.sampled_from(
    [SCRIPT, "NaN", "Infinity", "", "\ud800", "\x00", "a" * 3000, "/secret/place/x", '"', "success", "done"]
) | st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.integers(-3, 9) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
kinds = st.sampled_from([kind.name for kind in KINDS])


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """A line that is a record, of a kind that exists, with anything in its fields."""
    kind = draw(st.sampled_from(KINDS))
    names = [name.removesuffix("{}") for name in kind.fields] + [
        "attempt",
        "round",
        "rank",
        "step",
        "data_step",
    ]
    fields = draw(st.dictionaries(st.sampled_from(names), values, max_size=len(names)))
    if draw(st.booleans()):
        fields |= {"data_step": draw(st.integers(0, 50)), "rank": 0}
    time = draw(st.floats(allow_nan=False, allow_infinity=False) | st.floats(1.8e9, 1.9e9))
    return {**fields, "v": 1, "kind": kind.name, "seq": 0, "time": time}


def ask(routes: Routes, path: str, **query: str) -> tuple[int, bytes]:
    handler = find(routes, path)
    assert handler is not None
    response = handler(Request(path, query))
    assert isinstance(response.body, bytes)
    return response.status, response.body


documents = st.dictionaries(
    st.sampled_from(
        [
            *("number", "stage", "started", "ended", "exit_code", "cause", "message", "host", "slurm_job_id"),
            *("trained", "untrained", "num_images", "request", "jobs", "stages", "pid", "start_ticks"),
        ]
    ),
    values,
)


@relaxed
@example(
    [{"v": 1, "kind": "step", "time": 0.0, "data_step": 0, "statistics": {"/secret/place/x": 1.0}}],
    {},
    {},
    "",
    b"",
)
@given(
    st.lists(records(), max_size=12),
    documents,
    documents,
    st.text(max_size=60) | st.just(f"a: {SCRIPT!r}\nb: [1, {{c: /secret/place/x}}]\napi_key: {SECRET}\n"),
    st.binary(max_size=60) | st.just(SCRIPT.encode()),
)
def test_nothing_that_lies_in_a_run_upsets_the_page(
    tmp_path: Path,
    lines: list[dict[str, Any]],
    attempt: dict[str, Any],
    result: dict[str, Any],
    config: str,
    log: bytes,
) -> None:
    runs = tmp_path / "runs"
    shutil.rmtree(runs, ignore_errors=True)  # of the example before
    run_dir = runs / RUN
    for folder in ("journal", "attempts/0001", "results", "logs"):
        (run_dir / folder).mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "journal" / "0001.00-rank0000.jsonl").write_text(text)
    (run_dir / "attempts" / "0001" / "attempt.json").write_text(json.dumps(attempt))
    (run_dir / "results" / "evaluate.json").write_text(json.dumps(result))
    (run_dir / "config.yaml").write_text(config, encoding="utf-8", errors="replace")
    (run_dir / "overrides.txt").write_text(config, encoding="utf-8", errors="replace")
    (run_dir / "logs" / "train.log").write_bytes(log)
    routes = routes_of(runs)

    status, metrics = ask(routes, "/metrics")
    assert status == 200
    for family in text_string_to_metric_families(metrics.decode()):
        for sample in family.samples:
            assert not any("/" in value for value in sample.labels.values())
    assert ask(routes, "/api/runs")[0] == 200
    for view in ("", "/series", "/log", "/config"):
        status, body = ask(routes, f"/api/runs/{RUN}{view}")
        assert status == 200
        json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert b"/secret/place" not in body
    status, body = ask(routes, f"/api/runs/{RUN}/report")
    markup = body.decode()
    assert status == 200
    assert not any(tag in markup for tag in ("<script", "<img", "<iframe", "javascript:"))
    assert "/secret/place" not in markup
    shown = "".join(letter for letter in markup if letter >= " " or letter == "\n")
    ET.fromstring("<body>" + shown.partition("<body>")[2].partition("</html>")[0].replace("&nbsp;", " "))
