import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from univip.data.draws import Draws, Purpose, SampleKey
from univip.data.plan import SamplePlan, micro_batches, slices
from univip.errors import ConfigError


def samples(plan: SamplePlan, data_steps: range) -> list[tuple[int, int]]:
    batches = [plan.batch(data_step) for data_step in data_steps]
    return [(int(e), int(i)) for epochs, indices in batches for e, i in zip(epochs, indices, strict=True)]


@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 5))
def test_every_epoch_shows_every_image_once_whatever_the_batch(num_images: int, global_batch: int, seed: int):
    plan = SamplePlan(num_images, global_batch, seed)
    shown = samples(plan, range(3 * num_images // global_batch + 1))

    for epoch in range(3):
        part = shown[epoch * num_images : (epoch + 1) * num_images]
        if len(part) == num_images:
            assert {e for e, _ in part} == {epoch}
            assert sorted(i for _, i in part) == list(range(num_images))


def test_the_batch_size_does_not_change_the_sequence():
    small, large = SamplePlan(17, 4, seed=9), SamplePlan(17, 34, seed=9)

    assert samples(small, range(17)) == samples(large, range(2))


def test_an_epoch_is_the_keyed_permutation():
    epochs, indices = SamplePlan(10, 10, seed=4).batch(3)

    assert epochs.tolist() == [3] * 10
    assert np.array_equal(indices, Draws(SampleKey(4, 3, 0), Purpose.permutation).permutation(10))


def test_epochs_and_seeds_differ():
    orders = [SamplePlan(50, 50, seed).batch(step)[1].tolist() for seed in (0, 1) for step in (0, 1)]

    assert len({tuple(order) for order in orders}) == 4


def test_a_batch_larger_than_the_data_spans_epochs():
    epochs, indices = SamplePlan(3, 8, seed=0).batch(0)

    assert epochs.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(indices[:3].tolist()) == sorted(indices[3:6].tolist()) == [0, 1, 2]


def test_asking_twice_and_out_of_order_gives_the_same():
    plan = SamplePlan(23, 5, seed=2)
    forward = [plan.batch(step)[1].tolist() for step in range(30)]

    assert [plan.batch(step)[1].tolist() for step in reversed(range(30))] == forward[::-1]


def test_the_permutation_cannot_be_written_through():
    _, indices = SamplePlan(5, 5, seed=0).batch(0)
    before = indices.copy()
    indices[:] = 0

    assert np.array_equal(SamplePlan(5, 5, seed=0).batch(0)[1], before)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 61))
def test_micro_batches_cover_the_batch_in_order_and_none_is_empty(batch: int, world: int, limit: int):
    if world > batch or (limit == 1 and batch % world):
        with pytest.raises(ConfigError):
            micro_batches(batch, world, limit)
        return

    cuts = micro_batches(batch, world, limit)
    flat = [cut for rank in cuts for cut in rank]

    assert len(cuts) == world
    assert len({len(rank) for rank in cuts}) == 1
    assert all(0 < stop - start <= limit for start, stop in flat)
    assert [place for start, stop in flat for place in range(start, stop)] == list(range(batch))
    largest = max(stop - start for start, stop in slices(batch, world))
    assert len(cuts[0]) == -(-largest // limit)


def test_slices_differ_by_one_at_most():
    sizes = [stop - start for start, stop in slices(512, 7)]

    assert sum(sizes) == 512
    assert max(sizes) - min(sizes) == 1


def test_a_world_larger_than_the_batch_is_refused_with_the_number_that_fits():
    with pytest.raises(ConfigError, match="at most") as caught:
        slices(4, 5)

    assert "at most 4 ranks" in caught.value.fix


def test_the_limit_that_fits_is_named_and_fits():
    with pytest.raises(ConfigError) as caught:
        micro_batches(5, 2, 1)

    assert caught.value.fix == "train.max_images_per_rank=2"
    assert micro_batches(5, 2, 2) == [[(0, 1), (1, 2)], [(2, 3), (3, 5)]]


@pytest.mark.parametrize(("num_images", "global_batch"), [(0, 1), (1, 0)])
def test_a_plan_of_nothing_is_refused(num_images: int, global_batch: int):
    with pytest.raises(ConfigError, match="at least 1"):
        SamplePlan(num_images, global_batch, seed=0)


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        micro_batches(4, 2, 0)
