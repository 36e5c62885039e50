from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms.functional import resized_crop
from torchvision.transforms.v2 import InterpolationMode

from univip.config import DataConfig, DataFormat, InstanceViews, ProposalsConfig, ViewsConfig
from univip.data.augment import AugmentParameters, augment
from univip.data.batch import make_views
from univip.data.decode import REASONS
from univip.data.images import ImageIndex, write_index
from univip.data.proposals import RAW, ProposalStore, column, make_rows, write_store
from univip.data.samples import SampleReader
from univip.data.scan import scan
from univip.errors import DataError, UnivipError

VIEWS = ViewsConfig(scene_size=40, instance_size=24, min_overlap=24)
PROPOSALS = ProposalsConfig(min_sizes=[24, 32])
SIZES = [(120, 90), (90, 120), (100, 100), (20, 20), (130, 70)]
TINY = 3  # the image too small for a box


def write_photo(path: Path, size: tuple[int, int], seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC).save(path, quality=95)


@pytest.fixture
def reader(tmp_path: Path) -> SampleReader:
    root = tmp_path / "photos"
    root.mkdir()
    for number, size in enumerate(SIZES):
        write_photo(root / f"{number}.jpg", size, number)
    data = DataConfig(format=DataFormat.folder, root=str(root))
    write_index(scan(data), tmp_path / "images.arrow")
    index = ImageIndex.open(tmp_path / "images.arrow")
    grid = np.array([(x, y, 32, 32) for x in range(0, 60, 12) for y in range(0, 30, 12)], np.int32)
    boxes = [grid if i != TINY else grid[:0] for i in range(len(index))]
    names = [RAW, *map(column, PROPOSALS.min_sizes)]
    rows = make_rows(index.ids, index.sizes, ["ok"] * len(index), dict.fromkeys(names, boxes))
    write_store(
        tmp_path / "proposals.arrow", [rows], {"fingerprint": index.fingerprint, "min_sizes": [24, 32]}
    )
    store = ProposalStore.open(tmp_path / "proposals.arrow")
    return SampleReader(data, index, store, PROPOSALS, VIEWS, seed=5)


def test_pixels_are_torchvisions_bicubic_crops_of_the_original(reader: SampleReader):
    sample = reader.sample(epoch=2, row=0)
    photo = PIL.Image.fromarray(reader.photo(0))

    for pixels, boxes, edge in (
        (sample.scenes, sample.views.scenes, VIEWS.scene_size),
        (sample.instances, sample.views.boxes, VIEWS.instance_size),
    ):
        assert len(pixels) == len(boxes) > 0
        for found, (x, y, w, h) in zip(pixels, boxes.tolist(), strict=True):
            expected = resized_crop(photo, y, x, h, w, [edge, edge], InterpolationMode.BICUBIC)
            assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_a_sample_is_a_function_of_seed_epoch_and_image(reader: SampleReader):
    first, again = reader.sample(1, 2), reader.sample(1, 2)
    assert np.array_equal(first.scenes, again.scenes)
    assert np.array_equal(first.online_parameters.factors, again.online_parameters.factors)

    others = [reader.sample(2, 2), reader.sample(1, 1), replace(reader, seed=6).sample(1, 2)]
    for other in others:
        assert not np.array_equal(first.scenes, other.scenes)
        assert not np.array_equal(first.scene_parameters.factors, other.scene_parameters.factors)


def test_the_four_augmentations_of_a_sample_differ(reader: SampleReader):
    sample = reader.sample(0, 0)
    factors = [
        *sample.scene_parameters.factors[:, 0].tolist(),
        *sample.online_parameters.factors[:, 0].tolist(),
        *sample.target_parameters.factors[:, 0].tolist(),
    ]

    assert len(set(factors)) == 2 + 4 + 4


def test_first_scene_and_online_instances_are_t1_and_the_others_t2(reader: SampleReader):
    batch = reader.batch(np.arange(40), np.zeros(40, np.int64))

    blurred = batch.scene_parameters.sigma > 0
    assert blurred[0::2].all()
    assert not batch.scene_parameters.solarize[0::2].any()
    assert 0 < batch.scene_parameters.solarize[1::2].sum() < 20
    assert blurred[1::2].sum() < 15
    assert (batch.online_parameters.sigma > 0).all()
    assert (batch.target_parameters.sigma > 0).sum() < 50


def test_a_batch_stacks_its_samples_in_order(reader: SampleReader):
    epochs, rows = np.array([0, 3, 1]), np.array([2, TINY, 0])
    batch = reader.batch(epochs, rows)

    assert batch.scenes.shape == (3, 2, 3, 40, 40)
    assert batch.instances.shape == (3, 4, 3, 24, 24)
    assert batch.scenes.dtype == batch.instances.dtype == torch.uint8
    assert batch.ids.tolist() == reader.index.ids[rows].tolist()
    assert batch.epochs.tolist() == [0, 3, 1]
    for place, (epoch, row) in enumerate(zip(epochs, rows, strict=True)):
        sample = reader.sample(int(epoch), int(row))
        assert np.array_equal(batch.scenes[place].numpy(), sample.scenes)
        assert np.array_equal(batch.instances[place].numpy(), sample.instances)
        assert np.array_equal(batch.online_parameters.order[4 * place :][:4], sample.online_parameters.order)


