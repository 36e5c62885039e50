"""`univip doctor` on a real SLURM: what it says is right, and what is wrong is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from jobs.config import ClusterConfig
from launcher.site import ask_site, parse_associations, parse_nodes, parse_partitions, site_yaml

if TYPE_CHECKING:
    from conftest import Cluster

UNIVIP = [sys.executable, "-c", "from launcher.cli.main import main; main()"]
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def ask(cluster: Cluster, folder: Path, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status, and the rows by check."""
    done = subprocess.run(
        [*UNIVIP, "doctor", "--json", "cluster=slurm", *words],
        env=cluster.environment | {"UNIVIP_RUNS": str(folder / "runs")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {row["check"]: row for row in rows}


def test_a_sound_cluster_is_sound_and_a_node_sees_the_runs(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s $(touch pwned) "é"'  # a job is sent there, and writes there
    code, rows = ask(cluster, folder, "--deep")

    assert code == 0, rows
    for check in ("SLURM", "partition", "account", "nodes", "time limit", "job train", "node"):
        assert rows[check]["level"] == "OK", rows[check]
    assert "node requeue" not in rows
    assert "has no NVIDIA driver" in rows["node torch"]["found"]  # its GPUs are claims
    assert "shared" not in rows
    assert "node" in rows["node"]["found"].partition(" ran job ")[0]  # node1, not this machine
    assert list((folder / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("word", "check"),
    [
        ("cluster.partition=gpus", "partition"),
        ("cluster.account=nobody", "account"),
        ("cluster.qos=urgent", "qos"),
        ("cluster.gpus_per_node=9", "nodes"),
        ("cluster.gres=gpu:9", "nodes"),
        ("cluster.gres=tpu:1", "job train"),
        ("cluster.gpu_type=h100", "nodes"),
        ("cluster.time_h=72", "time limit"),
        ("cluster.proposals.partition=shrot", "partition (boxes)"),
        ("cluster.proposals.partition=short", "time limit (boxes)"),
    ],
)
def test_what_a_request_lacks_is_missing(cluster: Cluster, tmp_path: Path, word: str, check: str) -> None:
    code, rows = ask(cluster, tmp_path, word)

    assert code == 1
    assert rows[check]["level"] == "MISS"


def test_what_this_slurm_prints_is_read(cluster: Cluster) -> None:
    partitions = parse_partitions(cluster.run("scontrol", "show", "partition", "--oneliner"))
    nodes = parse_nodes(cluster.run("sinfo", "--noheader", "--exact", "--format=%R|%D|%c|%m|%t|%G"))
    show = ["sacctmgr", "--noheader", "--parsable2", "show"]
    mine = parse_associations(cluster.run(*show, "associations", "user=root", "format=Account,Partition,QOS"))

    assert partitions["main"].is_default
    assert partitions["main"].max_time_h == 48
    assert sum(each.count for each in nodes if each.partition == "main") == 4
    assert sum(each.count for each in nodes if each.partition == "short") == 2
    assert all(each.num_gpus == 8 for each in nodes)
    assert {"normal", "low", "high"} <= {name for each in mine for name in each.qos}


def test_the_site_file_says_what_the_cluster_is(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))

    written = yaml.safe_load(site_yaml(ask_site(), ClusterConfig()))["cluster"]

    assert written == {
        "partition": "main",
        "account": "research",
        "gpus_per_node": 8,
        "cpus_per_task": 64,
        "time_h": 24,
    }
