"""`report.html`: one run in one file, drawn here, without script: it can be mailed, archived and printed.

The same facts as the page, from the same functions: curves that keep their extremes, every fault and what it
cost, where the time went, results and configuration.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.web import buckets, drawing, facts
from monitoring.web.history import History
from monitoring.web.markup import count, duration, figure, table, tag, text, when

FILE = Path("results") / "report.html"
_POINTS = 300
_MAX_ROWS = 500
_CURVES: tuple[tuple[str, bool, dict[str, str]], ...] = (
    ("Loss", False, {"loss": ""}),
    (
        "Loss terms",
        False,
        {"terms.scene": "scene", "terms.scene_instance": "scene–instance", "terms.instance": "instance"},
    ),
    ("Gradient norm, log", True, {"gradient_norm": ""}),
    ("Learning rate", False, {"lr": ""}),
    ("Images per second", False, {"images_per_s": ""}),
    (
        "Spread of the embeddings (1 healthy, 0 collapsed)",
        False,
        {"statistics.embedding_std_online": "online", "statistics.embedding_std_target": "target"},
    ),
)
_PARTS = {
    "useful": ("steps that count", "#009e73"),
    "redone": ("steps lost", "#d55e00"),
    "overhead": ("start, restore, wait", "#e69f00"),
    "between": ("nobody worked", "#9aa3ad"),
}
_RESULTS = {
    "top1": "kNN top-1",
    "mean_average_precision": "kNN mean average precision",
    "effective_rank": "effective rank",
    "feature_std": "feature std (1 healthy, 0 collapsed)",
}
_SAMPLES = (
    "Left the photograph, the overlap of its scenes bright; right what the network sees: both scenes, below "
    "them the boxes, numbered, as the online network and, in the last row, as the target network sees them."
)
_STYLE = """
:root{color-scheme:light}
body{margin:0 auto;max-width:1120px;padding:24px;color:#16191d;background:#fff;
font:14px/1.45 system-ui,"Segoe UI",Roboto,sans-serif}
h1{font-size:22px;margin:0;overflow-wrap:anywhere}h2{font-size:15px;margin:26px 0 8px}
p{margin:4px 0}.quiet{color:#5b6470}table{border-collapse:collapse}
th{text-align:left;font-size:12px;color:#5b6470}
th,td{padding:4px 18px 4px 0;border-bottom:1px solid #e9ecf0;vertical-align:top;overflow-wrap:anywhere}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}tr{break-inside:avoid}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:16px}
figure{margin:0;break-inside:avoid}figcaption{font-weight:600;font-size:13px}small{font-weight:400;margin-left:8px}
svg{display:block;width:100%;height:auto}svg.bar{height:14px;margin-bottom:6px}
svg.swatch{display:inline-block;width:22px;height:10px}img{display:block;width:min(100%,680px);margin-bottom:8px}
text{font:11px system-ui,sans-serif;fill:#5b6470}
code,pre{font-size:12px;white-space:pre-wrap;overflow-wrap:anywhere}
.why{padding:8px 12px;background:#fbe9df;border-left:4px solid #b84300}@page{margin:14mm}
"""


def report(
    run_dir: Path, history: History, changed: Iterable[str] = (), glance: dict[str, Any] | None = None
) -> str:
    """The text of the report.

    Args:
        run_dir: The run directory.
        history: What its journal tells, up to date.
        changed: Keys of the configuration that differ from the defaults.
        glance: State of the run as `univip status --json` gives it; without it the run is taken to be over.
    """
    glance = glance or {}
    tries = facts.attempts(run_dir)
    faults = facts.faults(history, tries)
    is_over = glance.get("state") not in ("running", "queued")
    sections = {
        "What happened": drawing.timeline(history, tries, faults[-_MAX_ROWS:]),
        "Faults and what each cost": _faults(faults),
        "Where the time went": _time_spent(
            facts.time_spent(history, tries, is_over=is_over, now=time.time())
        ),
        "Curves over data steps": _charts(history, faults),
        "What the features are worth": _results(facts.results(run_dir)),
        "Last samples": _samples(run_dir, history),
        "Shards of the proposals": _shards(history),
        "Attempts": _attempts(tries),
        "Configuration": _configuration(run_dir, set(changed)),
    }
    body = _head(run_dir, history, tries, glance)
    body += "".join(tag("h2", text(title)) + content for title, content in sections.items() if content)
    # Nothing is fetched and nothing runs, whoever opens it.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{text(run_dir.name)}</title><style>{_STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _head(run_dir: Path, history: History, tries: list[dict[str, Any]], glance: dict[str, Any]) -> str:
    run = history.run
    words = [str(glance.get("state") or run.get("state") or "state unknown")]
    if run.get("method"):
        words.append(f"method {run['method']}")
    if run.get("num_images"):
        words.append(f"{count(run['num_images'])} photographs")
    if len(history):
        target = history.column("target").values[-1]
        words.append(f"data step {count(history.x('step')[-1])} of {count(target)}")
        words.append(f"loss {figure(history.column('loss').values[-1])}")
    lines = [tag("h1", text(run_dir.name)), tag("p", text(" · ".join(words)))]
    if tries:
        last = tries[-1]
        is_live = glance.get("state") == "running"
        ended = (
            "now" if is_live else "an end without a word" if last["ended"] is None else when(last["ended"])
        )
        begun = f"{when(tries[0]['started'])} to {ended}; attempts: {len(tries)}"
        lines.append(tag("p", text(begun), class_="quiet"))
        if last["message"] and last["exit_code"]:
            lines.append(tag("pre", text(last["message"]), class_="why"))
    return "".join(lines) + tag("p", f"written {when(time.time())}", class_="quiet")


def _time_spent(spent: dict[str, float]) -> str:
    total = sum(spent.values())
    if total <= 0:
        return ""
    rows = [
        [
            tag("span", "■", style=f"color:{colour}") + f" {text(words)}",
            f"{100 * spent[name] / total:.1f} %",
            duration(spent[name]),
        ]
        for name, (words, colour) in _PARTS.items()
    ]
    shares = [(words, spent[name] / total, colour) for name, (words, colour) in _PARTS.items()]
    return drawing.bar(shares) + table(["part", "share", "time"], rows, numeric=(1, 2))


def _attempts(tries: list[dict[str, Any]]) -> str:
    rows = [
        [
            *(text(each[name] or "–") for name in ("number", "stage", "host", "slurm_job_id")),
            text(when(each["started"])),
            "–" if each["ended"] is None else duration(each["ended"] - each["started"]),
            text(each["cause"] or "–"),
        ]
        for each in tries[-_MAX_ROWS:]
    ]
    heads = ["no.", "stage", "host", "SLURM job", "began", "took", "end"]
    return table(heads, rows, numeric=(5,)) if rows else ""


def _faults(faults: list[dict[str, Any]]) -> str:
    if not faults:
        return "<p>None.</p>"
    kinds = [each["kind"] for each in faults]
    counted = ", ".join(f"{kind.replace('_', ' ')} {kinds.count(kind)}" for kind in dict.fromkeys(kinds))
    rows = [
        [
            text(when(each["time"])),
            f"{drawing.sign(each['kind'])} {text(each['text'])}",
            count(each["data_step"]),
            count(each["steps_lost"]),
            duration(each["seconds_lost"]),
        ]
        for each in faults[-_MAX_ROWS:]
    ]
    heads = ["when", "fault", "data step", "steps lost", "until past it"]
    shown = f"; the last {_MAX_ROWS}:" if len(faults) > _MAX_ROWS else ""
    return tag("p", text(counted + shown)) + table(heads, rows, numeric=(2, 3, 4))


def _charts(history: History, faults: list[dict[str, Any]]) -> str:
    rows, _ = history.rows("step")
    if not len(rows):
        return ""
    firsts = buckets.edges(0, len(rows), buckets.bucket_size(len(rows), _POINTS))
    ends = np.append(firsts[1:], len(rows)) - 1
    xs = history.x("step")[rows[ends]].tolist()
    charts = []
    for title, is_log, keys in _CURVES:
        curves = {
            words: buckets.reduce(history.column(key), rows, firsts, len(rows)) for key, words in keys.items()
        }
        known = {words: curve for words, curve in curves.items() if any(curve["mean"]) or curve["bad"]}
        charts.append(drawing.chart(title, xs, known, faults, is_log=is_log))
    return tag("div", "".join(charts), class_="charts")


def _results(results: dict[str, Any] | None) -> str:
    if results is None:
        return ""
    found = [results.get(name) for name in ("trained", "untrained")]
    trained, untrained = (each if isinstance(each, dict) else {} for each in found)
    rows = [
        [text(words), figure(trained[name]), figure(untrained.get(name))]
        for name, words in _RESULTS.items()
        if name in trained
    ]
    note = ", ".join(
        f"{words} {count(results.get(name))}"
        for name, words in (
            ("checkpoint_data_step", "data step"),
            ("num_images", "photographs"),
            ("num_classes", "classes"),
            ("neighbours", "neighbours"),
        )
    )
    return table(["of frozen features", "trained", "untrained"], rows, numeric=(1, 2)) + tag("p", text(note))


def _samples(run_dir: Path, history: History) -> str:
    """The picture, inside the document."""
    shown, data = facts.samples_shown(history), facts.picture(run_dir)
    if shown is None or data is None:
        return ""
    ids = ", ".join(str(each["image_id"]) for each in shown["samples"])
    title = f"Data step {count(shown['data_step'])}, drawn {when(shown['time'])}; photographs {ids}"
    legend = [
        drawing.swatch(colour, dash) + f" {text(words)}" for words, colour, dash in drawing.SAMPLE_OUTLINES
    ]
    # Not through `tag`, which looks for paths and secrets in text: a picture holds neither.
    encoded = base64.b64encode(data).decode()
    image = f'<img alt="{text(shown["words"])}" src="data:image/webp;base64,{encoded}"/>'
    caption = tag("figcaption", text(title)) + tag("p", " · ".join(legend)) + tag("p", text(_SAMPLES))
    return tag("figure", image + caption, class_="samples")


def _shards(history: History) -> str:
    shards = list(history.shards.values())
    if not shards:
        return ""
    states = [shard["state"] for shard in shards]
    words = [f"{state} {states.count(state)}" for state in dict.fromkeys(states)]
    for name, what in (("images_done", "images"), ("boxes", "boxes"), ("failed", "unusable photographs")):
        words.append(f"{what} {count(sum(shard.get(name) or 0 for shard in shards))}")
    return tag("p", text(", ".join(words)))


def _configuration(run_dir: Path, changed: set[str]) -> str:
    rows = [
        [tag("b", text(key)) if key in changed else text(key), tag("code", text(value))]
        for key, value in facts.configuration(run_dir)
    ]
    if not rows:
        return ""
    typed = tag("pre", text("\n".join(facts.overrides(run_dir))))
    note = tag("p", "Bold: differs from the defaults.", class_="quiet") if changed else ""
    return typed + note + table(["key", "value"], rows)
