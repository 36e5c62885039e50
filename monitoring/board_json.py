"""Grafana's JSON of the dashboards; `python -m monitoring.board_json` writes the files.

A panel is a row in `monitoring/boards.py` and fifty lines here. The files are kept in the repository, because
they are what people import; a test holds the two together. Panels name their data source through
`$datasource`, so a board works wherever it is imported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monitoring.boards import ANNOTATIONS, BOARDS, WIDTH, Board, Panel

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
SCHEMA_VERSION = 39  # Grafana 11; newer ones read it
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_STATES = {1: "training", 2: "boxes", 3: "evaluating", 4: "stopped", 5: "failed", 6: "done"}
_COLOURS = {1: "green", 2: "blue", 3: "purple", 4: "orange", 5: "red", 6: "#808080"}


def to_json(board: Board) -> dict[str, Any]:
    """A dashboard as Grafana reads it."""
    panels, x, y, row_height = [], 0, 0, 0
    for number, panel in enumerate(board.panels, start=1):
        if x + panel.width > WIDTH:
            x, y, row_height = 0, y + row_height, 0
        place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
        panels.append({"id": number, "gridPos": place, **_panel(panel)})
        x, row_height = x + panel.width, max(row_height, panel.height)
    return {
        "id": None,
        "uid": board.uid,
        "title": board.title,
        "tags": ["univip"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables(board)},
        "annotations": {
            "list": [] if board.of_run == "none" else [_annotation(*each) for each in ANNOTATIONS]
        },
        "links": [
            {
                "type": "dashboards",
                "title": "UniVIP",
                "tags": ["univip"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "panels": panels,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    is_instant = panel.kind in ("table", "bargauge", "stat")
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": _SOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend or "__auto",
            "format": "table" if panel.kind == "table" else "time_series",
            "instant": is_instant,
            "range": not is_instant,
        }
        for number, (expression, legend) in enumerate(panel.queries)
    ]
    defaults: dict[str, Any] = {"unit": panel.unit, "custom": _CUSTOM.get(panel.kind, {})}
    if panel.kind == "timeseries":
        custom = {"drawStyle": "line", "lineWidth": 1, "showPoints": "never", "spanNulls": False}
        custom["fillOpacity"] = 40 if panel.stack else 0
        custom["stacking"] = {"group": "A", "mode": "normal" if panel.stack else "none"}
        custom["scaleDistribution"] = {"type": "log", "log": 10} if panel.log else {"type": "linear"}
        defaults["custom"] = custom
    if panel.unit == "percentunit" and panel.kind in ("timeseries", "bargauge"):
        defaults["min"] = 0
    if panel.limits:
        steps = [{"value": value, "color": colour} for value, colour in panel.limits]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        if panel.kind == "timeseries":
            defaults["custom"]["thresholdsStyle"] = {"mode": "dashed"}
    if panel.kind == "state-timeline":
        options = {
            str(number): {"index": number, "text": text, "color": _COLOURS[number]}
            for number, text in _STATES.items()
        }
        defaults["mappings"] = [{"type": "value", "options": options}]
    result: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": _overrides(panel)},
        "options": _options(panel),
    }
    if panel.kind == "table":
        # One frame a query, of which only the run and the value matter; joined into one row a run.
        names = {
            f"Value #{target['refId']}": query[1]
            for target, query in zip(targets, panel.queries, strict=True)
        }
        result["transformations"] = [
            {"id": "filterFieldsByName", "options": {"include": {"names": ["run", *names]}}},
            {"id": "joinByField", "options": {"byField": "run", "mode": "outer"}},
            {"id": "organize", "options": {"renameByName": names}},
        ]
    if panel.kind == "xychart":
        result["transformations"] = [{"id": "joinByField", "options": {"byField": "Time", "mode": "outer"}}]
    return result


_CUSTOM: dict[str, dict[str, Any]] = {
    "xychart": {"show": "lines", "lineWidth": 1, "pointSize": {"fixed": 3}},
    "state-timeline": {"fillOpacity": 80, "lineWidth": 0},
    "table": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False},
}


def _options(panel: Panel) -> dict[str, Any]:
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match panel.kind:
        case "timeseries":
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "none"}}
        case "stat":
            return {
                "colorMode": "value",
                "graphMode": "none",
                "justifyMode": "auto",
                "orientation": "auto",
                "percentChangeColorMode": "standard",
                "reduceOptions": reduce,
                "showPercentChange": False,
                "textMode": "auto",
                "wideLayout": True,
            }
        case "bargauge":
            return {
                "displayMode": "basic",
                "legend": {**legend, "showLegend": False},
                "maxVizHeight": 300,
                "minVizHeight": 16,
                "minVizWidth": 8,
                "namePlacement": "auto",
                "orientation": "horizontal",
                "reduceOptions": reduce,
                "showUnfilled": True,
                "sizing": "auto",
                "valueMode": "color",
            }
        case "table":
            return {"cellHeight": "sm", "frameIndex": 0, "showHeader": True, "sortBy": []}
        case "state-timeline":
            return {
                "alignValue": "left",
                "legend": legend,
                "mergeValues": True,
                "rowHeight": 0.9,
                "showValue": "auto",
                "tooltip": {"mode": "single", "sort": "none"},
            }
        case "xychart":
            by_name = [{"matcher": {"id": "byName", "options": legend}} for _, legend in panel.queries]
            return {
                "legend": {**legend, "showLegend": False},
                "mapping": "manual",
                "series": [{"x": by_name[0], "y": y} for y in by_name[1:]],
                "tooltip": {"mode": "single", "sort": "none"},
            }


def _overrides(panel: Panel) -> list[dict[str, Any]]:
    return [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
        for name, unit in panel.units
    ]


def _variables(board: Board) -> list[dict[str, Any]]:
    source = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
    }
    if board.of_run == "none":
        return [source]
    query = "label_values(univip_run_state, run)"
    run = {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "run"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": board.of_run == "many",
        "includeAll": board.of_run == "many",
    }
    if board.of_run == "many":
        run["current"] = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return [source, run]


def _annotation(name: str, expression: str, colour: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": colour,
        "target": {"expr": expression, "refId": "Anno", "interval": "60s"},
        "titleFormat": name,
        "textFormat": text,
    }


def main() -> None:
    """Write every dashboard."""
    for board in BOARDS:
        text = json.dumps(to_json(board), indent=2, ensure_ascii=False)
        (FOLDER / f"{board.uid}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
