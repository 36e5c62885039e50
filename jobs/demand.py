"""What the jobs of one kind of stage ask of SLURM, in the words of the configuration, and by which keys.

Training asks for what `cluster` says. An evaluation takes one GPU of one node and its share of the CPUs; the
jobs that need no GPU - the index of the photographs, and their boxes - may differ by `cluster.proposals`.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from jobs.config import ClusterConfig, NodesConfig

WITH_GPUS = frozenset({"train", "evaluate"})
_GPU_COUNT = re.compile(r"\b(gpu(?::[^:,()]+)?):\d+")  # in a list of generic resources
_OWN = ("account", "partition", "qos", "constraint", "time_h", "mem_gb", "cpus_per_task")


def asked_by(stage: str, cluster: ClusterConfig) -> ClusterConfig:
    """What the jobs of one kind of stage ask for, as if `cluster` were theirs alone."""
    if stage == "train":
        return cluster
    if stage == "evaluate":
        gpus = cluster.gpus_per_node
        return replace(
            cluster,
            nodes=NodesConfig(),
            gpus_per_node=min(1, gpus),
            gres=_GPU_COUNT.sub(r"\1:1", cluster.gres),
            cpus_per_task=math.ceil(cluster.cpus_per_task / max(1, gpus)),
        )
    own = {name: value for name in _OWN if (value := getattr(cluster.proposals, name)) is not None}
    extra = {**cluster.extra, **cluster.proposals.extra}
    own["extra"] = {name: value for name, value in extra.items() if value is not None}
    return replace(cluster, nodes=NodesConfig(), gpus_per_node=0, gpu_type="", gres="", **own)


def key_of(stage: str, name: str, cluster: ClusterConfig) -> str:
    """The key that says what the jobs of one kind of stage ask for, such as `cluster.proposals.time_h`."""
    is_own = stage not in WITH_GPUS and getattr(cluster.proposals, name, None) is not None
    return f"cluster.proposals.{name}" if is_own else f"cluster.{name}"
