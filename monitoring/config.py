"""Schema of what is recorded about a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MonitoringConfig:
    """Describes the site, not what is computed."""

    every_steps: int = 10  # data steps between two `step` records
