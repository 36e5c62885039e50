"""What rank 0 tells the others arrives as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor

from univip.engine.distributed import Group

SIZE = 3


def tensors_of(rank: int) -> dict[str, Tensor]:
    """Alike on all ranks but for the values, and for two that only rank 0 has like this."""
    generator = torch.Generator().manual_seed(rank)
    tensors = {
        "large": torch.randn(300_000, generator=generator),
        "small": torch.randn(3, 5, generator=generator),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "count": torch.tensor(rank + 1),
        "none": torch.zeros(0, 2),
    }
    tensors["small"][0, 0] = torch.nan
    if rank == 0:
        tensors["alone"] = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    tensors["other"] = torch.full((2,) if rank == 0 else (3,), float(rank))
    return tensors


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    mine = tensors_of(rank)
    received = Group(rank, SIZE).broadcast_tensors(mine)
    is_written_over = all(received[name] is mine[name] for name in ("large", "small", "half", "count"))
    assert is_written_over
    save_file(received, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=SIZE, start_method="forkserver")
    return folder


@pytest.mark.parametrize("rank", range(SIZE))
def test_every_rank_ends_with_the_tensors_of_rank_0_bit_by_bit(results: Path, rank: int) -> None:
    received = load_file(results / f"{rank}.safetensors")

    expected = tensors_of(0)
    assert set(received) == set(expected)
    for name, value in expected.items():
        assert (received[name].dtype, received[name].shape) == (value.dtype, value.shape)
        assert (
            received[name].view(-1).view(torch.uint8).numpy().tobytes()
            == value.view(-1).view(torch.uint8).numpy().tobytes()
        )


def test_one_rank_alone_keeps_its_tensors() -> None:
    mine = tensors_of(0)

    received = Group().broadcast_tensors(mine)

    assert all(received[name] is mine[name] for name in mine)
    assert set(received) == set(mine)
