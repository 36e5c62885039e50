"""`report.html`: everything in one file, nothing that runs, and the numbers of the journal."""

from __future__ import annotations

import base64
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.journal import Journal
from monitoring.web.drawing import round_values
from monitoring.web.facts import PICTURE
from monitoring.web.history import History
from monitoring.web.markup import tag, text
from monitoring.web.report import report


def report_of(run_dir: Path) -> str:
    history = History(run_dir)
    history.update()
    return report(run_dir, history, ["train.seed"])


def tree_of(markup: str) -> ET.Element:
    """The document, read by a parser that forgives nothing."""
    body = markup.partition("<body>")[2].partition("</html>")[0]
    return ET.fromstring("<body>" + body.replace("&nbsp;", " "))


def test_every_fault_of_the_journal_is_a_row_with_its_cost(eventful: Any) -> None:
    tree = tree_of(report_of(eventful.run_dir))

    rows = ["|".join("".join(cell.itertext()) for cell in row.iter("td")) for row in tree.iter("tr")]
    for told in (
        "batch skipped: nonfinite value in loss|104|1|",
        "rolled back to data step 100: nonfinite value in state|155|55|1 min 5 s",
        "new round of workers: killed|200|100|2 min 11 s",
        "checkpoint not written: disk full|",
        "damaged checkpoint step-000000200 put aside|",
        "photograph cannot be used: corrupt|",
    ):
        assert sum(told in row for row in rows) == 1, told


def test_curves_are_drawn_and_the_nan_is_on_one(new_run: Callable[[str], Any]) -> None:
    run = new_run("a-1")
    with Journal(run.run_dir) as journal:
        run.steps(journal, 10, 100)
        run.steps(journal, 110, 110, loss=float("nan"))
        run.steps(journal, 120, 200)

    tree = tree_of(report_of(run.run_dir))

    charts = {"".join(figure.find("figcaption").itertext()): figure for figure in tree.iter("figure")}  # type: ignore[union-attr]
    loss = next(figure for title, figure in charts.items() if title.startswith("Loss "))
    assert any("✕ NaN" in "".join(words.itertext()) for words in loss.iter("text"))
    longest = max((path.get("d", "") for path in loss.iter("path")), key=len)
    assert longest.count("M") == 2  # the line has a gap where there is no number
    assert longest.count("M") + longest.count("L") == 19


def test_in_a_crowd_of_faults_the_curve_is_seen_and_so_is_the_worst(new_run: Callable[[str], Any]) -> None:
    run = new_run("a-1")
    with Journal(run.run_dir) as journal:
        run.steps(journal, 10, 3000)
        for data_step in range(10, 3000, 10):
            journal.record("skip", data_step=data_step, where="loss", reason="nonfinite")
        journal.record("rollback", data_step=1500, target=1490, where="state", reason="nonfinite")

    charts = {figure.find("svg") for figure in tree_of(report_of(run.run_dir)).iter("figure")}

    assert len(charts) > 3
    for drawing in charts:
        signs = ["".join(words.itertext()) for words in drawing.iter("text")]  # type: ignore[union-attr]
        assert signs.count("◀") == 1
        assert 20 < signs.count("▼") < 45


def test_it_needs_nothing_and_runs_nothing(eventful: Any) -> None:
    markup = report_of(eventful.run_dir)

    assert not re.search(r"<script|<link|<iframe|\bsrc=|\bhref=|url\(|@import|\bon\w+=", markup)
    assert "default-src 'none'" in markup


def test_an_error_of_a_gpu_is_told_with_its_host(eventful: Any) -> None:
    with Journal(eventful.run_dir, attempt=3, source="agent1") as journal:
        where = {"node": 1, "host": "gpu-7", "gpu": 3}
        journal.record("gpu_error", **where, xid=79, what="the GPU has fallen off the bus")

    words = "".join(tree_of(report_of(eventful.run_dir)).itertext())

    assert "↯ GPU 3 of gpu-7 (node 1) reported Xid 79: the GPU has fallen off the bus" in words


def test_the_picture_of_the_samples_is_inside_the_document(eventful: Any) -> None:
    with Journal(eventful.run_dir, attempt=3, source="agent0") as journal:
        journal.record("samples", outcome="success", data_step=399, image_ids=[139], epochs=[2])
    pixels = PIL.Image.effect_noise((400, 400), 90)
    pixels.save(eventful.run_dir / PICTURE, "WEBP")
    data = (eventful.run_dir / PICTURE).read_bytes()
    assert re.search(rb"[A-Za-z0-9]/[A-Za-z0-9]+/", base64.b64encode(data))  # what looks like a path is left

    markup = report_of(eventful.run_dir)

    [image] = tree_of(markup).iter("img")
    kind, _, encoded = image.get("src", "").partition(",")
    assert kind == "data:image/webp;base64"
    assert base64.b64decode(encoded, validate=True) == data
    assert "Samples of the photographs 139:" in image.get("alt", "")
    assert "Data step 399" in markup
    assert "img-src data:" in markup


@given(st.text(max_size=40))
def test_no_text_becomes_markup(value: str) -> None:
    made = tag("p", text(value), title=value)

    assert re.fullmatch(r'<p title="[^"<>]*">[^<>]*</p>', made)


@pytest.mark.parametrize("name", ["<b>", "&amp;", '"><script>alert(1)</script>', "]]>"])
def test_hostile_names_and_values_are_text(new_run: Callable[[str], Any], name: str) -> None:
    run = new_run(name.replace("/", "_") + "-1")
    with Journal(run.run_dir, attempt=1) as journal:
        journal.record("run", method=name, state=name, num_images=name)
        journal.record("rollback", data_step=name, where=name, reason=name, target=name)
        run.steps(journal, 10, 50)
    run.attempt(1, 0, 5, "crash", stage=name, host=name, message=name)
    (run.run_dir / "overrides.txt").write_text(name)

    tree = tree_of(report_of(run.run_dir))

    assert name in "".join(tree.itertext()).replace("…/", "/")
    assert not list(tree.iter("script"))


def test_an_empty_run_has_a_report_too(new_run: Callable[[str], Any]) -> None:
    tree = tree_of(report_of(new_run("a-1").run_dir))

    assert [heading.text for heading in tree.iter("h2")] == ["Faults and what each cost", "Configuration"]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 4))
def test_axes_are_marked_at_round_values(low: float, span: float, at_least: int) -> None:
    found = round_values(low, low + span, at_least=at_least)

    assert at_least <= len(found) + 1 <= 4 * at_least + 3
    slack = 1e-6 * span + 4 * math.ulp(low)
    assert all(low - slack <= value <= low + span + slack for value in found)
