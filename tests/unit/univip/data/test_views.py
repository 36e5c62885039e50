import math
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from univip.config import MinSizePolicy, ViewsConfig
from univip.data import views as views_module
from univip.data.draws import SampleKey
from univip.data.views import SampledViews, sample_views
from univip.types import Boxes

VIEWS = ViewsConfig()
NO_BOXES = np.empty((0, 4), np.int32)
NOTHING = {64: NO_BOXES, 96: NO_BOXES}

Box = tuple[int, int, int, int]


def iou(a: Box, b: Box) -> float:
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(across, 0) * max(down, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def within(box: Box, region: Box) -> bool:
    return (
        box[0] >= region[0]
        and box[1] >= region[1]
        and box[0] + box[2] <= region[0] + region[2]
        and box[1] + box[3] <= region[1] + region[3]
    )


def tuples(boxes: Boxes) -> list[Box]:
    return [tuple(box) for box in boxes.tolist()]


def proposals(size: tuple[int, int], count: int, seed: int) -> dict[int, Boxes]:
    """Lists as the filter leaves them: of random boxes, each list greedily and for itself."""
    rng = np.random.default_rng(seed)
    raw = []
    for _ in range(count):
        w, h = (int(edge * rng.uniform(0.05, 1)) for edge in size)
        raw.append((int(rng.integers(size[0] - w + 1)), int(rng.integers(size[1] - h + 1)), w, h))
    lists = {}
    for least in (64, 96):
        kept: list[Box] = []
        for box in raw:
            fits = min(box[2:]) >= least and max(box[2:]) <= 3 * min(box[2:])
            if fits and all(iou(box, other) <= 0.5 for other in kept):
                kept.append(box)
        lists[least] = np.array(kept, np.int32).reshape(-1, 4)
    return lists


def sample(
    size: tuple[int, int],
    boxes: dict[int, Boxes],
    image_id: int = 0,
    views: ViewsConfig = VIEWS,
    max_ratio: float = 3.0,
) -> SampledViews:
    return sample_views(size, boxes, key=SampleKey(0, 0, image_id), views=views, max_ratio=max_ratio)


def check(
    size: tuple[int, int], boxes: dict[int, Boxes], found: SampledViews, least: int, max_ratio: float
) -> None:
    """What holds for every sample with boxes."""
    image: Box = (0, 0, *size)
    scenes, overlap, chosen = tuples(found.scenes), tuples(found.overlap[None])[0], tuples(found.boxes)
    statistics = found.statistics
    assert all(within(scene, image) and min(scene[2:]) >= 1 for scene in scenes)
    assert all(within(overlap, scene) for scene in scenes)
    assert min(overlap[2:]) >= VIEWS.min_overlap
    assert len(chosen) == VIEWS.num_instances
    assert all(within(box, overlap) for box in chosen)
    assert all(min(box[2:]) >= least for box in chosen)
    assert all(max(box[2:]) <= max_ratio * min(box[2:]) for box in chosen)
    known = {box for some in boxes.values() for box in tuples(some)}
    assert sum(box in known for box in chosen) >= len(chosen) - statistics.random_boxes
    taken = [box for box in chosen if box in known]
    if statistics.random_boxes == 0:
        assert len(set(taken)) == VIEWS.num_instances
        assert all(iou(a, b) <= 0.5 for a, b in combinations(taken, 2))
    assert statistics.inside >= VIEWS.num_instances - statistics.random_boxes
    assert statistics.identical_scenes == (scenes[0] == scenes[1])
    assert statistics.draws <= VIEWS.max_draws
    assert not statistics.too_small


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(64, 900), st.integers(64, 900)),
    st.integers(0, 80),
    st.integers(0, 2**32),
    st.sampled_from(list(MinSizePolicy)),
    st.sampled_from([1.0, 1.5, 3.0]),
)
@example((64, 64), 5, 0, MinSizePolicy.nested, 3.0)
@example((640, 64), 0, 0, MinSizePolicy.nested, 3.0)
@example((640, 64), 50, 1, MinSizePolicy.two_phase, 1.0)
@example((64, 5000), 50, 2, MinSizePolicy.smallest, 3.0)
@example((5000, 70), 50, 3, MinSizePolicy.image, 1.5)
def test_boxes_obey_every_limit(
    size: tuple[int, int], count: int, seed: int, policy: MinSizePolicy, max_ratio: float
):
    boxes = proposals(size, count, seed)
    least = 96 if policy is MinSizePolicy.largest else 64
    boxes = {key: some[(some[:, 2:].max(1) <= max_ratio * some[:, 2:].min(1))] for key, some in boxes.items()}
    views = replace(VIEWS, min_size_policy=policy)

    found = sample(size, boxes, seed, views, max_ratio)

    if min(size) < least:
        assert found.statistics.too_small
        return
    check(size, boxes, found, least, max_ratio)
    phases = 2 if policy is MinSizePolicy.two_phase else 1
    assert found.statistics.trials <= VIEWS.trials * phases


