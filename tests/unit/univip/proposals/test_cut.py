"""Shards: whole, in order, of nearly equal work."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from univip.proposals.cut import SECONDS_PER_MEGAPIXEL, count_shards, cut, search_seconds


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=60), st.data())
def test_every_image_is_in_one_shard_and_no_shard_is_empty(pixels: list[int], data: st.DataObject) -> None:
    num_shards = data.draw(st.integers(1, len(pixels)))

    borders = cut(pixels, num_shards)

    assert (borders[0], borders[-1], len(borders)) == (0, len(pixels), num_shards + 1)
    assert all(start < stop for start, stop in pairwise(borders))


@given(st.lists(st.integers(1, 10**4), min_size=200, max_size=300), st.integers(2, 8))
def test_no_shard_is_more_than_its_share_and_an_image(pixels: list[int], num_shards: int) -> None:
    borders = cut(pixels, num_shards)

    work = [sum(pixels[start:stop]) for start, stop in pairwise(borders)]
    assert max(work) <= sum(pixels) / num_shards + max(pixels)


def test_images_of_one_size_are_shared_out_evenly() -> None:
    assert cut([7] * 6, 3) == [0, 2, 4, 6]
    assert cut([7] * 5, 3) == [0, 2, 4, 5]


def test_there_are_as_many_shards_as_the_work_asks_for_within_limits() -> None:
    asked = {"shard_core_seconds": 600.0, "most_images": 5000}
    assert count_shards(118_287, 12 * 3600, **asked) == 72
    assert count_shards(1_000_000, 3600, **asked) == 200  # many cheap images
    assert count_shards(3, 10**9, **asked) == 3
    assert count_shards(3, 0.0, **asked) == 1


def test_the_cost_of_coco_is_what_it_was_seen_to_be() -> None:
    """OpenCV took about 3 s for a photograph of COCO; the fast engine a fifth of that at most."""
    photograph = 640 * 480

    assert 1.5 < search_seconds(photograph, "opencv", "fast") < 6
    assert search_seconds(photograph, "fast", "fast") < search_seconds(photograph, "opencv", "fast") / 5
    assert {len(modes) for modes in SECONDS_PER_MEGAPIXEL.values()} == {3}
