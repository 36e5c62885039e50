"""The dashboards: the files are those the tables make, every query names what exists, and Grafana reads them.

No Grafana runs here. What it reads is held against the schema that Grafana publishes, as its Foundation SDK
has it: what the SDK does not know it leaves out, so every key and value must come back from it.
"""

from __future__ import annotations

import copy
import enum
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

import monitoring
from monitoring.board_json import FOLDER, to_json
from monitoring.boards import BOARDS, WIDTH, Board
from monitoring.catalog import METRICS

GRAFANA = Path(monitoring.__path__[0]) / "grafana"
PROMETHEUS = Path(monitoring.__path__[0]) / "prometheus"
METRIC = {metric.name: metric for metric in METRICS}
# The schema leaves annotations open to each data source; these are what that of Prometheus reads.
OF_PROMETHEUS = {"target.expr", "target.interval", "target.refId", "textFormat", "titleFormat"}
each_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)


def expressions(board: dict[str, Any]) -> list[str]:
    """Of all panels and annotations."""
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return queries + [each["target"]["expr"] for each in board["annotations"]["list"]]


def lost(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """Places of what we write and Grafana's schema does not hold."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from lost(value, theirs[key], f"{place}.{key}")
            elif value is not None:
                yield f"{place}.{key}"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(*pair, f"{place}[{number}]")
    elif ours != theirs:
        yield f"{place}: {ours!r} became {theirs!r}"


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, cls=JSONEncoder))


def fits(value: Any, hint: Any) -> bool:
    """Whether the schema lets a field of this type hold the value."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint in (object, Any):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inside)
    if origin is typing.Literal:
        return value in inside
    if origin is list:
        return isinstance(value, list) and all(fits(each, inside[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, inside[1]) for each in value.values())
    if issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    if hint is float:
        return type(value) in (int, float)
    if isinstance(value, dict) and hasattr(hint, "from_json"):  # what the SDK leaves as it is
        return not list(lost(value, as_json(hint.from_json(value))))
    return isinstance(value, hint)


def misfits(value: Any, place: str = "") -> Iterator[str]:
    """Places of values that the schema does not allow."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from misfits(each, f"{place}.{key}")
    elif hasattr(value, "from_json"):
        hints = typing.get_type_hints(type(value))
        for name, each in vars(value).items():
            if not fits(each, hints[name]):
                yield f"{place}.{name}: {each!r}"
            yield from misfits(each, f"{place}.{name}")


def refused(board: dict[str, Any]) -> list[str]:
    """What Grafana's schema does not know or does not allow."""
    plugins.register_default_plugins()
    parsed = Dashboard.from_json(copy.deepcopy(board))
    known = re.compile(r"\.annotations\.list\[\d+\]\.(.+)")
    unknown = [
        place
        for place in lost(board, as_json(parsed))
        if not ((found := known.fullmatch(place)) and found[1] in OF_PROMETHEUS)
    ]
    return [*unknown, *misfits(parsed)]


@each_board
def test_it_is_a_dashboard_by_the_schema_that_grafana_publishes(board: Board) -> None:
    assert refused(to_json(board)) == []


def test_what_grafana_does_not_know_would_be_noticed() -> None:
    made = to_json(next(board for board in BOARDS if board.uid == "univip-run"))
    by_type = {panel["type"]: panel for panel in made["panels"]}
    by_type["timeseries"]["fieldConfig"]["defaults"]["custom"]["drawStyle"] = "lines"
    by_type["stat"]["options"]["colourMode"] = "value"
    by_type["xychart"]["transformations"][0]["by"] = "Time"
    by_type["xychart"]["gridPos"]["w"] = "wide"
    made["annotations"]["list"][0]["color"] = "red"

    told = " ".join(refused(made))

    for wrong in ("draw_style: 'lines'", "colourMode", "transformations", "grid_pos.w: 'wide'", "color"):
        assert wrong in told


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