@settings(max_examples=100, deadline=None)
@given(st.tuples(st.integers(1, 700), st.integers(1, 700)), st.integers(0, 1000))
@example((63, 63), 0)
@example((1, 1), 0)
@example((5000, 70), 0)
@example((1, 5000), 0)
def test_scenes_without_instances_lie_in_the_photograph(size: tuple[int, int], image_id: int):
    found = sample(size, {}, image_id, replace(VIEWS, num_instances=0))

    assert all(within(scene, (0, 0, *size)) and min(scene[2:]) >= 1 for scene in tuples(found.scenes))
    assert found.boxes.shape == (0, 4)
    assert not found.statistics.too_small
    if min(size) >= 4:  # narrower ones leave no second crop of legal ratio
        assert not found.statistics.identical_scenes


@pytest.mark.parametrize("size", [(63, 63), (1, 1), (63, 900), (640, 63)])
def test_a_photograph_too_small_for_a_box_has_scenes_only(size: tuple[int, int]):
    found = sample(size, NOTHING)

    assert found.statistics.too_small
    assert found.boxes.shape == (0, 4)
    assert found.scenes.shape == (2, 4)


def test_a_photograph_that_cannot_hold_the_overlap_is_too_small():
    assert sample((99, 300), NOTHING, views=replace(VIEWS, min_overlap=100)).statistics.too_small
    assert not sample((100, 300), NOTHING, views=replace(VIEWS, min_overlap=100)).statistics.too_small


def test_a_photograph_of_exactly_one_box_is_used():
    found = sample((64, 64), NOTHING)

    assert tuples(found.boxes) == [(0, 0, 64, 64)] * 4
    assert found.statistics.identical_scenes
    assert found.statistics.anchored


@pytest.mark.parametrize("size", [(5000, 70), (70, 5000), (640, 64)])
def test_panoramas_get_two_different_scenes_of_legal_ratio(size: tuple[int, int]):
    for image_id in range(20):
        found = sample(size, NOTHING, image_id)

        assert not found.statistics.identical_scenes
        for x, y, w, h in tuples(found.scenes):
            assert within((x, y, w, h), (0, 0, *size))
            assert 3 * w <= 4 * h + 3
            assert 3 * h <= 4 * w + 3


def test_equal_keys_give_equal_rectangles_and_other_keys_others():
    boxes = proposals((500, 400), 60, 1)
    first, again, other = (sample((500, 400), boxes, image_id) for image_id in (7, 7, 8))

    assert np.array_equal(first.scenes, again.scenes)
    assert np.array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.scenes, other.scenes)


