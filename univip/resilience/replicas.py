"""Whether the ranks still hold the same bits, as every step is meant to leave them.

A bit that flips in the memory of one rank makes no value infinite and stops no step: that rank trains another
network from then on, and spoils the gradients of all. The only sign is that the replicas differ.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from univip.engine.distributed import Group
    from univip.engine.state import TrainState

_NAMED = 3  # tensors


class ReplicaCheck:
    """Compares digests of the state over the ranks.

    Args:
        group: The ranks; alone, nothing is ever due.
        every_steps: Optimizer steps between two comparisons.
    """

    def __init__(self, group: Group, *, every_steps: int) -> None:
        self.group = group
        self.every_steps = every_steps

    def is_due(self, step: int) -> bool:
        """Whether to compare after this many optimizer steps."""
        return self.group.size > 1 and step % self.every_steps == 0

    def difference(self, state: TrainState) -> str:
        """In words who differs where; empty if nobody does. All ranks call this, and get the same answer."""
        if self.group.size == 1:
            return ""
        sums = state.digest()
        short = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
        if len(set(self.group.gather(short))) == 1:
            return ""
        return describe(self.group.gather(sums))


def describe(digests: Sequence[dict[str, int]]) -> str:
    """Which ranks differ from the others, and in which tensors.

    Args:
        digests: Of each rank, at least two of them different: name of each tensor to the sum of its bits.
    """
    keys = [json.dumps(digest, sort_keys=True) for digest in digests]
    (common, votes), *_ = Counter(keys).most_common()
    names = [name for name in digests[0] if len({digest[name] for digest in digests}) > 1]
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    where = f"in {', '.join(f'`{name}`' for name in names[:_NAMED])}{rest}"
    if 2 * votes > len(digests):
        culprits = ", ".join(str(rank) for rank, key in enumerate(keys) if key != common)
        return f"rank {culprits} differs from the other {votes} ranks {where}"
    suspects = ", ".join(map(str, range(len(digests))))
    return f"ranks {suspects} differ from each other {where}; too few agree to tell which is wrong"