def test_a_small_photograph_has_scenes_and_is_counted(reader: SampleReader):
    batch = reader.batch(np.array([0, 0]), np.array([TINY, 0]))

    assert batch.has_instances.tolist() == [False, True]
    assert not batch.instances[0].any()
    assert batch.scenes[0].any()
    assert batch.counts["too_small"] == 1
    assert batch.counts["images"] == 2
    assert batch.counts["trials"] >= 1


def test_every_batch_counts_the_same_things_in_the_same_order(reader: SampleReader):
    names = [list(reader.batch(np.array([0]), np.array([row])).counts) for row in (0, TINY)]

    assert names[0] == names[1]
    assert {f"substituted_{reason}" for reason in REASONS} <= set(names[0])


def test_a_photograph_without_proposals_gets_random_boxes_and_is_counted(reader: SampleReader):
    narrow = replace(reader, proposals=replace(PROPOSALS, max_ratio=1.0))
    store = reader.store
    assert store is not None
    empty = ProposalStore(store.source, store.batches, store.provenance)
    empty._lists = {
        name: [(np.zeros_like(offsets), boxes) for offsets, boxes in lists]
        for name, lists in empty._lists.items()
    }

    sample = replace(narrow, store=empty).sample(0, 0)

    assert sample.views.statistics.random_boxes == 4
    assert (sample.views.boxes[:, 2] == sample.views.boxes[:, 3]).all()
    batch = replace(reader, store=empty).batch(np.array([0]), np.array([0]))
    assert (batch.counts["fallback"], batch.counts["random_boxes"]) == (1, 4)


def test_a_broken_photograph_is_named_and_replaced_by_a_keyed_one(reader: SampleReader):
    broken = Path(reader.data.root) / reader.index.path(1)
    broken.write_bytes(broken.read_bytes()[:300])
    batch = reader.batch(np.array([4, 4]), np.array([1, 0]))

    assert batch.failures == [(int(reader.index.ids[1]), reader.index.path(1), "corrupt")]
    assert batch.counts["substituted_corrupt"] == 1
    substitute = int(batch.ids[0])
    assert substitute != reader.index.ids[1]
    itself = reader.batch(np.array([4]), np.array([reader.index.row(substitute)]))
    assert torch.equal(itself.scenes[0], batch.scenes[0])
    again = reader.batch(np.array([4]), np.array([1]))
    assert again.ids[0] == substitute


def test_a_photograph_of_another_size_than_indexed_is_replaced(reader: SampleReader):
    write_photo(Path(reader.data.root) / reader.index.path(2), (101, 100), 2)

    assert reader.batch(np.array([0]), np.array([2])).failures[0].reason == "size_mismatch"


def test_no_usable_photograph_is_an_error_that_names_some(reader: SampleReader):
    for row in range(len(reader.index)):
        (Path(reader.data.root) / reader.index.path(row)).unlink()
    (Path(reader.data.root) / "notes.txt").touch()

    with pytest.raises(DataError, match=r"0\.jpg \(missing\)") as caught:
        reader.batch(np.array([0]), np.array([0]))

    assert caught.value.where == reader.data.root
    assert caught.value.fix


def test_a_file_system_that_went_away_is_not_wrong_data(reader: SampleReader, tmp_path: Path):
    mount_point = tmp_path / "unmounted"
    mount_point.mkdir()
    for root in (tmp_path / "gone", mount_point):
        away = replace(reader, data=replace(reader.data, root=str(root)))

        with pytest.raises(UnivipError, match="cannot be reached") as caught:
            away.batch(np.array([0]), np.array([0]))

        assert not isinstance(caught.value, DataError)


def test_byol_needs_no_store_and_has_no_instances(reader: SampleReader):
    bare = replace(reader, store=None, views=replace(VIEWS, num_instances=0))
    batch = bare.batch(np.array([0, 0]), np.array([0, TINY]))
    views = make_views(batch, InstanceViews.two, torch.device("cpu"))

    assert batch.instances.shape == (2, 0, 3, 24, 24)
    assert batch.has_instances.tolist() == [False, False]
    assert views.scenes.shape == (2, 2, 3, 40, 40)
    assert views.online_instances.shape == (2, 0, 3, 24, 24)


def test_views_are_the_augmented_pixels(reader: SampleReader):
    batch = reader.batch(np.array([0, 0]), np.array([0, 2]))
    views = make_views(batch, InstanceViews.two, torch.device("cpu"))

    def alone(pixels: torch.Tensor, parameters: AugmentParameters, row: int) -> torch.Tensor:
        return augment(pixels[None], AugmentParameters(*(part[row : row + 1] for part in parameters)))[0]

    assert torch.equal(views.scenes[1, 0], alone(batch.scenes[1, 0], batch.scene_parameters, 2))
    assert torch.equal(views.scenes[0, 1], alone(batch.scenes[0, 1], batch.scene_parameters, 1))
    assert torch.equal(views.online_instances[1, 3], alone(batch.instances[1, 3], batch.online_parameters, 7))
    assert torch.equal(views.target_instances[1, 3], alone(batch.instances[1, 3], batch.target_parameters, 7))
    assert views.has_instances.tolist() == [True, True]


def test_shared_instances_are_one_tensor(reader: SampleReader):
    batch = reader.batch(np.array([0]), np.array([0]))

    shared = make_views(batch, InstanceViews.shared, torch.device("cpu"))
    two = make_views(batch, InstanceViews.two, torch.device("cpu"))

    assert shared.target_instances is shared.online_instances
    assert torch.equal(shared.online_instances, two.online_instances)
    assert not torch.equal(two.target_instances, two.online_instances)
