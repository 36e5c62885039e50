"""Multi-hot labels from instances files, against pycocotools and cases known by hand."""

import json

import pytest
import torch
from pycocotools.coco import COCO

from univip.errors import DataError
from univip.evaluation.labels import read_labels

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 2, "name": "boat"}]


def write(path, image_ids, objects, categories=CATEGORIES):
    annotations = [
        {"id": i, "image_id": image_id, "category_id": category_id, "bbox": [0, 0, 9, 9], **marks}
        for i, (image_id, category_id, marks) in enumerate(objects)
    ]
    document = {
        "images": [{"id": i} for i in image_ids],
        "annotations": annotations,
        "categories": categories,
    }
    path.write_text(json.dumps(document))
    return path


def test_rows_follow_the_images_asked_for_and_columns_the_category_ids(tmp_path):
    path = write(tmp_path / "a.json", [1, 2, 3], [(1, 7, {}), (3, 7, {}), (3, 2, {}), (3, 2, {})])

    labels = read_labels([path], [3, 1])

    assert labels.names == ["boat", "cat"]
    assert labels.positive.tolist() == [[True, True], [False, True]]
    assert labels.known.all()


def test_image_without_objects_is_negative_for_every_class(tmp_path):
    labels = read_labels([write(tmp_path / "a.json", [5], [])], [5])

    assert not labels.positive.any()
    assert labels.known.all()


@pytest.mark.parametrize("mark", ["difficult", "ignore"])
def test_only_difficult_objects_leave_a_class_undecided(tmp_path, mark):
    objects = [(1, 7, {mark: 1}), (2, 7, {mark: 1}), (2, 7, {mark: 0})]

    labels = read_labels([write(tmp_path / "a.json", [1, 2], objects)], [1, 2])

    assert labels.positive[:, 1].tolist() == [False, True]
    assert labels.known[:, 1].tolist() == [False, True]


def test_crowd_counts_as_present(tmp_path):
    labels = read_labels([write(tmp_path / "a.json", [1], [(1, 2, {"iscrowd": 1})])], [1])

    assert labels.positive.tolist() == [[True, False]]


def test_splits_are_read_together(tmp_path):
    first = write(tmp_path / "a.json", [1], [(1, 2, {})])
    second = write(tmp_path / "b.json", [2], [(2, 7, {})])

    assert read_labels([first, second], [1, 2]).positive.tolist() == [[True, False], [False, True]]


def test_splits_with_different_categories_are_refused(tmp_path):
    first = write(tmp_path / "a.json", [1], [])
    second = write(tmp_path / "b.json", [2], [], categories=[{"id": 1, "name": "dog"}])

    with pytest.raises(DataError, match="same categories"):
        read_labels([first, second], [1, 2])


def test_image_that_no_file_lists_is_refused_by_id(tmp_path):
    with pytest.raises(DataError, match="first with id 8"):
        read_labels([write(tmp_path / "a.json", [1], [])], [1, 8])


@pytest.mark.parametrize("content", ["no json", "[]", '{"images": [], "annotations": []}'])
def test_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)

    with pytest.raises(DataError) as caught:
        read_labels([path], [])
    assert str(path) in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_labels([tmp_path / "absent.json"], [])


def test_coco_labels_are_those_of_pycocotools(real_data):
    path = real_data / "dev_coco" / "annotations" / "instances_val2017.json"
    reference = COCO(str(path))
    image_ids = reference.getImgIds()

    labels = read_labels([path], image_ids)

    for column, category_id in enumerate(sorted(reference.getCatIds())):
        holders = set(reference.getImgIds(catIds=[category_id]))
        expected = torch.tensor([image_id in holders for image_id in image_ids])
        assert torch.equal(labels.positive[:, column], expected)
    assert len(labels.names) == 80
