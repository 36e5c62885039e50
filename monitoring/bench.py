"""What the exporter costs with a thousand runs behind it, beside reading every line of one of them.

Finished runs are hard links to one journal as long as COCO's 800 epochs; live ones have a copy of their own
that grows between two scrapes. The exporter is a process on one core, asked over HTTP as Prometheus does; its
seconds are those of this core, because others may work on the machine.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from shutil import copyfile
from typing import Any

from monitoring.exporter import Exporter, routes
from monitoring.journal import Journal, read
from monitoring.kinds import IMAGE_REASONS, KIND, PHASES, TERMS
from monitoring.lines import FOLDER, VERSION, encode
from monitoring.series import RunSeries
from monitoring.server import Server

DATA_STEPS = 185_000
EVERY_STEPS = 10  # the default of monitoring.every_steps
CHECKPOINT_EVERY = 1000  # data steps
GPU_READINGS = 300  # of a node of eight; more change nothing, since only the end of a file is read
SCRAPES = 5
_MIB = 1 << 20


def exporter(
    folder: Path, num_runs: int = 1000, num_live: int = 100, data_steps: int = DATA_STEPS
) -> dict[str, Any]:
    """Seconds of the first scrape of all runs after a start of the exporter.

    Args:
        folder: An empty one, for `num_live + 1` journals of 32 MB per 185,000 data steps.
        num_runs: Runs, the live ones included.
        num_live: Runs that grow between two scrapes; fewer than all.
        data_steps: Of each run.
    """
    root = folder / "runs"
    call_s, cpu_s = _write_runs(root, num_runs, num_live, data_steps)
    live = [root / _name(number) / FOLDER / "0002.00-rank0000.jsonl" for number in range(num_live)]
    with _served(root) as (port, connection):
        start = _cost(connection)
        size_bytes = _scrape(port)
        first = _cost(connection)
        for number in range(SCRAPES):
            for path in live:
                with path.open("ab") as file:
                    file.write(encode(_stamp(data_steps + EVERY_STEPS * number)))
            _scrape(port)
        last = _cost(connection)
    first_s = first["cpu_s"] - start["cpu_s"]
    begin = time.process_time()
    whole = RunSeries()
    for record in read(root / _name(num_live)):
        whole.add(record)
    whole_s = time.process_time() - begin
    return {
        "name": "exporter",
        "value": first_s,
        "unit": "s",
        "reference": whole_s,
        "reference_name": "reading every line of one run",
        "ratio": first_s / whole_s,
        "better": "lower",
        "details": {
            "runs": num_runs,
            "live": num_live,
            "data_steps": data_steps,
            "later_scrape_s": (last["cpu_s"] - first["cpu_s"]) / SCRAPES,
            "first_bytes_per_run": first["bytes_read"] / num_runs,
            "later_bytes_per_live_run": (last["bytes_read"] - first["bytes_read"]) / (num_live * SCRAPES),
            "memory_mib": last["memory_bytes"] / _MIB,
            "answer_mib": size_bytes / _MIB,
            "damaged_lines": last["damaged"],
            # Of one `step` record: what training waits for, and what both threads compute.
            "journal_call_us": call_s * 1e6,
            "journal_cpu_us": cpu_s * 1e6,
        },
    }


@contextmanager
def _served(root: Path) -> Iterator[tuple[int, Connection]]:
    """An exporter in a process of its own; its port, and a pipe that answers `cost`."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(str(root), theirs), daemon=True)
    process.start()
    try:
        yield mine.recv(), mine
    finally:
        process.kill()
        process.join()


def _serve(root: str, connection: Connection) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    served = Exporter(Path(root))
    server = Server("127.0.0.1", 0, routes(served))
    server.start()
    connection.send(server.server_port)
    while connection.recv():
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak_kib = int(status.partition("VmHWM:")[2].split()[0])
        connection.send(
            {
                "cpu_s": time.process_time(),
                "bytes_read": served.bytes_read,
                "memory_bytes": peak_kib * 1024,
                "damaged": served.damaged,
            }
        )


def _cost(connection: Connection) -> dict[str, float]:
    connection.send("cost")
    cost: dict[str, float] = connection.recv()
    return cost


