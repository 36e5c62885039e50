"""Schemas of every option of the method and its engine.

Frozen dataclasses with the defaults of the paper; YAML only picks values. A field marked `site()` describes
where or how fast a run executes, not what it computes: it does not enter the identity of a run
(`jobs/config.py`). Units are in the names. This module imports nothing heavy: the command line loads it for
`--help`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SEARCH = "search"  # of the photographs: where boxes come from unless they are imported
MISSING = "???"  # OmegaConf's mark for a value the user must give


def site(default: Any) -> Any:
    """A field that may change between attempts of one run: where it runs, or how fast."""
    return field(default=default, metadata={"site": True})


class DataFormat(StrEnum):
    """How the photographs lie on disk."""

    coco = "coco"
    folder = "folder"


class SearchMode(StrEnum):
    """Selective search modes, as OpenCV defines them."""

    single = "single"
    fast = "fast"
    quality = "quality"


class SearchEngine(StrEnum):
    """`fast`: our own selective search. `opencv`: the reference; the same boxes in another order."""

    fast = "fast"
    opencv = "opencv"


class MinSizePolicy(StrEnum):
    """Which filtered list a candidate region takes its boxes from; see `univip/data/views.py`."""

    nested = "nested"
    image = "image"
    two_phase = "two_phase"
    smallest = "smallest"
    largest = "largest"


class InstanceViews(StrEnum):
    """Whether online and target see two augmentations of an instance, or one shared by both."""

    two = "two"
    shared = "shared"


class MethodName(StrEnum):
    """Pre-training methods."""

    byol = "byol"
    univip = "univip"


class Backbone(StrEnum):
    """Backbones; the ResNets carry torchvision's key names."""

    tiny = "tiny"
    resnet18 = "resnet18"
    resnet50 = "resnet50"


class OptimizerName(StrEnum):
    """Optimizers."""

    sgd = "sgd"
    lars = "lars"


class Precision(StrEnum):
    """Arithmetic of the forward pass; losses and transport are always fp32."""

    fp32 = "fp32"
    bf16 = "bf16"


class Transport(StrEnum):
    """`balanced`: unit mass, bounded (default). `paper_literal`: the equations as printed, unbounded."""

    balanced = "balanced"
    paper_literal = "paper_literal"


@dataclass(frozen=True)
class DataConfig:
    """Where the photographs are and how they are read."""

    format: DataFormat = DataFormat.coco
    root: str = site(MISSING)
    split: Any = "train2017"  # one split or a list of splits, used together
    max_pixels: int = 50_000_000
    max_images: int = 0  # 0 = all; otherwise the first ones in index order
    workers: int = site(4)  # loader processes per rank; 0 reads in the training process


@dataclass(frozen=True)
class ProposalsConfig:
    """Selective search and the two filtered lists (ORL's stage 2, without its topN)."""

    source: str = SEARCH  # or what `univip proposals import` calls the files it has read
    mode: SearchMode = SearchMode.fast
    engine: SearchEngine = SearchEngine.fast
    min_sizes: list[int] = field(
        default_factory=lambda: [64, 96]
    )  # px; each list is filtered from the raw boxes
    max_ratio: float = 3.0
    max_iou: float = 0.5
    shard_minutes: float = site(10.0)  # about how long a shard takes
    shard_images: int = site(5000)  # of one shard at most, about: their boxes are held in memory
    processes: int = site(0)  # searching processes per shard; 0 = one per core
    image_timeout_s: float = site(600.0)  # after which an image is given up; large ones have longer


@dataclass(frozen=True)
class ViewsConfig:
    """Geometry of the scene pair and its K shared instances (paper algorithm 1)."""

    num_instances: int = 4
    trials: int = 20
    max_draws: int = 100  # hard cap, counting draws whose overlap is too small
    min_overlap: int = 64  # px, both edges of the overlap
    min_size_policy: MinSizePolicy = MinSizePolicy.nested
    instance_views: InstanceViews = InstanceViews.two
    scene_size: int = 224
    instance_size: int = 96
    min_scale: float = 0.08


@dataclass(frozen=True)
class ModelConfig:
    """Backbone and heads."""

    backbone: Backbone = Backbone.resnet50
    hidden_dim: int = 4096
    embedding_dim: int = 256


