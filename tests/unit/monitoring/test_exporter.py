"""The exporter: every metric of the catalogue from journals on disk, and nothing on disk stops it."""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from monitoring.catalog import METRICS
from monitoring.exporter import FORGET_AFTER_S, Exporter, routes
from monitoring.journal import Journal
from monitoring.kinds import PHASES, TERMS
from monitoring.server import Server
from monitoring.web.history import History

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
RUN = "coco_univip-0a1b2c3d"
GPUS = {
    "busy_ratio": {"0": 0.97, "1": 0.5},
    "memory_used_bytes": {"0": 6e10, "1": 7e10},
    "memory_bytes": {"0": 8e10, "1": 8e10},
    "temperature_celsius": {"0": 61, "1": 88},
    "power_watts": {"0": 650.5, "1": 300.0},
    "slowed": {"0": 0.0, "1": 1.0},
    "memory_errors": {"0": 0, "1": 2},
}


def write_full_journal(run_dir: Path) -> None:
    """A run with one record of each kind that feeds a metric."""
    run_dir.mkdir()
    with Journal(run_dir, attempt=1, source="agent0") as agent:
        agent.record("attempt", host="node1", slurm_job_id="4711", stage="train")
        agent.record("preflight", host="node2", what="cuda:1: wrong")
        agent.record("restart", cause="crash", message="rank 1 ended")
    with Journal(run_dir, attempt=1, source="agent1") as agent:
        agent.record("gpu", node=1, host="node2", **GPUS)
        for xid in (31, 79, 79):
            agent.record("gpu_error", node=1, host="node2", gpu=0, xid=xid, what="in words")
    with Journal(run_dir, attempt=1, source="shard00000") as shard:
        shard.record("shard", shard=0, state="done")
        shard.record("proposals", shard=0, images_done=40, images=40, boxes=900, failed={"corrupt": 1})
    with Journal(run_dir, attempt=1, rank=0) as rank:
        rank.record(
            "run",
            state="training",
            experiment="coco_univip",
            method="univip",
            config_hash="0a1b2c3d",
            target_steps=1000,
            num_images=640,
            global_batch=64,
        )
        rank.record("round", world_size=8)
        rank.record("restore", checkpoint="step-000000100", seconds=1.5, passed_over={})
        rank.record("corruption", checkpoint="step-000000200", what="checksum")
        rank.record("image_failed", image_id=5, path="a/b.jpg", reason="missing")
        rank.record("skip", data_step=111, where="loss", reason="nonfinite")
        rank.record("rollback", data_step=120, where="state", reason="nonfinite", steps_discarded=20)
        rank.record(
            "checkpoint", data_step=130, outcome="success", bytes=1e6, blocked_s=0.2, background_s=2.0
        )
        rank.record(
            "step",
            step=135,
            data_step=140,
            loss=3.25,
            terms=dict.fromkeys(TERMS, 1.0),
            lr=0.4,
            momentum=0.99,
            gradient_norm=2.5,
            images=8960,
            steps=155,
            seconds=70.0,
            phases=dict.fromkeys(PHASES, 4.5),
            statistics={
                "embedding_std_online": 0.9,
                "embedding_std_target": 0.8,
                "sinkhorn_residual": 1e-6,
                "norm_parameters": 3.0,
            },
            counts={"too_small": 3, "fallback": 4, "substituted_missing": 1, "trials": 9},
            slowest_rank=5,
            straggler_ratio=1.25,
        )
        rank.record("dropped", records=2)
    with Journal(run_dir, attempt=2, source="evaluate") as evaluation:
        measured = {"top1": 0.5, "mean_average_precision": 0.4, "feature_std": 0.9, "effective_rank": 55.0}
        evaluation.record(
            "evaluate", protocol="knn", checkpoint_data_step=130, trained=measured, untrained=measured
        )


@pytest.fixture
def runs_root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    root.mkdir()
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("served")
    write_full_journal(root / RUN)
    with Server("127.0.0.1", 0, routes(Exporter(root, lambda: [(RUN, "RUNNING", "None")]))) as serving:
        serving.start()
        yield serving
        serving.shutdown()


def get(server: Server, path: str, accept: str = "*/*") -> tuple[str, str]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.server_port}{path}", headers={"Accept": accept}
    )
    with urllib.request.urlopen(request, timeout=5) as response:
        return response.headers["Content-Type"], response.read().decode()


def series_of(text: str) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def scrape(exporter: Exporter) -> Series:
    return series_of(exporter.exposition().decode())


