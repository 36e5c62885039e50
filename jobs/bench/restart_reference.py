"""A training loop as one writes it for the torchrun command: what `jobs/bench/restart.py` measures against.

It imports torch, joins its process group, goes on from its checkpoint, and then trains a network of two
layers: gradients are summed over the ranks, and every third step is saved. Rank 0 notes when each step was
done, and which start of the workers did it.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

STEP_S = 0.1
SAVE_EVERY = 3
STEPS = "steps"  # file of lines `Unix time, number of the start`


def train(folder: Path) -> None:
    """Train until somebody ends this process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, restarts = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"]
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    checkpoint = folder / "state.safetensors"
    if checkpoint.exists():
        network.load_state_dict(load_file(str(checkpoint)))
    (folder / f"pid-{restarts}-{rank}").write_text(str(os.getpid()), encoding="utf-8")
    with (folder / STEPS).open("a", encoding="utf-8") as steps:
        for step in count(1):
            optimizer.zero_grad()
            network(torch.rand(8, 64)).square().mean().backward()
            for parameter in network.parameters():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
            optimizer.step()
            if rank == 0:
                steps.write(f"{time.time()} {restarts}\n")
                steps.flush()
                if step % SAVE_EVERY == 0:
                    save_file(network.state_dict(), folder / "new.safetensors")
                    (folder / "new.safetensors").rename(checkpoint)
            time.sleep(STEP_S)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
