"""How the engine reports without knowing who listens.

The engine calls `Observer.record(kind, **fields)`; the composition root plugs the journal in. An observer
never raises.
"""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Receives one event; fields are JSON values (numbers, strings, lists, dicts)."""

    def record(self, kind: str, **fields: object) -> None:
        """Take one event; must return at once and never raise."""
        ...


class NullObserver:
    """Listens to nothing."""

    def record(self, kind: str, **fields: object) -> None:
        """Drop the event."""
