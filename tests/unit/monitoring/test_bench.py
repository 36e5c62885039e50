"""The benchmark of the exporter: what it promises in counts; its seconds are for machines at rest."""

from __future__ import annotations

from pathlib import Path

from monitoring import bench


def test_the_exporter_reads_the_ends_of_journals_and_then_what_is_new(tmp_path: Path) -> None:
    result = bench.exporter(tmp_path, num_runs=12, num_live=2, data_steps=5000)

    assert (result["name"], result["better"]) == ("exporter", "lower")
    assert result["ratio"] == result["value"] / result["reference"]
    details = result["details"]
    assert details["first_bytes_per_run"] <= 65_536
    assert 500 < details["later_bytes_per_live_run"] < 2000  # one line
    assert details["damaged_lines"] == 0
    assert 0 < details["memory_mib"] < 300