@dataclass(frozen=True)
class MethodConfig:
    """Losses of BYOL and UniVIP."""

    name: MethodName = MethodName.univip
    momentum: float = 0.99  # of the target at data step 0; rises to 1 along a cosine
    cosine_scale: float = 2.0  # 2 = BYOL's 2 - 2 cos; every term is multiplied by it
    transport: Transport = Transport.balanced
    sinkhorn_epsilon: float = 0.1
    sinkhorn_iterations: int = 50


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedule; the learning rate is base_lr * global_batch / 256."""

    name: OptimizerName = OptimizerName.sgd
    base_lr: float = 0.2
    weight_decay: float = 1e-4
    momentum: float = 0.9
    warmup_epochs: float = 4.0
    exclude_bias_and_norm: bool = False  # of weight decay (and of LARS adaptation); true for the LARS recipes
    lars_trust: float = 1e-3


@dataclass(frozen=True)
class TrainConfig:
    """The run: how long, how large, in which arithmetic."""

    seed: int = 0
    epochs: float = 800.0
    max_steps: int = 0  # data steps; 0 = from `epochs`
    global_batch: int = 512
    max_images_per_rank: int = site(64)
    precision: Precision = Precision.bf16
    deterministic: bool = False
    threads: int = site(0)  # CPU threads per rank; 0 = cores / ranks of this node


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is written and how much of it is kept."""

    # Data steps between two. 0 = chosen by what a save costs and by `mtbf_h`, once, see engine/cadence.py;
    # what a run becomes after a rollback then depends on what was measured.
    every_steps: int = site(500)
    # Mean time between ends of the run that nothing announces, on all its nodes: time limits and preemption
    # save first. Once a day is pessimistic for one sound node, but the interval follows only the root of it:
    # taken four times too short, it costs a quarter more than the least. The run's own restarts are not
    # counted: there are hardly any yet when the choice is made.
    mtbf_h: float = site(24.0)
    keep_last: int = site(3)


@dataclass(frozen=True)
class ResilienceConfig:
    """The guard's limits, set so that a sound run never meets one. A person looks when a budget is spent.

    The ladder: skip the batch; go back and jump over what led there; where that does not last for
    `calm_steps`, go back further and be calm (fp32, gradients clipped to their usual norm) for as long; stop.
    """

    healthy_after_steps: int = 50  # good steps before a checkpoint is a rollback target
    max_consecutive_skips: int = 5  # one bad photograph costs one skip; more in a row: suspect the state
    # Twice what a persistent spike needs and more, so that the median stays with the steps before it; short
    # beside warm-up and schedule, whose slopes must not look like spikes.
    spike_window: int = 128  # data steps
    # Gradient norms are heavy-tailed, a long way from normal: at 8 one step in thousands is recorded, ...
    spike_threshold: float = 8.0  # standard deviations, by median and median deviation
    max_consecutive_spikes: int = 16  # ... but so many of them in a row are no chance
    skip_window_steps: int = 8  # data steps before the fault that a rollback jumps over
    max_rollbacks: int = site(5)  # of the whole run
    max_calm_rollbacks: int = site(2)  # of these
    calm_steps: int = 500  # data steps; trouble again within as many is the same trouble
    collapse_std: float = site(0.05)  # embedding spread, 1 is healthy and 0 is collapse; only warns
    collapse_after_steps: int = site(200)  # data steps below it, before it warns
    # The most that a bit flipped in the memory of one rank can cost; besides, before every checkpoint.
    replica_check_every: int = 50  # steps
    max_capsules: int = site(10)  # of the whole run; each may keep one checkpoint from being deleted
    # Once per attempt and node, before anything trains: 0.1 s on a CPU, the start of CUDA and more on GPUs.
    preflight: bool = site(True)
    max_restarts: int = site(3)  # rounds in a row that end without a new checkpoint
    hang_timeout_s: float = site(180.0)  # without progress of a rank for which the others wait
    collective_timeout_s: float = site(300.0)


@dataclass(frozen=True)
class EvaluateConfig:
    """Weighted nearest neighbours on frozen features, and what the features look like."""

    split: Any = ""  # labelled split(s) to query; empty = the training split against itself
    neighbours: int = 20
    temperature: float = 0.07
    batch: int = 64
    max_images: int = 0  # 0 = all
