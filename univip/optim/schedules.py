"""Schedules in global data steps: independent of ranks, micro-batches and restarts.

A data step is one batch of the sample plan, applied or skipped; batches cross epoch borders, so a run of E
epochs over N images with batch G has ceil(E * N / G) of them (COCO, 800 epochs, batch 512: 184,824).
"""

from __future__ import annotations

import math
from fractions import Fraction


def total_data_steps(epochs: float, num_images: int, global_batch: int) -> int:
    """Data steps that cover `epochs` passes over the images; also for the warm-up.

    Exact: `epochs` is read as the decimal it prints as, so 0.1 epochs of 1000 images are 100 images, not a
        little more.

    Args:
        epochs: Passes over the images; may be a fraction.
        num_images: N.
        global_batch: G, images per data step over all ranks.
    """
    return math.ceil(Fraction(str(epochs)) * num_images / global_batch)


def peak_learning_rate(base_lr: float, global_batch: int) -> float:
    """Learning rate after the warm-up: `base_lr` per 256 images of the global batch."""
    return base_lr * global_batch / 256


def learning_rate(data_step: int, *, peak: float, warmup_data_steps: int, total_data_steps: int) -> float:
    """Linear from peak / warm-up at data step 0 to the peak, then along a cosine to 0 at the end of the run.

    Args:
        data_step: Position in the run, from 0.
        peak: Learning rate at the end of the warm-up.
        warmup_data_steps: Length of the warm-up; 0 for none. A run shorter than this ends while still rising.
        total_data_steps: Where the run ends.
    """
    if data_step < warmup_data_steps:
        return peak * (data_step + 1) / warmup_data_steps
    progress = (data_step - warmup_data_steps) / max(total_data_steps - warmup_data_steps, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
