"""Prometheus's own programs, from the Debian packages `prometheus` and `prometheus-alertmanager`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Path of a program; without it the test is skipped, or fails where it was to be installed."""

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            why = f"{name} is not installed (Debian packages: prometheus, prometheus-alertmanager)"
            (pytest.fail if os.environ.get("UNIVIP_EXPECT_PROMETHEUS") else pytest.skip)(why)
        assert found is not None
        return found

    return find
