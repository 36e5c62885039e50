"""One optimizer step is the same step at any world size."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from univip.config import (
    Backbone,
    MethodConfig,
    MethodName,
    ModelConfig,
    OptimConfig,
    OptimizerName,
    Precision,
    ResilienceConfig,
    ViewsConfig,
)
from univip.data.plan import micro_batches
from univip.engine.distributed import Group
from univip.engine.phases import PhaseClock
from univip.engine.sample_log import Marks
from univip.engine.state import TrainState
from univip.engine.step import GradientBuffer, StepReport, StepSettings, train_step
from univip.methods.build import make_method
from univip.optim.groups import make_optimizer
from univip.resilience.faults import PlantedFaults
from univip.resilience.guard import Guard
from univip.types import Views

IMAGES = 7
STEPS = 2
WORLDS = (4, 2, 3, 4)


def global_views() -> Views:
    generator = torch.Generator().manual_seed(1)
    scenes = torch.randn(IMAGES, 2, 3, 32, 32, generator=generator, dtype=torch.float64)
    instances = torch.randn(2, IMAGES, 2, 3, 16, 16, generator=generator, dtype=torch.float64)
    return Views(scenes, instances[0], instances[1], torch.arange(IMAGES) > 2)


def part(start: int, stop: int) -> Views:
    return Views(*(field[start:stop] for field in global_views()))


def new_state(name: MethodName, optimizer: OptimizerName) -> TrainState:
    torch.manual_seed(3)
    method = make_method(
        MethodConfig(name=name),
        ModelConfig(backbone=Backbone.tiny, hidden_dim=16, embedding_dim=8),
        ViewsConfig(num_instances=2),
    )
    method.online.double()
    method.target.double()
    config = OptimConfig(name=optimizer, exclude_bias_and_norm=optimizer is OptimizerName.lars)
    return TrainState(method, make_optimizer(config, method.online), Guard(ResilienceConfig()))


def train(
    rank: int, size: int, state: TrainState, plant: str = "", *, first: int = 0, steps: int = STEPS
) -> list[StepReport]:
    shares = micro_batches(IMAGES, size, IMAGES)[rank]
    reports, clock = [], PhaseClock()
    for data_step in range(first, first + steps):
        state.data_step = data_step
        report = train_step(
            state,
            [functools.partial(part, *share) for share in shares],
            settings=StepSettings(IMAGES, Precision.fp32, PlantedFaults(plant)),
            group=Group(rank, size),
            buffer=GradientBuffer(state.method.online),
            learning_rate=0.1,
            momentum=0.9,
            counts={"images": sum(stop - start for start, stop in shares)},
            marks=Marks(2**64 - 1, rank),
            stop_requested=rank == size - 1,
            clock=clock,
        )
        reports.append(report)
        assert report.counts == {"images": IMAGES}
        assert report.marks == Marks(2**64 - size, sum(range(size)))
        assert report.stop_requested
        # Of each rank, and told a step later.
        assert [pace > 0.0 for pace in report.paces] == [data_step > first] * size
    return reports


CASES = {  # method, optimizer, world size, fault
    "univip-sgd-2": (MethodName.univip, OptimizerName.sgd, 2, ""),
    "univip-sgd-3": (MethodName.univip, OptimizerName.sgd, 3, ""),
    "byol-lars-3": (MethodName.byol, OptimizerName.lars, 3, ""),
    "skipped-2": (MethodName.univip, OptimizerName.sgd, 2, "nan:loss@0"),
}


def work(rank: int, folder: str) -> None:
    """All cases in one set of processes: most of the time goes into starting them."""
    torch.set_num_threads(1)
    for case, (name, optimizer, size, plant) in CASES.items():
        if rank < size:
            store = f"file://{folder}/{case}"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
            state = new_state(name, optimizer)
            # The fault is planted on one rank only: all of them must judge alike.
            reports = train(rank, size, state, plant if rank == 0 else "")
            verdicts = ",".join(report.judgement.verdict for report in reports)
            save_file(state.tensors(), f"{folder}/{case}-{rank}.safetensors", {"verdicts": verdicts})
            dist.destroy_process_group()
    move(rank, Path(folder))


def move(rank: int, folder: Path) -> None:
    """Train two steps at each of several world sizes; the state goes from one to the next as a file."""
    for number, size in enumerate(WORLDS):
        store = f"file://{folder}/world-{number}"
        if rank < size:
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
            state = new_state(MethodName.univip, OptimizerName.sgd)
            if number:
                facts = json.loads((folder / f"world-{number - 1}.json").read_text())
                state.load(load_file(folder / f"world-{number - 1}.safetensors"), facts)
            reports = train(rank, size, state, first=STEPS * number)
            dist.barrier()  # everybody has read what is written anew
            if rank == 0:
                save_file(state.tensors(), folder / f"world-{number}.safetensors")
                losses = [report.loss for report in reports]
                (folder / f"world-{number}.tmp").write_text(json.dumps({**state.facts(), "losses": losses}))
                (folder / f"world-{number}.tmp").rename(folder / f"world-{number}.json")
            dist.destroy_process_group()
        while not (folder / f"world-{number}.json").exists():  # some ranks have no part in this world
            time.sleep(0.01)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    size = max(WORLDS)
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=size, start_method="forkserver")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_steps_of_any_world_size_are_those_of_one_process(results: Path, case: str) -> None:
    name, optimizer, size, plant = CASES[case]
    state = new_state(name, optimizer)
    train(0, 1, state, plant)
    alone = state.tensors()

    ranks = [load_file(results / f"{case}-{rank}.safetensors") for rank in range(size)]

    for tensors in ranks:
        assert set(tensors) == set(alone)
        for key, value in alone.items():
            torch.testing.assert_close(tensors[key], value, rtol=1e-10, atol=1e-10, msg=key)
            # Replicas are not merely close to each other.
            assert torch.equal(tensors[key], ranks[0][key]), key


def test_a_bad_value_on_one_rank_is_skipped_by_all(results: Path) -> None:
    for rank in range(2):
        with safe_open(results / f"skipped-2-{rank}.safetensors", "pt") as file:
            assert file.metadata() == {"verdicts": "skip,ok"}


def test_the_losses_do_not_tell_that_the_world_changed_its_size(results: Path) -> None:
    state = new_state(MethodName.univip, OptimizerName.sgd)
    alone = [report.loss for report in train(0, 1, state, steps=STEPS * len(WORLDS))]

    found = [json.loads((results / f"world-{number}.json").read_text())["losses"] for number in range(4)]

    assert [loss for losses in found for loss in losses] == pytest.approx(alone, rel=1e-10)
    assert len({round(loss, 6) for loss in alone}) == len(alone)  # it learns: no two are the same
    last = load_file(results / "world-3.safetensors")
    for key, value in state.tensors().items():
        torch.testing.assert_close(last[key], value, rtol=1e-9, atol=1e-9, msg=key)
