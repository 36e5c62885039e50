"""The dashboards: the files are those the tables make, and every query names what exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import monitoring
from monitoring.board_json import FOLDER, to_json
from monitoring.boards import BOARDS, WIDTH, Board
from monitoring.catalog import METRICS

GRAFANA = Path(monitoring.__path__[0]) / "grafana"
PROMETHEUS = Path(monitoring.__path__[0]) / "prometheus"
METRIC = {metric.name: metric for metric in METRICS}
each_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)


def expressions(board: dict[str, Any]) -> list[str]:
    """Of all panels and annotations."""
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return queries + [each["target"]["expr"] for each in board["annotations"]["list"]]


@each_board
def test_the_file_is_what_the_table_makes(board: Board) -> None:
    text = (FOLDER / f"{board.uid}.json").read_text(encoding="utf-8")

    assert json.loads(text) == to_json(board), "run `python -m monitoring.board_json`"


def test_there_is_no_file_without_a_table() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {board.uid for board in BOARDS}


@each_board
def test_every_name_in_a_query_is_in_the_catalogue_or_recorded(board: Board) -> None:
    recording = yaml.safe_load((PROMETHEUS / "recording.yml").read_text(encoding="utf-8"))
    recorded = {rule["record"] for group in recording["groups"] for rule in group["rules"]}
    for expression in expressions(to_json(board)):
        used = set(re.findall(r"\brun:\w+:\w+", expression))
        assert used <= recorded
        for name, inside in re.findall(r"(?<!:)\b(univip_\w+)(?:\{([^}]*)\})?", expression):
            for label, value in re.findall(r'(\w+)=~?"([^"]*)"', inside):
                known = METRIC[name].labels.get(label, ())
                assert label in {"run", *METRIC[name].labels}
                assert not known or value in known
            assert name in METRIC
        assert used or "univip_" in expression or 'job="univip"' in expression


@each_board
def test_a_board_can_be_imported_anywhere(board: Board) -> None:
    made = to_json(board)

    assert made["id"] is None
    assert made["uid"] == board.uid
    names = [variable["name"] for variable in made["templating"]["list"]]
    assert names == ["datasource", "run"][: len(names)]
    asked = [panel["datasource"] for panel in made["panels"]]
    asked += [target["datasource"] for panel in made["panels"] for target in panel["targets"]]
    asked += [each["datasource"] for each in made["annotations"]["list"]]
    assert all(source["uid"] == "${datasource}" for source in asked)
    assert ("$run" in json.dumps(made)) == ("run" in names)


@each_board
def test_panels_neither_overlap_nor_stick_out(board: Board) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in to_json(board)["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + row)
            for column in range(place["w"])
            for row in range(place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= WIDTH
        taken |= cells


@each_board
def test_every_panel_says_how_to_read_it(board: Board) -> None:
    for panel in board.panels:
        assert re.fullmatch(r"[A-Z].*\.", panel.help)
        reds = [colour for _, colour in panel.limits if colour == "red"]
        assert ("is red" in panel.help) == bool(reds)


def test_the_loss_is_drawn_by_step_and_events_are_drawn_as_lines() -> None:
    run = to_json(next(board for board in BOARDS if board.uid == "univip-run"))

    [by_step] = [panel for panel in run["panels"] if panel["type"] == "xychart"]
    [series] = by_step["options"]["series"]
    assert (series["x"]["matcher"]["options"], series["y"]["matcher"]["options"]) == ("data step", "loss")
    assert [each["name"] for each in run["annotations"]["list"]] == ["rollbacks", "restarts", "checkpoints"]


def test_what_is_provisioned_exists() -> None:
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/univip.yaml").read_text(encoding="utf-8"))
    source = yaml.safe_load(
        (GRAFANA / "provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8")
    )
    prometheus = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))

    [path] = [each["options"]["path"] for each in provider["providers"]]
    assert (GRAFANA / path.removeprefix("$UNIVIP_GRAFANA/")) == FOLDER
    [database] = source["datasources"]
    assert database["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