def test_scenes_are_distributed_like_torchvisions_random_resized_crop():
    width, height, count = 640, 360, 2000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(count)])
    bare = replace(VIEWS, num_instances=0)
    ours = np.array([sample((width, height), {}, image_id, bare).scenes for image_id in range(count // 2)])
    ours = ours.reshape(-1, 4)[:, [1, 0, 3, 2]]

    for column in range(4):
        gap = [
            np.abs(np.quantile(theirs[:, column], q) - np.quantile(ours[:, column], q))
            for q in (0.1, 0.5, 0.9)
        ]
        assert max(gap) < 25, column
    area = [(some[:, 2] * some[:, 3]).mean() for some in (theirs, ours)]
    assert area[0] == pytest.approx(area[1], rel=0.05)


def pairs_of(*pairs: tuple[Box, Box]) -> np.ndarray:
    return np.array(pairs, np.int64)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch):
    """Lets a test choose the pairs of scenes that are drawn."""

    def use(*pairs: tuple[Box, Box]) -> None:
        monkeypatch.setattr(views_module, "_scene_pairs", lambda *_: pairs_of(*pairs))

    return use


WHOLE: Box = (0, 0, 400, 400)


def region(*box: int) -> tuple[Box, Box]:
    """A pair of scenes that overlaps in exactly this box."""
    return WHOLE, box  # type: ignore[return-value]


def test_the_first_pair_with_enough_proposals_is_taken(drawn):
    four = np.array([(x, y, 100, 100) for x in (0, 100) for y in (0, 100)], np.int32)
    drawn(region(200, 200, 200, 200), region(0, 0, 210, 210), region(0, 0, 300, 300))

    found = sample((400, 400), {64: four, 96: four})

    assert found.overlap.tolist() == [0, 0, 210, 210]
    assert sorted(tuples(found.boxes)) == sorted(tuples(four))
    assert found.statistics == (2, 2, 4, 0, False, False, False)


def test_identical_scenes_and_small_overlaps_are_no_trials(drawn):
    four = np.array([(x, y, 100, 100) for x in (0, 100) for y in (0, 100)], np.int32)
    drawn((WHOLE, WHOLE), region(0, 0, 63, 300), region(0, 0, 300, 300))

    found = sample((400, 400), {64: four, 96: four}, views=replace(VIEWS, trials=1))

    assert found.overlap.tolist() == [0, 0, 300, 300]
    assert (found.statistics.draws, found.statistics.trials) == (3, 1)


def test_the_fallback_takes_most_proposals_then_most_area(drawn):
    some = np.array([(0, 0, 100, 100), (100, 0, 100, 100), (300, 300, 100, 100)], np.int32)
    drawn(
        region(300, 300, 100, 100),  # one proposal
        region(0, 0, 220, 220),  # two
        region(0, 0, 230, 230),  # two and more room
        region(0, 0, 399, 299),  # two and most room, but beyond the trials
    )

    found = sample((400, 400), {64: some, 96: some}, views=replace(VIEWS, trials=3))

    assert found.overlap.tolist() == [0, 0, 230, 230]
    assert (found.statistics.inside, found.statistics.random_boxes, found.statistics.trials) == (2, 2, 3)
    assert set(tuples(some[:2])) <= set(tuples(found.boxes))


LARGE = np.array([(0, 0, 100, 100), (100, 0, 100, 100)], np.int32)
SMALL = np.array(
    [
        (0, 0, 80, 80),  # overlaps the first large one by 0.64
        (0, 20, 70, 70),  # overlaps the first large one by 0.49
        (0, 200, 70, 70),
        (100, 200, 70, 70),
    ],
    np.int32,
)


def choose(drawn, policy: MinSizePolicy, views: ViewsConfig = VIEWS, image_id: int = 0) -> SampledViews:
    drawn(region(0, 0, 300, 300), region(0, 0, 310, 310))
    return sample((400, 400), {64: SMALL, 96: LARGE}, image_id, replace(views, min_size_policy=policy))


def test_nested_tops_large_boxes_up_with_small_ones_that_fit(drawn):
    seen = Counter(
        box for i in range(60) for box in tuples(choose(drawn, MinSizePolicy.nested, image_id=i).boxes)
    )

    assert all(seen[box] == 60 for box in tuples(LARGE))
    assert seen[(0, 0, 80, 80)] == 0
    assert all(seen[box] > 20 for box in tuples(SMALL[1:]))


def test_image_uses_the_small_list_where_the_large_one_is_short(drawn):
    found = choose(drawn, MinSizePolicy.image, replace(VIEWS, num_instances=3))
    assert set(tuples(found.boxes)) <= set(tuples(SMALL))

    found = choose(drawn, MinSizePolicy.image, replace(VIEWS, num_instances=2))
    assert set(tuples(found.boxes)) == set(tuples(LARGE))


def test_two_phase_goes_to_the_small_list_after_the_trials(drawn):
    found = choose(drawn, MinSizePolicy.two_phase, replace(VIEWS, trials=1))

    assert found.overlap.tolist() == [0, 0, 310, 310]
    assert found.statistics.trials == 2
    assert set(tuples(found.boxes)) == set(tuples(SMALL))


def test_smallest_and_largest_use_one_list(drawn):
    assert set(tuples(choose(drawn, MinSizePolicy.smallest).boxes)) == set(tuples(SMALL))

    found = choose(drawn, MinSizePolicy.largest)
    assert found.statistics.random_boxes == 2
    assert min(min(box[2:]) for box in tuples(found.boxes)) >= 96


def test_a_box_may_touch_the_border_of_the_overlap(drawn):
    four = np.array([(x, y, 100, 100) for x in (0, 100) for y in (0, 100)], np.int32)
    drawn(region(0, 0, 200, 200), region(0, 0, 199, 200))

    assert sample((400, 400), {64: four, 96: four}).statistics.trials == 1


def test_every_proposal_in_the_overlap_is_as_likely_as_any_other():
    eight = np.array([(100 + 70 * (i % 4), 150 + 70 * (i // 4), 64, 64) for i in range(8)], np.int32)
    views = replace(VIEWS, min_scale=0.9)
    seen = Counter[Box]()
    for image_id in range(400):
        seen.update(tuples(sample((450, 450), {64: eight, 96: NO_BOXES}, image_id, views).boxes))

    assert [seen[box] for box in tuples(eight)] == pytest.approx([200] * 8, rel=0.25)


def test_the_order_of_the_boxes_does_not_tell_proposals_from_random_boxes():
    one = np.array([(160, 160, 80, 80)], np.int32)
    places = Counter(
        tuples(
            sample((400, 400), {64: one, 96: NO_BOXES}, image_id, replace(VIEWS, min_scale=0.9)).boxes
        ).index((160, 160, 80, 80))
        for image_id in range(200)
    )

    assert [places[place] for place in range(4)] == pytest.approx([50] * 4, rel=0.5)


def test_random_boxes_avoid_each_other_where_there_is_room():
    worst = [
        max(iou(a, b) for a, b in combinations(tuples(sample((600, 600), NOTHING, image_id).boxes), 2))
        for image_id in range(100)
    ]

    assert sum(value <= 0.5 for value in worst) >= 90


def test_random_boxes_keep_the_ratio_where_a_truncated_bound_would_not(drawn):
    # In 200 x 67 a width of 200 leaves only 67: a height of 200 / 3 rounded down would be out of ratio.
    drawn(region(0, 0, 200, 67))
    for image_id in range(200):
        for _, _, w, h in tuples(sample((400, 400), NOTHING, image_id).boxes):
            assert w <= 3 * h
            assert math.ceil(w / 3) <= h <= 67


def test_random_boxes_reach_the_edges_of_the_overlap(drawn):
    drawn(region(10, 20, 90, 80))
    boxes = np.concatenate([sample((400, 400), NOTHING, image_id).boxes for image_id in range(200)])

    assert (boxes[:, 0].min(), boxes[:, 1].min()) == (10, 20)
    assert (boxes[:, :2] + boxes[:, 2:]).max(0).tolist() == [100, 100]
    assert boxes[:, 2:].min(0).tolist() == [64, 64]
    assert boxes[:, 2:].max(0).tolist() == [90, 80]
