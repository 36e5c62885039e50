"""The page in a real Chromium: what a person sees, types and points at, and that nothing complains."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from jobs.config import Config, RunHeader, RunKind, store
from jobs.requests import Request, stages_of
from launcher.dash import routes_of
from monitoring.journal import Journal
from monitoring.lines import VERSION, encode
from monitoring.server import Server
from monitoring.web.facts import PICTURE
from univip.config import DataConfig

pytestmark = pytest.mark.slow

LIVE = "coco_univip-11111111"
HOSTILE = "<img src=x onerror=alert(1)>-22222222"
SCRIPT = "<script>alert(2)</script><img src=x onerror=alert(3)>"
PROPOSALS = "proposals-33333333"
LONG = "coco_univip-44444444"
ENTER, BACKSPACE, LEFT, RIGHT = "\ue007", "\ue003", "\ue012", "\ue014"

# Pairs of words and ground whose contrast is too small.
CONTRASTS = """
const style = getComputedStyle(document.documentElement);
const light = (name) => {
  const hex = style.getPropertyValue(`--${name}`).trim();
  const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
  const linear = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
const contrast = (pair) => {
  const [low, high] = pair.map(light).sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const words = ["ink surface", "quiet surface", "quiet ground", "accent surface", "good good-ground",
  "bad bad-ground", "warn warn-ground", "accent live-ground", "quiet calm-ground", "bad surface",
  "odd surface"];
return words.map((pair) => [pair, contrast(pair.split(" "))]).filter(([, found]) => !(found >= 4.5));
"""


class Live:
    """A run that trains while the page is open."""

    def __init__(
        self, runs: Path, name: str, experiment: str = "coco_univip", root: str = "/secret/place"
    ) -> None:
        self.run_dir = runs / name
        (self.run_dir / "attempts" / "0001" / "round-00").mkdir(parents=True)
        store(
            Config(data=DataConfig(root=root)),
            RunHeader(name, RunKind.train, "f", 9),
            self.run_dir,
        )
        Request("train", stages_of("train", name, "")).save(self.run_dir)
        attempt = {"number": 1, "stage": "train", "host": "elsewhere", "pid": 1, "start_ticks": 1}
        attempt |= {"slurm_job_id": "", "started": time.time() - 60, "ended": None, "exit_code": None}
        attempt |= {"cause": "", "message": ""}
        (self.run_dir / "attempts" / "0001" / "attempt.json").write_text(json.dumps(attempt))
        log = self.run_dir / "attempts" / "0001" / "round-00" / "rank-0.log"
        log.write_text("<script>alert(1)</script> /secret/place/x token=hunter2\n")
        self.journal = Journal(self.run_dir)
        self.journal.record("run", state="training", experiment=experiment, method="univip", num_images=640)
        self.journal.record("round", world_size=2)
        self.seconds = 0.0

    def steps(self, first: int, last: int, **fields: Any) -> None:
        for data_step in range(first, last + 1):
            self.seconds += 1
            loss = 3 + 5 * math.exp(-data_step / 30)
            self.journal.record(
                "step",
                **{
                    "step": data_step,
                    "data_step": data_step,
                    "loss": loss,
                    "loss_min": loss,
                    "loss_max": loss,
                    "terms": {"scene": loss / 2, "scene_instance": loss / 3, "instance": loss / 6},
                    "lr": 0.1,
                    "momentum": 0.99,
                    "gradient_norm": 1.0 + loss,
                    "images": 8 * self.seconds,
                    "steps": data_step,
                    "seconds": self.seconds,
                    "phases": {"data": self.seconds / 3, "forward": self.seconds / 2},
                    "statistics": {"embedding_std_online": 0.9, "embedding_std_target": 0.95},
                    "counts": {"images": 8 * self.seconds, "fallback": 3},
                    "target": 400,
                    "checkpoint_time": time.time(),
                    **fields,
                },
            )
        self.flush()

    def flush(self) -> None:
        while self.journal._lines:
            time.sleep(0.01)
        time.sleep(0.05)

    def roll_back(self, at: int, target: int) -> None:
        self.journal.record(
            "rollback",
            data_step=at,
            target=target,
            steps_discarded=at - target,
            where="state",
            reason="nonfinite",
        )
        self.journal.record("restore", data_step=target, checkpoint="x", seconds=1.0, passed_over={})
        self.flush()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def live(runs: Path) -> Iterator[Live]:
    run = Live(runs, LIVE)
    run.steps(1, 120)
    yield run
    run.journal.close()


@pytest.fixture
def url(runs: Path, live: Live) -> Iterator[str]:
    """Three runs, served as `univip dash` serves them."""
    hostile = Live(runs, HOSTILE, "<b>bold</b>", root=SCRIPT)
    (hostile.run_dir / "overrides.txt").write_text(f"data.root={SCRIPT}\n")
    hostile.steps(1, 20)
    hostile.journal.record("gpu", node=0, host=SCRIPT, busy_ratio={SCRIPT: 0.5}, slowed={SCRIPT: 1.0})
    hostile.journal.record("restart", cause=SCRIPT, message=SCRIPT)
    hostile.journal.record("checkpoint", outcome="failure", what=SCRIPT)
    hostile.journal.close()
    boxes = runs / PROPOSALS
    boxes.mkdir()
    store(Config(data=DataConfig(root="/x")), RunHeader(PROPOSALS, RunKind.proposals, "f", 9), boxes)
    with Journal(boxes, source="shards") as journal:
        for shard, state in enumerate(["done", "failed", "running", "done"]):
            journal.record("shard", shard=shard, state=state)
            journal.record("proposals", shard=shard, images_done=7, images=9, boxes=70, failed={})
    with Server("127.0.0.1", 0, routes_of(runs)) as server:
        server.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def names(browser: Any) -> list[str]:
    return list(
        browser.run("return [...document.querySelectorAll('tr[data-run]')].map(row => row.dataset.run)")
    )


def test_runs_are_sorted_filtered_and_opened_by_keyboard(browser: Any, url: str) -> None:
    browser.open(url)
    browser.wait("document.querySelectorAll('tr[data-run]').length === 3")

    browser.run("document.querySelector('th button').focus()")
    browser.press(ENTER)
    assert names(browser) == [HOSTILE, LIVE, PROPOSALS]
    assert (
        browser.run("return document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "ascending"
    )
    browser.press(ENTER)
    assert names(browser) == [PROPOSALS, LIVE, HOSTILE]
    assert browser.run("return document.activeElement.textContent").startswith("run")

    browser.run("document.activeElement.blur()")
    browser.press("/", *"coco")
    assert names(browser) == [LIVE]
    browser.press(*"zzz")
    assert names(browser) == []
    assert "No run matches" in browser.run("return document.body.innerText")
    browser.press(*[BACKSPACE] * 7)
    assert len(names(browser)) == 3

    browser.run("document.querySelector('tr[data-run] a').focus()")
    browser.press(ENTER)
    browser.wait("document.querySelector('h1').textContent === arguments[0]", PROPOSALS)
    assert browser.complaints() == []


def test_a_run_shows_its_curves_output_and_configuration(browser: Any, url: str) -> None:
    browser.open(f"{url}#/run/{LIVE}")

    browser.wait("document.querySelectorAll('.chart:not([hidden]) canvas').length >= 8")
    browser.wait("document.querySelector('.log')?.textContent")
    text = browser.run("return document.body.innerText")
    assert "120 of 400 data steps" in text
    assert "No fault so far" in text
    browser.wait("document.querySelector('.h-configuration').innerText.includes('…/place')")
    assert "/secret" not in browser.run("return document.documentElement.outerHTML")
    assert "hunter2" not in browser.run("return document.documentElement.outerHTML")
    words = browser.run("return document.querySelector('.plot').getAttribute('aria-label')")
    assert words.startswith("Loss. Loss: now 3.09")
    assert browser.complaints() == []


def test_the_newest_reading_of_each_gpu_is_shown(browser: Any, url: str, live: Live) -> None:
    browser.open(f"{url}#/run/{LIVE}")
    browser.wait("document.querySelector('.chart canvas')")

    numbers = {"busy_ratio": 0.97, "memory_used_bytes": 60e9, "memory_bytes": 80e9, "temperature_celsius": 71}
    for busy in (0.5, 0.97):
        numbers |= {"busy_ratio": busy, "power_watts": 650.5, "slowed": 1.0, "memory_errors": 0}
        gpus = {name: {"0": number, "1": number} for name, number in numbers.items()}
        live.journal.record("gpu", node=0, host="node7", **gpus)
    live.flush()

    browser.wait("document.querySelectorAll('.h-gpus tbody tr').length === 2")
    row = browser.run("return document.querySelector('.h-gpus tbody tr').innerText")
    for told in ("node7 (0)", "97 %", "71 °C", "651 W", "slowed by heat"):
        assert told in row
    assert browser.complaints() == []


def test_an_error_of_a_gpu_is_on_the_timeline_and_its_repetitions_are_one_row(
    browser: Any, url: str, live: Live
) -> None:
    browser.open(f"{url}#/run/{LIVE}")
    browser.wait("document.querySelector('.chart canvas')")

    for xid, what in ((79, SCRIPT), (63, "memory"), (63, "memory")):
        live.journal.record("gpu_error", node=1, host="gpu-7", gpu=3, xid=xid, what=what)
    live.flush()

    rows = "[...document.querySelectorAll('.h-what-happened tbody tr')].map(row => row.innerText)"
    browser.wait(f"{rows}.length === 2")
    first, second = browser.run(f"return {rows}")
    assert f"GPU 3 of gpu-7 (node 1) reported Xid 79: {SCRIPT}" in first
    assert "Xid 63: memory ×2" in second
    assert browser.run("return document.querySelectorAll('.timeline .mark.bad').length") == 3
    assert "GPU error" in browser.run("return document.querySelector('.legend.key').innerText")
    assert browser.complaints() == []


def test_the_last_samples_are_a_picture_that_follows_the_run(browser: Any, url: str, live: Live) -> None:
    def draw(data_step: int, width: int) -> None:
        PIL.Image.new("RGB", (width, 90), "#0072b2").save(live.run_dir / PICTURE, "WEBP")
        ids = {"image_ids": [139, 285], "epochs": [2, 3]}
        live.journal.record("samples", outcome="success", data_step=data_step, **ids)
        live.flush()

    image = "document.querySelector('.h-last-samples img')"
    browser.open(f"{url}#/run/{LIVE}")
    browser.wait("document.querySelector('.chart canvas')")
    assert not browser.run(f"return {image}.offsetParent")  # there is none yet

    draw(119, 120)
    browser.wait(f"{image}.naturalWidth === 120")
    text = browser.run("return document.querySelector('.h-last-samples').innerText")
    for told in (
        "Data step 119",
        "photograph 139, epoch 2",
        "photograph 285, epoch 3",
        "scene 1",
        "random box",
    ):
        assert told in text
    words = browser.run(f"return {image}.alt")
    assert words.startswith("Samples of the photographs 139, 285")
    assert browser.run(f"return {image}.parentElement.href") == browser.run(f"return {image}.src")

    # Another one takes its place while the page is open; of one that failed, the page says why.
    draw(169, 150)
    browser.wait(f"{image}.naturalWidth === 150")
    live.journal.record("samples", outcome="failure", data_step=219, what=f"full: {SCRIPT}")
    live.flush()
    problem = "document.querySelector('.h-last-samples .why').innerText"
    browser.wait(
        f"{problem}.includes(arguments[0])", f"The newest picture could not be drawn: full: {SCRIPT}"
    )
    assert browser.run(f"return {image}.naturalWidth") == 150
    for width in (360, 1360):
        browser.resize(width, 800)
        assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


def test_a_rollback_and_a_nan_appear_while_the_page_is_open(browser: Any, url: str, live: Live) -> None:
    browser.open(f"{url}#/run/{LIVE}")
    browser.wait("document.querySelector('.chart canvas')")
    browser.wait("document.body.innerText.includes('No fault so far')")
    browser.wait("document.querySelector('.h-configuration input').offsetParent")  # it has come
    browser.run("document.querySelector('.h-configuration input').focus()")

    live.journal.record("skip", data_step=125, where="loss", reason="nonfinite", what="loss")
    live.steps(121, 130, loss=float("nan"), loss_min=float("nan"), loss_max=float("nan"))
    live.roll_back(130, 100)
    live.steps(101, 140)

    browser.wait("document.body.innerText.includes('rolled back to data step 100')")
    browser.wait("document.body.innerText.includes('140 of 400 data steps')")
    rows = "[...document.querySelectorAll('.h-what-happened tbody tr')]"
    row = browser.run(f"return {rows}.map(row => row.innerText)")
    assert len(row) == 2
    assert "batch skipped" in row[0]
    assert "30 steps" in row[1]
    assert browser.run("return document.querySelectorAll('.timeline .mark').length") == 2
    browser.wait("document.querySelector('.tiles').innerText.includes('1 rollback')")
    # What a person was typing in is still there.
    assert (
        browser.run("return document.activeElement.getAttribute('aria-label')") == "Filter the configuration"
    )
    # By data step the bad values are of a future that was abandoned; by time they are on the line.
    browser.run("document.querySelectorAll('[role=radio]')[1].click()")
    browser.wait(
        "document.querySelector('.plot').getAttribute('aria-label').includes('not finite in 10 places')"
    )
    assert browser.complaints() == []


def test_a_run_of_185600_data_steps_is_drawn_whole_and_loses_no_extreme(
    browser: Any, url: str, runs: Path
) -> None:
    long = Live(runs, LONG)
    long.journal.close()
    with long.journal.path.open("ab") as file:
        for number in range(18_560):
            loss = {7_777: 9.5, 12_345: math.nan}.get(number, 3.0)
            fields = {"data_step": 10 * number, "loss": loss, "images": 80 * number, "target": 185_600}
            place = {"seq": number, "time": 1.8e9 + number, "attempt": 1, "round": 0, "rank": 0}
            file.write(encode({"v": VERSION, "kind": "step", **place, **fields}))

    browser.open(f"{url}#/run/{LONG}")

    browser.wait("document.querySelector('.chart canvas')")
    words = browser.run("return document.querySelector('.plot').getAttribute('aria-label')")
    assert words == "Loss. Loss: now 3, least 3, greatest 9.5, not finite in 1 places"
    sent = browser.run(f"return fetch('/api/runs/{LONG}/series?points=400').then(answer => answer.json())")
    assert (sent["records"], sent["series"]["loss"]["bad"][0][1]) == (18_560, "NaN")
    assert 200 <= len(sent["xs"]) <= 400
    assert browser.complaints() == []


def test_dragging_shows_a_part_and_a_button_the_whole(browser: Any, url: str) -> None:
    browser.open(f"{url}#/run/{LIVE}")
    browser.wait("document.querySelector('.chart canvas')")
    browser.run("document.querySelector('.charts').scrollIntoView()")
    label = "document.querySelector('.plot').getAttribute('aria-label')"
    whole = browser.run(f"return {label}")

    browser.drag(".u-over", 0.5, 0.9)

    browser.wait(f"{label} !== arguments[0]", whole)
    button = "[...document.querySelectorAll('button')].find(each => each.textContent === 'Whole run')"
    browser.wait(f"!{button}.hidden")
    browser.run(f"{button}.click()")
    browser.wait(f"{label} === arguments[0]", whole)
    assert browser.complaints() == []


def test_runs_are_compared(browser: Any, url: str) -> None:
    browser.open(url)
    browser.wait("document.querySelectorAll('tr[data-run]').length === 3")
    for name in (LIVE, HOSTILE):
        browser.run(
            'document.querySelector(`tr[data-run="${CSS.escape(arguments[0])}"] input`).click()', name
        )

    browser.run("document.querySelector('button.main').click()")

    browser.wait(
        "document.querySelector('.chart canvas') && document.querySelectorAll('.legend li').length === 2"
    )
    legend = browser.run("return document.querySelector('.legend').innerText")
    assert LIVE in legend
    assert HOSTILE in legend
    browser.run(
        "const axis = document.querySelectorAll('select')[1];"
        "axis.value = 'hours'; axis.dispatchEvent(new Event('change'))"
    )
    browser.wait("document.querySelectorAll('.h-what-they-reached tbody tr').length === 2")
    assert browser.complaints() == []


def test_shards_are_a_grid_that_arrow_keys_move_in(browser: Any, url: str) -> None:
    browser.open(f"{url}#/run/{PROPOSALS}")
    browser.wait("document.querySelectorAll('.shard').length === 4")

    browser.run("document.querySelector('.shard').focus()")
    browser.press(RIGHT)

    assert browser.run("return document.activeElement.ariaLabel").startswith("shard 1: failed, 7 of 9")
    assert browser.run("return document.querySelector('[aria-live]').textContent").startswith(
        "shard 1: failed"
    )
    browser.press(LEFT)
    assert browser.run("return document.activeElement.getAttribute('aria-label')").startswith("shard 0: done")
    assert browser.complaints() == []


def test_no_name_output_or_value_becomes_markup(browser: Any, url: str) -> None:
    browser.open(url)
    browser.wait("document.querySelectorAll('tr[data-run]').length === 3")
    links = "[...document.querySelectorAll('tr[data-run] a')]"
    browser.run(f"{links}.find(link => link.textContent.startsWith('<img')).click()")
    browser.wait("document.querySelector('.log')?.textContent.includes('<script>alert(1)</script>')")

    browser.wait("document.querySelector('.h-configuration input[type=checkbox]')")
    for part in (".h-configuration", ".h-what-happened", ".h-gpus"):
        browser.wait("document.querySelector(arguments[0])?.innerText.includes(arguments[1])", part, SCRIPT)
    assert browser.run("return document.querySelector('h1').textContent") == HOSTILE
    foreign = "main img:not(.sheet img), main script, main b b"  # the sheet of samples is our own
    assert browser.run("return document.querySelectorAll(arguments[0]).length", foreign) == 0
    assert browser.run("return document.title") == f"univip: {HOSTILE}"
    browser.open(
        f"{url}api/runs/{HOSTILE.replace('<', '%3C').replace('>', '%3E').replace(' ', '%20')}/report"
    )
    assert browser.run("return document.querySelector('h1').textContent") == HOSTILE
    assert SCRIPT in browser.run("return document.body.textContent")
    assert browser.run("return document.querySelectorAll('img, script').length") == 0
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [360, 820, 1600])
@pytest.mark.parametrize("place", ["", f"#/run/{LIVE}", f"#/compare/{LIVE},{PROPOSALS}"])
def test_nothing_hangs_over_the_edge(browser: Any, url: str, width: int, place: str) -> None:
    browser.resize(width, 800)
    browser.open(url + place)
    browser.wait("document.querySelector('tr[data-run], .chart canvas, .h-what-they-reached')")
    browser.wait("!document.getElementById('link').textContent")

    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_everything_that_can_be_used_has_a_name(browser: Any, url: str) -> None:
    for place in ("", f"#/run/{LIVE}"):
        browser.open(url + place)
        browser.wait("document.querySelector('tr[data-run], .chart canvas')")
        browser.wait("document.querySelector('tr[data-run], .log')")
        nameless = browser.run(
            "return [...document.querySelectorAll('button, a, input, select, [role=img], [role=region]')]"
            ".filter(each => !each.closest('[hidden]'))"
            ".filter(each => !(each.ariaLabel || each.textContent.trim() || each.labels?.length))"
            ".map(each => each.outerHTML)"
        )
        assert nameless == []


def test_words_can_be_read_on_their_ground(browser: Any, url: str) -> None:
    """Contrast of at least 4.5 as WCAG counts it, in both schemes."""
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.tell("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.open(f"{url}#/run/{LIVE}")
        browser.wait("document.querySelector('.chart canvas')")
        poor = browser.run(CONTRASTS)
        assert poor == [], scheme


def test_on_paper_the_page_is_light_and_whole(browser: Any, url: str) -> None:
    browser.resize(794, 1123)  # A4
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.tell("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    browser.open(f"{url}#/run/{LIVE}")
    browser.wait("document.querySelectorAll('.chart canvas').length >= 8")

    surface = "getComputedStyle(document.documentElement).getPropertyValue('--surface').trim()"
    assert browser.run(f"return {surface}") == "#ffffff"
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.wait("document.documentElement.scrollWidth <= 794")
    for part in (".top", ".tools", ".h-output"):  # what can only be used, or scrolled
        assert browser.run("return document.querySelector(arguments[0]).offsetParent", part) is None
    widest = "Math.max(...[...document.querySelectorAll('.chart canvas, .timeline')].map("
    widest += "each => each.getBoundingClientRect().right))"
    assert browser.run(f"return {widest}") <= 794
    assert browser.complaints() == []


def test_a_server_that_is_gone_is_told_and_the_page_goes_on_once_it_is_back(
    browser: Any, url: str, live: Live
) -> None:
    browser.open(f"{url}#/run/{LIVE}")
    browser.wait("document.querySelector('.chart canvas')")
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}

    browser.tell("Network.enable", {})
    browser.tell("Network.emulateNetworkConditions", {**network, "offline": True})
    browser.wait("document.getElementById('link').textContent.includes('no answer')")
    live.steps(121, 200)
    browser.tell("Network.emulateNetworkConditions", {**network, "offline": False})

    browser.wait("document.body.innerText.includes('200 of 400 data steps')")
    browser.wait("!document.getElementById('link').textContent")
