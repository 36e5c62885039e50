"""Synchronised normalisation at world sizes 2 and 3 over gloo equals one process; all ranks agree bit by bit.

Three processes are started once. Each joins a group of two (rank 2 stays out) and then one of three, runs the
same scenarios in both, and leaves what it saw in a file; the tests compare the files with a single process.
"""

import multiprocessing
import runpy
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from univip.config import Backbone, MethodConfig, ModelConfig, ViewsConfig
from univip.methods.build import make_method
from univip.models.norm import SynchronizedBatchNorm, commit_statistics
from univip.types import Views

SLICES = {1: [7], 2: [5, 2], 3: [4, 2, 1]}  # images of each rank
NO_ROWS = {1: [7], 2: [7, 0], 3: [4, 0, 3]}  # as a rank without instances has it
CHANNELS = 3
NUM_IMAGES = 7
HAS_INSTANCES = [True, True, False, True, False, False, False]  # only rank 0 has images with instances


def norm_scenario(rows, dtype, offset):
    """Two forwards before one commit, with a loss whose gradient differs everywhere."""
    torch.manual_seed(0)
    module = SynchronizedBatchNorm(CHANNELS).to(dtype)
    nn.init.normal_(module.weight)
    seen = {}
    for step in range(2):
        x, factors = torch.randn(2, NUM_IMAGES, CHANNELS, 4, 2, dtype=torch.float64)
        x = (x * (step + 1.0) + offset).to(dtype)[rows].clone().requires_grad_()
        y = module(x)
        (y.sin() * factors.to(dtype)[rows]).sum().backward()
        seen |= {f"y{step}": y.detach(), f"dx{step}": x.grad}
    commit_statistics(module)
    seen |= {f"d{name}": parameter.grad for name, parameter in module.named_parameters()}
    return seen | {f"buffer.{name}": buffer for name, buffer in module.named_buffers()}


def method_scenario(rows):
    """A backward of UniVIP, in which a rank may hold no image with instances."""
    torch.manual_seed(0)
    method = make_method(
        MethodConfig(), ModelConfig(backbone=Backbone.tiny, hidden_dim=16, embedding_dim=8), ViewsConfig()
    )
    method.online.double()
    method.target.double()
    scenes = torch.randn(NUM_IMAGES, 2, 3, 32, 32, dtype=torch.float64)
    instances = torch.randn(2, NUM_IMAGES, 4, 3, 16, 16, dtype=torch.float64)
    views = Views(scenes[rows], instances[0, rows], instances[1, rows], torch.tensor(HAS_INSTANCES)[rows])
    result = method.losses(views)
    (result.total.sum() / NUM_IMAGES).backward()
    commit_statistics(method.online)
    commit_statistics(method.target)
    seen = {"loss": result.total.detach()}
    seen |= {f"gradient.{name}": parameter.grad for name, parameter in method.online.named_parameters()}
    for side in ("online", "target"):
        seen |= {f"buffer.{side}.{name}": value for name, value in getattr(method, side).named_buffers()}
    return seen


def scenarios(rank, world_size):
    """What one rank sees, as a flat dictionary."""

    def rows(counts):
        start = sum(counts[world_size][:rank])
        return slice(start, start + counts[world_size][rank])

    parts = {
        "double": norm_scenario(rows(SLICES), torch.float64, 2.0),
        "no rows": norm_scenario(rows(NO_ROWS), torch.float64, 2.0),
        "single": norm_scenario(rows(SLICES), torch.float32, 1000.0),
        "method": method_scenario(rows(SLICES)),
    }
    return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}


def run_rank(rank, folder):
    torch.set_num_threads(1)
    for world_size in (2, 3):
        if rank < world_size:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store{world_size}",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=30),
            )
            save_file(scenarios(rank, world_size), folder / f"{world_size}-{rank}.safetensors")
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Of each world size, what each rank saw; world size 1 is this process."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "safetensors.torch"])
    # By path, because a test file is no module that another process could import.
    processes = [
        context.Process(
            target=runpy.run_path,
            args=(__file__,),
            kwargs={"init_globals": {"RANK": rank, "FOLDER": str(folder)}, "run_name": "__rank__"},
        )
        for rank in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0, 0]
    seen = {
        world_size: [load_file(folder / f"{world_size}-{rank}.safetensors") for rank in range(world_size)]
        for world_size in (2, 3)
    }
    return seen | {1: [scenarios(0, 1)]}


WORLDS = pytest.mark.parametrize("world_size", [2, 3])
PARTS = pytest.mark.parametrize("part", ["double", "no rows"])


@WORLDS
@PARTS
def test_outputs_and_input_gradients_are_those_of_one_process(ranks, world_size, part):
    for name in (f"{part}/{value}{step}" for value in ("y", "dx") for step in (0, 1)):
        together = torch.cat([seen[name] for seen in ranks[world_size]])

        torch.testing.assert_close(together, ranks[1][0][name], rtol=1e-11, atol=1e-11)


@WORLDS
@PARTS
def test_parameter_gradients_add_up_to_those_of_one_process(ranks, world_size, part):
    for name in (f"{part}/dweight", f"{part}/dbias"):
        together = sum(seen[name] for seen in ranks[world_size])

        torch.testing.assert_close(together, ranks[1][0][name], rtol=1e-11, atol=1e-11)


@WORLDS
@PARTS
def test_buffers_are_those_of_torch_on_the_whole_batch(ranks, world_size, part):
    reference = nn.BatchNorm2d(CHANNELS).double()
    torch.manual_seed(0)
    nn.init.normal_(torch.empty(CHANNELS, dtype=torch.float64))  # the draw of the weight
    for step in range(2):
        x, _ = torch.randn(2, NUM_IMAGES, CHANNELS, 4, 2, dtype=torch.float64)
        reference(x * (step + 1.0) + 2.0)

    for seen in ranks[world_size]:
        for name, buffer in reference.named_buffers():
            torch.testing.assert_close(seen[f"{part}/buffer.{name}"], buffer, rtol=1e-12, atol=1e-12)


@WORLDS
def test_buffers_have_the_same_bytes_on_every_rank(ranks, world_size):
    first = ranks[world_size][0]
    buffers = [name for name in first if "/buffer." in name]
    assert any(name.startswith("single/") for name in buffers)

    for other in ranks[world_size][1:]:
        for name in buffers:
            assert other[name].numpy().tobytes() == first[name].numpy().tobytes(), name


@WORLDS
def test_fp32_far_from_zero_keeps_its_variance(ranks, world_size):
    exact = ranks[1][0]["double/buffer.running_var"]  # the same numbers, less far from zero

    torch.testing.assert_close(
        ranks[world_size][0]["single/buffer.running_var"].double(), exact, rtol=1e-4, atol=0
    )


@WORLDS
def test_univip_gradients_agree_although_ranks_lack_instances(ranks, world_size):
    single = ranks[1][0]
    for name in (name for name in single if name.startswith("method/gradient.")):
        together = sum(seen[name] for seen in ranks[world_size])

        torch.testing.assert_close(together, single[name], rtol=1e-10, atol=1e-10)
    losses = torch.cat([seen["method/loss"] for seen in ranks[world_size]])
    torch.testing.assert_close(losses, single["method/loss"], rtol=1e-10, atol=1e-10)
    for name in (name for name in single if name.startswith("method/buffer.")):
        torch.testing.assert_close(ranks[world_size][-1][name], single[name], rtol=1e-10, atol=1e-10)


if __name__ == "__rank__":
    run_rank(RANK, Path(FOLDER))  # type: ignore[name-defined]  # noqa: F821
