"""The fast engine is compiled as one: its modules call each other, and their machine code has one cache."""

from __future__ import annotations

from typing import Any

from univip.proposals.machine_code import Store

# Machine numbers: the declared type counts, and numba converts at every call what NumPy's types keep apart.
Scalar = Any

store = Store("search", "compiled", "sorting", "segmentation", "regions", "merging", "grouping")
compiled = store.compiled
publish = store.publish