def value(found: Series, name: str, run: str = RUN, **labels: str) -> float:
    return found[name, frozenset({"run": run, **labels}.items())]


def test_every_metric_of_the_catalogue_is_served_with_its_labels(server: Server) -> None:
    kind, text = get(server, "/metrics")

    assert kind.startswith("text/plain")
    served: dict[str, set[str]] = {}
    for name, labels in series_of(text):
        served.setdefault(name, set()).update(label for label, _ in labels)
    assert served == {metric.name: {"run", *metric.labels} for metric in METRICS}


def test_values_are_those_of_the_journal(runs_root: Path) -> None:
    write_full_journal(runs_root / RUN)

    found = scrape(Exporter(runs_root))

    assert value(found, "univip_train_loss") == 3.25
    assert value(found, "univip_train_loss_term", term="instance") == 1.0
    assert value(found, "univip_train_epoch") == 14.0
    assert value(found, "univip_train_images_total") == 8960.0
    assert value(found, "univip_train_phase_seconds_total", phase="data") == 4.5
    assert value(found, "univip_train_embedding_std_ratio", branch="target") == 0.8
    assert value(found, "univip_run_world_size") == 8.0
    assert value(found, "univip_run_attempt") == 1.0
    assert value(found, "univip_attempt_info", stage="train", host="node1", slurm_job_id="4711") == 1.0
    assert value(found, "univip_fault_restarts_total", cause="crash") == 1.0
    assert value(found, "univip_fault_restarts_total", cause="hang") == 0.0
    assert value(found, "univip_data_substituted_samples_total", reason="missing") == 1.0
    assert value(found, "univip_eval_effective_rank", network="trained") == 55.0
    assert value(found, "univip_gpu_busy_ratio", node="1", gpu="0") == 0.97
    assert value(found, "univip_gpu_temperature_celsius", node="1", gpu="1") == 88.0
    assert value(found, "univip_gpu_slowed", node="1", gpu="1") == 1.0
    assert value(found, "univip_gpu_xid_errors_total", node="1", gpu="0", xid="31") == 1.0
    assert value(found, "univip_gpu_xid_errors_total", node="1", gpu="0", xid="79") == 2.0
    assert value(found, "univip_gpu_last_xid_timestamp_seconds", node="1", gpu="0", xid="79") > 1.7e9
    assert value(found, "univip_monitoring_dropped_records_total") == 2.0
    assert value(found, "univip_monitoring_run_readable") == 1.0


def test_openmetrics_is_served_to_who_asks_for_it(server: Server) -> None:
    kind, text = get(server, "/metrics", "application/openmetrics-text; version=1.0.0")

    assert kind.startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    assert families["univip_train_images"].type == "counter"
    assert families["univip_run"].type == "info"
    assert families["univip_checkpoint_size_bytes"].unit == "bytes"


def test_counters_go_on_through_restarts_of_run_and_exporter(runs_root: Path) -> None:
    run_dir = runs_root / RUN
    run_dir.mkdir()
    living = Exporter(runs_root)
    before: Series = {}
    images = 0
    for attempt in range(1, 5):
        with Journal(run_dir, attempt=attempt) as writer:
            for _ in range(5):
                images += 64
                writer.record(
                    "step", data_step=attempt, images=images, steps=images / 64, phases={"data": images / 7}
                )
                writer.record("skip", where="loss", reason="nonfinite")
                writer.record("checkpoint", outcome="success", blocked_s=images / 13, background_s=0.1)
        # The next attempt resumes from the last record that was written, 64 images short.
        images -= 64

        reborn = scrape(Exporter(runs_root))
        assert reborn == scrape(living)
        counters = {key: number for key, number in reborn.items() if key[0].endswith("_total")}
        assert all(number >= before.get(key, 0.0) for key, number in counters.items())
        before = counters

    assert value(before, "univip_fault_skipped_steps_total", reason="nonfinite") == 20.0
    assert value(before, "univip_train_images_total") == 64 * (4 * 5 - 3)


