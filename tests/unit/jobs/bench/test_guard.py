"""What `univip bench guard` adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.bench.guard import guard


def test_the_parts_add_up_and_what_is_rare_counts_as_rare(photographs: Path) -> None:
    result = guard(photographs, global_batch=4, data_steps=50)

    parts = result["details"]["ms_per_step"]
    assert list(parts) == ["scan", "verdict", "replicas", "ledger"]
    assert all(part > 0 for part in parts.values())
    assert sum(parts.values()) == pytest.approx(result["value"])
    assert result["ratio"] == pytest.approx(result["value"] / result["reference"])
    assert result["ratio"] < 1
