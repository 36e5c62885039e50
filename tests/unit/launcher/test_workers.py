"""Nodes and workers of an attempt, from what its ranks recorded first; and how `show` tells of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.attempts import Attempt, start_ticks
from launcher.cli.main import run
from launcher.workers import Workers, newest_round
from monitoring.journal import Journal


def begin_round(run_dir: Path, number: int, hosts: list[str]) -> None:
    for rank, host in enumerate(hosts):
        with Journal(run_dir, 2, number, rank) as journal:
            journal.record("round", world_size=len(hosts), host=host)
            journal.record("step", data_step=4, target=40, images=320, seconds=20.0, loss=3.5)


def test_the_newest_round_tells_of_nodes_and_workers(run_dir: Path) -> None:
    assert newest_round(run_dir, 2) is None

    begin_round(run_dir, 0, ["node1", "node1", "node2", "node2", "node3", "node3"])
    assert newest_round(run_dir, 2) == Workers(6, ["node1", "node2", "node3"])

    begin_round(run_dir, 1, ["node1", "node1", "node3", "node3"])
    assert newest_round(run_dir, 2) == Workers(4, ["node1", "node3"])

    # A round whose rank 0 has not begun: the one before is what is known.
    with Journal(run_dir, 2, 2, 1) as journal:
        journal.record("round", world_size=2, host="node9")
    assert newest_round(run_dir, 2) == Workers(4, ["node1", "node3"])
    assert newest_round(run_dir, 1) is None


def test_show_tells_where_a_stage_runs_and_with_how_many_workers(
    run_dir: Path, own: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    own(run_dir)
    begin_round(run_dir, 0, ["node1", "node1", "node2", "node2"])
    me = socket.gethostname(), os.getpid(), start_ticks(os.getpid())
    for number, ended in ((1, 60.0), (2, None)):
        attempt = Attempt(
            number, "train", *me, "17", started=1.0, ended=ended, cause="preemption" if ended else ""
        )
        attempt.directory(run_dir).mkdir(parents=True)
        attempt.save(run_dir)

    assert run(["show", "@last"]) == 0

    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "stage prepare of univip-1: running" in shown
    assert "stage train of univip-1: to do" in shown
    assert "throughput 16.0 images/s over all its steps" in shown
    first, second = [line for line in shown if line.startswith("attempt ")]
    assert first.startswith(f"attempt 1 train on {me[0]}, SLURM job 17, ")
    assert first.endswith(", 59 s: preemption")
    assert second.startswith("attempt 2 train on node1, node2 (4 workers), SLURM job 17, ")
    assert second.endswith(": running")