def test_a_torn_line_counts_once_it_is_whole(runs_root: Path) -> None:
    run_dir = runs_root / RUN
    run_dir.mkdir()
    with Journal(run_dir) as writer:
        writer.record("skip", where="loss", reason="nonfinite")
    whole = writer.path.read_bytes()
    exporter = Exporter(runs_root)

    counts = []
    for content in (whole[:-9], whole, whole + b"garbage\n" + whole[:20]):
        writer.path.write_bytes(content)
        counts.append(value(scrape(exporter), "univip_fault_skipped_steps_total", reason="nonfinite"))

    assert counts == [0.0, 1.0, 1.0]
    assert value(scrape(exporter), "univip_monitoring_damaged_lines_total") == 1.0


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\xff" * 2000 + b"\n",
        bytes(range(256)) * 1000 + b"\n",
        b"x" * 10_000_000 + b"\n",
        (b"x" * 10_000_000 + b"\n") * 3,
        b'{"kind": "totals", "v": 1, "time": 1e999}\n' + b"\xff" * 70_000 + b"\n",
        random.Random(0).randbytes(100_000) + b"\n",
    ],
    ids=["garbage", "every byte", "10 MB line", "10 MB lines", "false totals", "random"],
)
def test_damage_of_any_size_is_counted_line_by_line_and_nothing_else_is_lost(
    runs_root: Path, damage: bytes
) -> None:
    write_full_journal(runs_root / RUN)
    living = Exporter(runs_root)
    before = scrape(living)
    path = runs_root / RUN / "journal" / "0001.00-rank0000.jsonl"

    for found in (before, None):
        with path.open("ab") as file:
            file.write(damage if found else damage[:-1])  # the second time without an end
        seen = scrape(living)
        assert value(seen, "univip_monitoring_damaged_lines_total") >= damage.count(b"\n")
        assert value(seen, "univip_monitoring_run_readable") == 1.0
        changed = {name for (name, _), number in seen.items() if before[name, _] != number}
        assert changed == {"univip_monitoring_damaged_lines_total"}
        reborn = scrape(Exporter(runs_root))
        assert value(reborn, "univip_monitoring_damaged_lines_total") >= damage.count(b"\n")
    with Journal(runs_root / RUN, attempt=1, rank=0) as writer:  # ends the line that has no end
        writer.record("skip", where="loss", reason="nonfinite")

    for exporter in (living, Exporter(runs_root)):
        seen = scrape(exporter)
        skipped = value(before, "univip_fault_skipped_steps_total", reason="nonfinite")
        assert value(seen, "univip_fault_skipped_steps_total", reason="nonfinite") == skipped + 1
    damaged = value(scrape(living), "univip_monitoring_damaged_lines_total")
    assert damaged == 2 * damage.count(b"\n")


