"""`univip monitor` and the run it watches, each killed twenty times: no counter of /metrics ever goes back.

Both are real processes. The run writes with the journal of a training and resumes as one does, from a
checkpoint that lies behind what was journalled; it computes nothing.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RUN = "coco_univip-0a1b2c3d"
KILLS = 20
PATIENCE_S = 60.0
# Counts lines met since the exporter started, and says so.
NOT_OF_THE_RUN = "univip_monitoring_damaged_lines_total"
TRAINING = """
import sys, time
from pathlib import Path
from monitoring.journal import Journal

run_dir, attempt = Path(sys.argv[1]), int(sys.argv[2])
checkpoint = run_dir / "checkpoint"
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
journal = Journal(run_dir, attempt=attempt)
if attempt > 1:
    journal.record("restart", cause="killed", message="SIGKILL")
    journal.record("restore", data_step=step, checkpoint="x", seconds=0.25, passed_over={})
journal.record("run", state="training")
while True:
    step += 1
    fields = {"images": 64 * step, "steps": step, "seconds": step / 7, "phases": {"data": step / 9}}
    journal.record("step", step=step, data_step=step, loss=1 / step, counts={"too_small": step}, **fields)
    if step % 3 == 0:
        journal.record("skip", data_step=step, where="loss", reason="nonfinite")
    if step % 7 == 0:
        journal.record("rollback", data_step=step, where="state", reason="nonfinite", steps_discarded=5)
    if step % 20 == 0:
        journal.record("checkpoint", data_step=step, outcome="success", blocked_s=0.1, background_s=1 / 3)
        checkpoint.with_suffix(".new").write_text(str(step))
        checkpoint.with_suffix(".new").rename(checkpoint)
    time.sleep(0.002)
"""


class Process:
    """A child that is killed."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Monitor(Process):
    """`univip monitor`."""

    def __init__(self, runs: Path) -> None:
        super().__init__("-m", "launcher.cli.main", "--runs", runs, "monitor", "--port", 0)
        assert self.process.stderr is not None
        found = re.search(r"http://\S+/metrics", self.process.stderr.readline())
        assert found, "it does not start"
        self.address = found[0]

    def counters(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        with urllib.request.urlopen(self.address, timeout=PATIENCE_S) as response:
            text = response.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.endswith("_total") and sample.name != NOT_OF_THE_RUN
        }


def lines(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of the journal, without any of its own readers."""
    for path in (run_dir / "journal").iterdir():
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield json.loads(line)


def test_no_counter_goes_back_over_twenty_kills_of_the_exporter_and_of_the_run(tmp_path: Path) -> None:
    dice = random.Random(0)
    run_dir = tmp_path / RUN
    run_dir.mkdir()
    before: dict[Any, float] = {}
    growth = 0
    with ExitStack() as stack:
        living: list[Process] = []
        stack.callback(lambda: [each.kill() for each in living])
        monitor = Monitor(tmp_path)
        living.append(monitor)
        for attempt in range(1, KILLS + 1):
            run = Process("-c", TRAINING, run_dir, attempt)
            living.append(run)
            deadline = time.monotonic() + PATIENCE_S
            path = run_dir / "journal" / f"{attempt:04d}.00-rank0000.jsonl"
            while not path.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)

            for victim in dice.sample(["run", "monitor"], 2):
                time.sleep(dice.uniform(0, 0.2))
                now = monitor.counters()
                assert {key: count for key, count in before.items() if now.get(key, -1.0) < count} == {}
                growth += sum(now.values()) > sum(before.values())
                before = now
                if victim == "run":
                    run.kill()
                    living.remove(run)
                else:
                    monitor.kill()
                    living[0] = monitor = Monitor(tmp_path)
        last = monitor.counters()

    assert {key: count for key, count in before.items() if last[key] < count} == {}
    assert growth > KILLS

    def count(name: str, **labels: str) -> float:
        return last[name, frozenset({"run": RUN, **labels}.items())]

    written = list(lines(run_dir))
    kinds = Counter(record["kind"] for record in written)
    # One that is killed at once may not have told of it.
    assert count("univip_fault_restarts_total", cause="killed") == kinds["restart"] > KILLS // 2
    assert count("univip_fault_skipped_steps_total", reason="nonfinite") == kinds["skip"] > KILLS
    assert count("univip_fault_rollbacks_total", reason="nonfinite") == kinds["rollback"]
    assert count("univip_fault_rolled_back_steps_total") == 5 * kinds["rollback"]
    assert count("univip_checkpoint_saves_total", outcome="success") == kinds["checkpoint"]
    images = max(record["images"] for record in written if record["kind"] == "step")
    assert count("univip_train_images_total") == images
    assert len(list((run_dir / "journal").iterdir())) == KILLS
