"""The page's interface: what it tells, to whom it tells nothing, and that no question upsets it."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitoring.journal import Journal
from monitoring.server import Request, Response, Server
from monitoring.web import api, facts
from monitoring.web.api import STATIC, Page
from monitoring.web.history import History

RUN = "coco_univip-0a1b2c3d"


def look(run_dir: Path) -> dict[str, Any]:
    return {"run": run_dir.name, "state": "done", "stage": "", "problem": f"in {run_dir}/x"}


def page_of(root: Path) -> Page:
    return Page(root, look, lambda run_dir: {"train.seed": 3})


def ask(page: Page, path: str, **query: Any) -> tuple[int, Any]:
    response = page.answer(Request(path, {name.rstrip("_"): str(value) for name, value in query.items()}))
    assert isinstance(response.body, bytes)
    return response.status, json.loads(response.body)


@pytest.fixture
def page(eventful: Any) -> Page:
    return page_of(eventful.run_dir.parent)


def test_every_run_is_a_row_with_the_curve_of_its_loss(page: Page, new_run: Callable[[str], Any]) -> None:
    new_run("other-00000000")
    (page.runs_root / "demo-data").mkdir()  # no run

    status, found = ask(page, "/api/runs")

    assert status == 200
    [row, other] = found["runs"]
    assert (row["run"], row["state"], other["run"]) == (RUN, "done", "other-00000000")
    steps = [step for step, _ in row["spark"]]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (10, 400)
    assert row["spark"][-1][1] == 6.0
    assert other["spark"] == []


def test_a_run_that_cannot_be_looked_at_hides_no_other(eventful: Any, new_run: Callable[[str], Any]) -> None:
    new_run("broken-00000000")

    def failing(run_dir: Path) -> dict[str, Any]:
        if run_dir.name.startswith("broken"):
            raise ValueError("damaged")
        return look(run_dir)

    _, found = ask(Page(eventful.run_dir.parent, failing, lambda run_dir: {}), "/api/runs")

    assert {row["run"]: row["state"] for row in found["runs"]} == {
        "broken-00000000": "unreadable",
        RUN: "done",
    }


def test_an_unchanged_run_that_is_over_is_looked_at_once(eventful: Any) -> None:
    asked = []
    page = Page(eventful.run_dir.parent, lambda run_dir: asked.append(1) or look(run_dir), lambda run_dir: {})

    for _ in range(3):
        ask(page, "/api/runs")
    assert len(asked) == 1

    eventful.attempt(3, 5000, None)
    ask(page, "/api/runs")
    assert len(asked) == 2


def test_a_table_of_many_runs_is_filled_bit_by_bit(
    new_run: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcde":
        run = new_run(name)
    page = page_of(run.run_dir.parent)
    monkeypatch.setattr(api, "_LOOKING_S", 0.0)

    counts = []
    for _ in range(5):
        _, found = ask(page, "/api/runs")
        assert sorted(row["run"] for row in found["runs"]) == list("abcde")
        counts.append(sum(row["state"] == "unread" for row in found["runs"]))
        assert found["is_complete"] == (counts[-1] == 0)

    assert counts == [4, 3, 2, 1, 0]


def test_one_run_tells_its_faults_attempts_and_counts(page: Page) -> None:
    _, found = ask(page, f"/api/runs/{RUN}")

    assert [fault["kind"] for fault in found["faults"]].count("rollback") == found["counts"]["rollback"] == 1
    assert [attempt["cause"] for attempt in found["attempts"]] == ["stopped", "done"]
    assert found["checkpoints"][-1]["data_step"] == 300
    assert found["facts"]["method"] == "univip"
    assert {"loss", "terms.scene", "phases.data", "images_per_s"} <= set(found["keys"])


@pytest.mark.parametrize("axis", ["step", "time"])
def test_curves_have_at_most_the_points_asked_for_and_keep_the_nan(page: Page, axis: str) -> None:
    _, found = ask(page, f"/api/runs/{RUN}/series", keys="loss,phases.data", x=axis, points=7)

    assert len(found["xs"]) <= 7
    assert found["xs"] == sorted(found["xs"])
    loss = found["series"]["loss"]
    assert len(loss["mean"]) == len(found["xs"])
    bad = loss["bad"] + (found["abandoned"]["series"]["loss"]["bad"] if axis == "step" else [])
    assert [name for _, name in bad] == ["NaN"]
    assert sum(found["series"]["phases.data"]["sum"]) > 0


def test_a_reader_that_comes_back_is_sent_what_it_lacks(new_run: Callable[[str], Any]) -> None:
    run = new_run("a-1")
    page = page_of(run.run_dir.parent)
    with Journal(run.run_dir) as journal:
        run.steps(journal, 10, 1000)
    _, first = ask(page, "/api/runs/a-1/series", keys="loss", points=60)
    with Journal(run.run_dir) as journal:
        run.steps(journal, 1010, 1100)

    _, more = ask(page, "/api/runs/a-1/series", keys="loss", points=60, since=first["cursor"])
    _, whole = ask(page, "/api/runs/a-1/series", keys="loss", points=60)

    keep = more["start"]
    assert 0 < keep < len(first["xs"])
    assert first["xs"][:keep] + more["xs"] == whole["xs"]
    for name in ("mean", "min", "max"):
        assert (
            first["series"]["loss"][name][:keep] + more["series"]["loss"][name]
            == whole["series"]["loss"][name]
        )


def test_after_a_rollback_a_reader_is_sent_everything(new_run: Callable[[str], Any]) -> None:
    run = new_run("a-1")
    page = page_of(run.run_dir.parent)
    with Journal(run.run_dir) as journal:
        run.steps(journal, 10, 500)
    _, first = ask(page, "/api/runs/a-1/series", keys="loss")
    with Journal(run.run_dir) as journal:
        run.steps(journal, 310, 320)

    _, more = ask(page, "/api/runs/a-1/series", keys="loss", since=first["cursor"])

    assert more["start"] == 0
    assert more["xs"] == list(range(10, 321, 10))
    assert more["abandoned"]["xs"] == list(range(310, 501, 10))


def test_a_part_of_a_run_has_its_own_resolution(page: Page) -> None:
    _, found = ask(page, f"/api/runs/{RUN}/series", keys="loss", points=20, from_=100, to=250)

    assert (found["size"], found["xs"]) == (1, list(range(100, 251, 10)))


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/api/runs/nothing", {}, 404),
        ("/api/runs/..", {}, 404),
        ("/api/runs/../runs", {}, 404),
        (f"/api/runs/{RUN}/../../secret", {}, 404),
        (f"/api/runs/{RUN}/nothing", {}, 404),
        (f"/api/runs/{RUN}/log", {"file": "../../secret"}, 404),
        (f"/api/runs/{RUN}/log", {"file": "config.yaml"}, 404),
        (f"/api/runs/{RUN}/series", {"x": "loss"}, 400),
        (f"/api/runs/{RUN}/series", {"points": "many"}, 400),
        (f"/api/runs/{RUN}/series", {"points": "nan"}, 400),
        (f"/api/runs/{RUN}/series", {"from": "-inf", "to": "1e999", "points": "-5"}, 200),
        (f"/api/runs/{RUN}/series", {"keys": "nothing,loss,__class__"}, 200),
        (f"/api/runs/{RUN}/series", {"since": "a.b.c.d"}, 200),
        ("/static/../api.py", {}, 404),
        ("/static/", {}, 404),
        ("/static//etc/passwd", {}, 404),
        ("/api/", {}, 404),
    ],
)
def test_what_is_not_there_is_not_found(page: Page, path: str, query: dict[str, str], status: int) -> None:
    (page.runs_root / "secret").write_text("secret")

    response = page.answer(Request(path, query))

    assert response.status == status
    assert b"secret" not in bytes(response.body)  # type: ignore[arg-type]


def test_a_forged_cursor_gives_whole_curves(page: Page) -> None:
    _, first = ask(page, f"/api/runs/{RUN}/series", keys="loss")
    forged = first["cursor"].rpartition(".")[0] + ".999999999999999999999"

    _, found = ask(page, f"/api/runs/{RUN}/series", keys="loss", since=forged)

    assert found["xs"] == first["xs"]


words = st.sampled_from(
    [
        "api",
        "runs",
        "static",
        RUN,
        "series",
        "log",
        "config",
        "report",
        "..",
        ".",
        "",
        "\x00",
        "%2e%2e",
        "é",
        "a" * 300,
    ]
) | st.text(max_size=5)
names = st.sampled_from(["keys", "x", "points", "since", "from", "to", "file"]) | st.text(max_size=3)
texts = st.sampled_from(
    ["loss", "step", "time", "-1", "1e309", "nan", "../../etc/passwd", "a.1.1.1", "1.0.1.9"]
)


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=150)
@given(st.lists(words, max_size=6), st.dictionaries(names, texts | st.text(max_size=6), max_size=5))
def test_no_question_upsets_it(page: Page, parts: list[str], query: dict[str, str]) -> None:
    response = page.answer(Request("/" + "/".join(parts), query))

    assert response.status in (200, 400, 404)
    assert isinstance(response.body, bytes)
    if response.content_type == "application/json":
        json.loads(response.body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert str(page.runs_root).encode() not in response.body


HOSTILE = ["<img src=x onerror=alert(1)>", 'a" onload="x', "{{7*7}}", "ü \u202e", "&lt;", "'; --", "a%2Fb"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_a_name(new_run: Callable[[str], Any], name: str) -> None:
    run = new_run(name)
    with Journal(run.run_dir) as journal:
        run.steps(journal, 10, 30)
        journal.record("run", method="<script>alert(1)</script>", experiment=name)
    page = page_of(run.run_dir.parent)

    assert ask(page, "/api/runs")[1]["runs"][0]["run"] == name
    status, found = ask(page, f"/api/runs/{name}")

    assert (status, found["run"], found["facts"]["method"]) == (200, name, "<script>alert(1)</script>")
    report = page.answer(Request(f"/api/runs/{name}/report", {}))
    assert report.status == 200
    assert b"<script" not in bytes(report.body)  # type: ignore[arg-type]
    assert b"<img" not in bytes(report.body)  # type: ignore[arg-type]


def test_nothing_tells_where_the_runs_are_nor_a_secret(eventful: Any) -> None:
    root = eventful.run_dir.parent
    (eventful.run_dir / "config.yaml").write_text(f"paths:\n  runs: {root}\nwandb_token: hunter2\n")
    (eventful.run_dir / "overrides.txt").write_text(f"data.root={root}/x\n")
    (eventful.run_dir / "environment.json").write_text('{"argv": ["hunter2"]}')
    (eventful.run_dir / "logs").mkdir()
    (eventful.run_dir / "logs" / "train.log").write_text(f"{root}/y API_TOKEN=hunter2\n")
    eventful.attempt(3, 5000, 5001, "crash", message=f"what\n  where: {root}/z")
    page = page_of(root)

    views = ["", f"/{RUN}", f"/{RUN}/series", f"/{RUN}/log", f"/{RUN}/config", f"/{RUN}/report"]
    answers = [page.answer(Request(f"/api/runs{view}", {})) for view in views]

    for answer in answers:
        assert answer.status == 200
        assert str(root).encode() not in bytes(answer.body)  # type: ignore[arg-type]
        assert b"hunter2" not in bytes(answer.body)  # type: ignore[arg-type]
    assert json.loads(answers[1].body)["attempts"][-1]["message"] == "what\n  where: …/z"  # type: ignore[arg-type]


def webp(edge: int = 8) -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (edge, edge), "#0072b2").save(buffer, "WEBP")
    return buffer.getvalue()


def test_the_picture_of_the_samples_is_served_as_it_lies_there(page: Page, eventful: Any) -> None:
    (eventful.run_dir / facts.PICTURE).write_bytes(webp())

    with Server("127.0.0.1", 0, page.routes()) as server:
        server.start()
        url = f"http://127.0.0.1:{server.server_port}/api/runs/{RUN}/samples?at=17"
        with urlopen(url, timeout=10) as response:
            assert response.read() == webp()
            assert response.headers["Content-Type"] == "image/webp"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        server.shutdown()


def put_link(path: Path) -> None:
    (path.parents[1] / "elsewhere.webp").write_bytes(webp())
    path.symlink_to(path.parents[1] / "elsewhere.webp")


@pytest.mark.parametrize(
    "put",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<html><script>alert(1)</script>"),
        lambda path: path.write_bytes(webp() + bytes(facts.MAX_PICTURE_BYTES)),
        lambda path: path.mkdir(),
        put_link,
        os.mkfifo,
    ],
    ids=["nothing", "empty", "markup", "too large", "folder", "link", "pipe"],
)
def test_nothing_but_a_small_picture_is_served_as_one(
    page: Page, eventful: Any, put: Callable[[Path], Any]
) -> None:
    put(eventful.run_dir / facts.PICTURE)

    assert ask(page, f"/api/runs/{RUN}/samples")[0] == 404
    assert b"<img" not in bytes(page.answer(Request(f"/api/runs/{RUN}/report", {})).body)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["../x/samples", f"{RUN}/samples/..", f"{RUN}/samples.webp", "x/samples"])
def test_a_picture_is_found_by_the_name_of_its_run_only(page: Page, eventful: Any, path: str) -> None:
    (eventful.run_dir / facts.PICTURE).write_bytes(webp())
    (eventful.run_dir.parent / facts.PICTURE).write_bytes(webp())

    assert ask(page, f"/api/runs/{path}")[0] == 404


def test_what_is_on_the_picture_is_told_and_why_a_newer_one_is_missing(page: Page, eventful: Any) -> None:
    assert ask(page, f"/api/runs/{RUN}")[1]["picture"] is None

    with Journal(eventful.run_dir, attempt=3, source="agent0") as journal:
        facts_ = {"image_ids": [139, "<b>", 285, True], "epochs": [2, 2, 2, 2]}
        journal.record("samples", outcome="success", data_step=399, **facts_)
        drawn_at = eventful.now
        eventful.now += 60
        journal.record("samples", outcome="failure", data_step=449, what=f"{eventful.run_dir}/x: full")
    found = ask(page, f"/api/runs/{RUN}")[1]["picture"]

    assert (found["time"], found["data_step"]) == (drawn_at, 399)
    assert found["samples"] == [{"image_id": 139, "epoch": 2}, {"image_id": 285, "epoch": 2}]
    assert "Samples of the photographs 139, 285" in found["words"]
    assert found["problem"] == "…/x: full"


def test_histories_of_many_runs_are_forgotten_in_turn(
    new_run: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_MAX_HISTORIES", 2)
    made = []
    monkeypatch.setattr(api, "History", lambda run_dir: made.append(run_dir.name) or History(run_dir))
    for name in "abc":
        new_run(name)
    page = page_of(new_run("d").run_dir.parent)

    for name in "abcbca":
        ask(page, f"/api/runs/{name}")

    assert made == ["a", "b", "c", "a"]


def test_the_page_loads_nothing_but_its_own_files() -> None:
    ours = {path.name for path in STATIC.iterdir()}
    index = (STATIC / "index.html").read_text(encoding="utf-8")

    linked = re.findall(r"""(?:src|href)="(?!data:|#)([^"]+)\"""", index)
    imported = [
        name
        for path in STATIC.glob("*.js")
        for name in re.findall(r"""^import .* from "\./(.+)";$""", path.read_text("utf-8"), re.MULTILINE)
    ]

    assert {Path(name).name for name in linked if name != "/"} | set(imported) <= ours
    assert all(name.startswith("/static/") for name in linked)
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bon\w+=|style=|https?://", index)
    for path in STATIC.glob("[a-z]*.js"):
        if not path.name.startswith("uPlot"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", path.read_text("utf-8")
            )


def test_the_page_is_served_with_a_policy_against_foreign_script(page: Page) -> None:
    with Server("127.0.0.1", 0, page.routes()) as server:
        server.start()
        for path, kind in {
            "/": "text/html",
            "/static/app.js": "text/javascript",
            "/api/runs": "application/json",
        }.items():
            with urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=10) as response:
                assert response.headers["Content-Type"].startswith(kind)
                policy = response.headers["Content-Security-Policy"]
                assert (
                    "default-src 'none'; script-src 'self'; style-src 'self'" in policy or path == "/api/runs"
                )
                assert "unsafe" not in policy or path == "/api/runs"
        server.shutdown()


def test_the_chart_library_comes_with_its_licence() -> None:
    assert "MIT" in (STATIC / "uPlot.LICENSE.txt").read_text("utf-8")
    assert "v1.6" in (STATIC / "uPlot.iife.min.js").read_text("utf-8")[:200]


def test_answers_of_the_page_are_responses_of_the_server(page: Page) -> None:
    assert isinstance(page.answer(Request("/", {})), Response)