@pytest.mark.slow
def test_exporter_and_page_go_on_with_a_journal_cut_at_any_of_its_last_bytes(
    runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitoring.journal.TOTALS_BYTES", 1500)
    (runs_root / RUN).mkdir()
    with Journal(runs_root / RUN) as writer:
        for step in range(60):
            writer.record("step", data_step=step, loss=1.0, images=64 * step)
            writer.record("skip", where="loss", reason="nonfinite")
    content = writer.path.read_bytes()
    assert b'"kind": "totals"' in content[-4096:]
    living, history = Exporter(runs_root), History(runs_root / RUN)
    most = re.findall(rb"\nunivip_\w+_total{.*", living.exposition())

    for end in range(len(content) - 1, len(content) - 4097, -1):
        writer.path.write_bytes(content[:end])
        history.update()
        skips = content[:end].count(b'"kind": "skip"') - (
            b'"kind": "skip"' in content[:end].rpartition(b"\n")[2]
        )
        line = f'univip_fault_skipped_steps_total{{run="{RUN}",reason="nonfinite"}} {skips}\n'
        assert line.encode() in Exporter(runs_root).exposition()
        assert history.counts["skip"] == skips
        served = living.exposition()  # has seen more, and takes nothing back
        assert re.findall(rb"\nunivip_\w+_total{.*", served) == most
        assert b"univip_monitoring_run_readable" in served


def test_a_loss_that_is_not_a_number_is_served_as_nan(runs_root: Path) -> None:
    (runs_root / RUN).mkdir()
    with Journal(runs_root / RUN) as writer:
        writer.record("step", loss=math.nan)

    assert math.isnan(value(scrape(Exporter(runs_root)), "univip_train_loss"))


def test_a_broken_run_is_marked_and_the_others_are_served(runs_root: Path) -> None:
    write_full_journal(runs_root / RUN)
    broken = runs_root / "broken-00000000"
    broken.mkdir()
    (broken / "journal").write_bytes(b"not a folder")

    found = scrape(Exporter(runs_root))

    assert value(found, "univip_monitoring_run_readable", run=broken.name) == 0.0
    assert value(found, "univip_monitoring_run_readable") == 1.0
    assert value(found, "univip_train_loss") == 3.25


def test_a_run_of_somebody_else_that_may_not_be_entered_is_marked(
    runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_full_journal(runs_root / RUN)
    (runs_root / "secret-00000000").mkdir()
    real_lstat, real_iterdir = Path.lstat, Path.iterdir

    def check(path: Path) -> Path:
        if "secret" in str(path.parent):
            raise PermissionError(13, "Permission denied", str(path))
        return path

    # Tests may run as root, whom no mode keeps out.
    monkeypatch.setattr(Path, "lstat", lambda path: real_lstat(check(path)))
    monkeypatch.setattr(Path, "iterdir", lambda path: real_iterdir(check(path)))
    found = scrape(Exporter(runs_root))

    assert value(found, "univip_monitoring_run_readable", run="secret-00000000") == 0.0
    assert value(found, "univip_train_loss") == 3.25


def test_folders_without_a_journal_are_no_runs(runs_root: Path) -> None:
    (runs_root / "demo-data").mkdir()
    (runs_root / "notes.txt").write_text("x")

    assert scrape(Exporter(runs_root)) == {}


def test_a_folder_of_runs_that_does_not_exist_yet_is_no_error(tmp_path: Path) -> None:
    exporter = Exporter(tmp_path / "runs")
    assert scrape(exporter) == {}

    (tmp_path / "runs").mkdir()
    write_full_journal(tmp_path / "runs" / RUN)
    assert value(scrape(exporter), "univip_train_loss") == 3.25


def test_a_run_that_vanishes_keeps_its_last_state_and_is_forgotten_after_a_time(
    runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_full_journal(runs_root / RUN)
    exporter = Exporter(runs_root)
    assert value(scrape(exporter), "univip_monitoring_run_readable") == 1.0
    start = time.monotonic()

    shutil.rmtree(runs_root)
    found = scrape(exporter)
    assert value(found, "univip_train_loss") == 3.25
    assert value(found, "univip_monitoring_run_readable") == 0.0

    monkeypatch.setattr("time.monotonic", lambda: start + FORGET_AFTER_S + 60)
    assert scrape(exporter) == {}


def test_jobs_are_counted_by_state_and_reason_for_runs_that_have_not_begun_too(runs_root: Path) -> None:
    write_full_journal(runs_root / RUN)
    (runs_root / "waiting-00000000").mkdir()
    jobs = [
        ("waiting-00000000", "PENDING", "Priority"),
        ("waiting-00000000", "PENDING", "Dependency"),
        ("waiting-00000000", "PENDING", "Dependency"),
        (RUN, "RUNNING", "None"),
        ("of-another-folder-00000000", "RUNNING", "None"),
    ]
    exporter = Exporter(runs_root, lambda: jobs)

    found = scrape(exporter)
    waiting = {"run": "waiting-00000000", "state": "PENDING"}
    assert value(found, "univip_slurm_jobs", **waiting, reason="Dependency") == 2.0
    assert value(found, "univip_slurm_jobs", **waiting, reason="Priority") == 1.0
    assert value(found, "univip_slurm_jobs", state="RUNNING", reason="None") == 1.0
    assert value(found, "univip_monitoring_run_readable", run="waiting-00000000") == 1.0
    assert "of-another-folder-00000000" not in {dict(labels)["run"] for _, labels in found}

    jobs.clear()
    found = scrape(exporter)
    assert {dict(labels)["run"] for _, labels in found} == {RUN}
    assert "univip_slurm_jobs" not in {name for name, _ in found}


def test_hostile_names_and_values_stay_inside_their_label(runs_root: Path) -> None:
    names = ['quote"\\back\nline', "ünï-<script>", b"\xff\xfe".decode("utf-8", "surrogateescape")]
    for name in names:
        run_dir = runs_root / name
        run_dir.mkdir()
        with Journal(run_dir) as writer:
            writer.record(
                "run", state="tra\nining", experiment='a"} 1\nevil 2', method="\ud800", config_hash="x" * 999
            )

    found = scrape(Exporter(runs_root))

    runs = {dict(labels)["run"] for _, labels in found}
    assert runs == {names[0], names[1], "\\udcff\\udcfe"}
    assert {name for name, _ in found} <= {metric.name for metric in METRICS}


def test_no_path_is_served(server: Server) -> None:
    _, text = get(server, "/metrics")

    assert "/served" not in text
    assert "a/b.jpg" not in text


def test_promtool_accepts_every_name(server: Server, program: Callable[[str], str]) -> None:
    _, text = get(server, "/metrics")
    done = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=text,
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
