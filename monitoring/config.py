"""Schema of what is recorded about a run and where it is served."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MonitoringConfig:
    """All of it describes the site, none of it what is computed."""

    every_steps: int = 10  # data steps between two `step` records
    port: int = 9300