def _scrape(port: int) -> int:
    """Bytes of the answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=300) as response:
        return len(response.read())


def _write_runs(root: Path, num_runs: int, num_live: int, data_steps: int) -> tuple[float, float]:
    """Write the journals; returns what `_write_run` does."""
    finished = root / _name(num_live)
    costs_s = _write_run(finished, data_steps)
    for number in [*range(num_live), *range(num_live + 1, num_runs)]:
        (root / _name(number) / FOLDER).mkdir(parents=True)
        for path in (finished / FOLDER).iterdir():
            to = root / _name(number) / FOLDER / path.name
            if number < num_live:
                copyfile(path, to)
            else:
                to.hardlink_to(path)
    return costs_s


def _write_run(run_dir: Path, data_steps: int) -> tuple[float, float]:
    """One run: boxes, a training of eight ranks that a NaN and a kill hit, and an evaluation.

    Returns:
        Seconds of the call that journals a step, in the median, and seconds of the processor for each.
    """
    run_dir.mkdir(parents=True)
    with Journal(run_dir, attempt=1, source="shards") as shards:
        for number in range(100):
            shards.record("proposals", shard=0, images_done=number, images=100, boxes=40 * number, failed={})
        shards.record("shard", shard=0, state="done")
    with Journal(run_dir, attempt=2, source="agent0") as agent:
        agent.record("attempt", host="node1", slurm_job_id="4711", stage="train")
        agent.record("restart", cause="killed", message="rank 3 ended")
        readings = [name.removesuffix("{}") for name in KIND["gpu"].fields if name.endswith("{}")]
        for _ in range(GPU_READINGS):
            numbers = {name: {str(gpu): 12345678.9 for gpu in range(8)} for name in readings}
            agent.record("gpu", node=0, host="node1", **numbers)
    for rank in range(8):
        with Journal(run_dir, attempt=2, rank=rank) as other:
            other.record("round", world_size=8)
            other.record("restore", checkpoint="step-000001000", seconds=2.0, passed_over={})
            other.record("image_failed", path="a/b.jpg", reason="corrupt", image_id=rank)
    costs_s = []
    begin = time.process_time()
    with Journal(run_dir, attempt=2, rank=0) as journal:
        journal.record(
            "run", state="training", experiment="coco_univip", method="univip", config_hash="0a1b2c3d",
            target_steps=DATA_STEPS, num_images=118_287, global_batch=512,
        )  # fmt: skip
        for data_step in range(0, data_steps, EVERY_STEPS):
            record = _step(data_step)
            start = time.perf_counter()
            journal.record("step", **record)
            costs_s.append(time.perf_counter() - start)
            if data_step % CHECKPOINT_EVERY == 0:
                journal.record("skip", where="loss", reason="nonfinite", what="", data_step=data_step)
                journal.record("checkpoint", outcome="success", blocked_s=0.1, background_s=2.0, bytes=10**9)
                time.sleep(0.02)  # or the queue fills, which a training never does
    cpu_s = (time.process_time() - begin) / len(costs_s)
    with Journal(run_dir, attempt=3, source="evaluate") as evaluation:
        evaluation.record("evaluate", protocol="knn", trained={"top1": 0.5}, untrained={"top1": 0.1})
    return statistics.median(costs_s), cpu_s


def _step(data_step: int) -> dict[str, Any]:
    """Fields of a `step` record, as many as a training writes."""
    return {
        "step": data_step,
        "data_step": data_step,
        **dict.fromkeys(("loss", "loss_min", "loss_max"), 3.123456789),
        "terms": dict.fromkeys(TERMS, 1.0411522630),
        "lr": 0.3123456789,
        "momentum": 0.9961234567,
        **dict.fromkeys(("gradient_norm", "gradient_norm_min", "gradient_norm_max"), 2.123456789),
        "images": 512 * data_step,
        "steps": data_step,
        "seconds": 0.5123456 * data_step,
        "phases": dict.fromkeys(PHASES, 0.0641234 * data_step),
        "statistics": {
            "embedding_std_online": 0.912345,
            "embedding_std_target": 0.912345,
            "sinkhorn_residual": 1.2345e-6,
        },
        "counts": {
            "images": 512 * data_step,
            "too_small": data_step,
            "fallback": data_step,
            **{f"substituted_{reason}": data_step for reason in IMAGE_REASONS},
        },
        "target": DATA_STEPS,
        "micro_batches": 1,
        "batch_norm_count": 512.0,
        "checkpoint_step": data_step // CHECKPOINT_EVERY * CHECKPOINT_EVERY,
        "checkpoint_time": 1.7e9,
    }


def _stamp(data_step: int) -> dict[str, Any]:
    """A `step` record with its envelope."""
    place = {"attempt": 2, "round": 0, "rank": 0}
    return {"v": VERSION, "kind": "step", "seq": data_step, "time": time.time(), **place, **_step(data_step)}


def _name(number: int) -> str:
    return f"coco_univip-{number:08x}"
