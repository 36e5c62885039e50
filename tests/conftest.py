"""What every test shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

# Before anything loads torch: its threads spin while they wait, and tiny networks gain nothing from two.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell's background jobs ignore it, and would hand that down to the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What passed once passes again: a rare case is found by whoever looks for it, `--hypothesis-profile=default`.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real photographs and annotations beside the checkout; tests that need them skip without them."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real photographs is absent")
    return folder
