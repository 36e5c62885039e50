import multiprocessing
import os
import signal
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from univip.config import DataConfig, DataFormat, InstanceViews, ProposalsConfig, ViewsConfig
from univip.data.batch import HostBatch, make_views
from univip.data.images import ImageIndex, write_index
from univip.data.loader import BatchSource, open_batches
from univip.data.plan import SamplePlan
from univip.data.proposals import RAW, ProposalStore, column, make_rows, write_store
from univip.data.samples import SampleReader
from univip.data.scan import scan
from univip.errors import UnivipError

VIEWS = ViewsConfig(scene_size=32, instance_size=16, min_overlap=24)
NUM_IMAGES = 7
GLOBAL_BATCH = 6


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SampleReader:
    folder = tmp_path_factory.mktemp("loader")
    root = folder / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((90 + number, 80)).save(root / f"{number}.png")
    data = DataConfig(format=DataFormat.folder, root=str(root))
    write_index(scan(data), folder / "images.arrow")
    index = ImageIndex.open(folder / "images.arrow")
    boxes = [np.array([(x, 10, 24, 30) for x in range(0, 60, 15)], np.int32)] * len(index)
    lists = dict.fromkeys((RAW, column(24)), boxes)
    rows = make_rows(index.ids, index.sizes, ["ok"] * len(index), lists)
    write_store(folder / "proposals.arrow", [rows], {"fingerprint": index.fingerprint, "min_sizes": [24]})
    store = ProposalStore.open(folder / "proposals.arrow")
    return SampleReader(data, index, store, ProposalsConfig(min_sizes=[24]), VIEWS, seed=3)


def source(reader: SampleReader, rank: int = 0, world_size: int = 1, most: int = 100) -> BatchSource:
    return BatchSource(reader, GLOBAL_BATCH, rank, world_size, most)


def flat(batches: list[HostBatch]) -> list[torch.Tensor]:
    """All that a method sees of a data step, and who is in it."""
    views = [make_views(batch, InstanceViews.two, torch.device("cpu")) for batch in batches]
    return [
        *(torch.cat(column) for column in zip(*views, strict=True)),
        torch.from_numpy(np.concatenate([batch.ids for batch in batches])),
        torch.from_numpy(np.concatenate([batch.epochs for batch in batches])),
    ]


def identical(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def read_all(
    reader: SampleReader, steps: range, world_size: int, most: int, workers: int
) -> list[list[HostBatch]]:
    """The micro-batches of every data step, in the order of the global batch."""
    ranks = []
    for rank in range(world_size):
        stream = open_batches(source(reader, rank, world_size, most), steps, workers=workers)
        pairs = list(stream)
        assert [data_step for data_step, _ in pairs] == list(steps)
        ranks.append([batches for _, batches in pairs])
    return [[batch for rank in ranks for batch in rank[place]] for place in range(len(steps))]


@pytest.fixture(scope="module")
def expected(reader: SampleReader) -> list[list[torch.Tensor]]:
    return [flat(batches) for batches in read_all(reader, range(4), world_size=1, most=100, workers=0)]


@pytest.mark.parametrize(("world_size", "most"), [(1, 2), (1, 4), (2, 100), (2, 2), (3, 100), (3, 1)])
def test_pixels_do_not_depend_on_the_number_of_ranks_or_micro_batches(
    reader: SampleReader, expected: list[list[torch.Tensor]], world_size: int, most: int
):
    found = [flat(batches) for batches in read_all(reader, range(4), world_size, most, workers=0)]

    assert all(identical(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("world_size", [1, 3])
def test_pixels_do_not_depend_on_the_number_of_workers(
    reader: SampleReader, expected: list[list[torch.Tensor]], world_size: int
):
    found = [flat(batches) for batches in read_all(reader, range(4), world_size, 100, workers=2)]

    assert all(identical(one, other) for one, other in zip(expected, found, strict=True))


def test_reading_can_begin_anywhere_and_leave_steps_out(
    reader: SampleReader, expected: list[list[torch.Tensor]]
):
    found = list(open_batches(source(reader), [3, 1], workers=0))

    assert [data_step for data_step, _ in found] == [3, 1]
    assert identical(flat(found[0][1]), expected[3])
    assert identical(flat(found[1][1]), expected[1])


def test_a_data_step_holds_the_images_of_the_plan(reader: SampleReader, expected: list[list[torch.Tensor]]):
    plan = SamplePlan(NUM_IMAGES, GLOBAL_BATCH, seed=3)

    for data_step, (*_, ids, epochs) in enumerate(expected):
        planned_epochs, rows = plan.batch(data_step)
        assert ids.tolist() == reader.index.ids[rows].tolist()
        assert epochs.tolist() == planned_epochs.tolist()


def test_a_closed_stream_stops_its_workers_and_endless_steps_are_fine(reader: SampleReader):
    stream = open_batches(source(reader), count(), workers=2)
    next(stream)
    workers = multiprocessing.active_children()
    assert len(workers) == 2

    stream.close()

    assert not any(worker.is_alive() for worker in workers)


def test_workers_ignore_the_signals_that_the_training_process_handles(reader: SampleReader):
    stream = open_batches(source(reader), range(6), workers=1)
    next(stream)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        os.kill(worker.pid, number)

    assert [data_step for data_step, _ in stream] == [1, 2, 3, 4, 5]


def read_and_wait(reader: SampleReader, pids: multiprocessing.SimpleQueue) -> None:  # type: ignore[type-arg]
    stream = open_batches(source(reader), count(), workers=1)
    next(stream)
    pids.put([child.pid for child in multiprocessing.active_children()])
    signal.pause()


@pytest.mark.slow
def test_workers_go_when_the_training_process_is_killed(reader: SampleReader):
    context = multiprocessing.get_context("spawn")
    pids = context.SimpleQueue()
    trainer = context.Process(target=read_and_wait, args=(reader, pids))
    trainer.start()
    (worker,) = pids.get()
    assert Path(f"/proc/{worker}").exists()

    trainer.kill()
    trainer.join()

    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_global_random_state_is_left_alone(reader: SampleReader):
    before = torch.get_rng_state()
    stream = open_batches(source(reader), range(2), workers=1)
    next(stream)
    stream.close()

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_with_its_three_lines(reader: SampleReader, tmp_path: Path, workers: int):
    moved = replace(reader, data=replace(reader.data, root=str(tmp_path)))

    with pytest.raises(UnivipError) as caught:
        next(open_batches(source(moved), range(2), workers=workers))

    assert caught.value.where == str(tmp_path)
    assert str(caught.value).count("\n") == 2
