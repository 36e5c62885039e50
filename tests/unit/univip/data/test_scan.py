"""Which photographs a run uses, from COCO annotations and from folders, and how bad input is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from univip.config import DataConfig, DataFormat
from univip.data.scan import scan
from univip.errors import ConfigError, DataError

SIZE = (8, 6)


def entry(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number:03d}.jpg", "width": SIZE[0], "height": SIZE[1], **changes}


def save(path: Path, size: tuple[int, int] = SIZE, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, "gray").save(path, **options)


def make_coco(
    root: Path, split: str, images: list[Any], *, folder: str, annotations: str = "annotations"
) -> None:
    for image in images:
        save(root / folder / image["file_name"])
    document = root / annotations / f"instances_{split}.json"
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(json.dumps({"info": {"images": 1}, "images": images, "annotations": []}))


def coco(root: Path, split: Any = "train", **options: Any) -> DataConfig:
    return DataConfig(root=str(root), split=split, **options)


def folder(root: Path, **options: Any) -> DataConfig:
    return DataConfig(format=DataFormat.folder, root=str(root), **options)


@pytest.mark.parametrize("images", ["train", "images/train", "images", "."])
@pytest.mark.parametrize("annotations", ["annotations", "."])
def test_every_usual_layout_of_coco_is_found(tmp_path: Path, images: str, annotations: str) -> None:
    make_coco(tmp_path, "train", [entry(7), entry(3)], folder=images, annotations=annotations)

    found = scan(coco(tmp_path))

    assert [(row.id, row.width, row.height) for row in found.rows] == [(7, 8, 6), (3, 8, 6)]
    assert all((tmp_path / row.path).is_file() for row in found.rows)
    assert not found.exif


def test_image_info_without_annotations_is_enough(tmp_path: Path) -> None:
    make_coco(tmp_path, "unlabeled", [entry(1)], folder="unlabeled")
    (tmp_path / "annotations/instances_unlabeled.json").rename(
        tmp_path / "annotations/image_info_unlabeled.json"
    )

    assert [row.id for row in scan(coco(tmp_path, "unlabeled")).rows] == [1]


def test_several_splits_are_used_together_in_the_order_given(tmp_path: Path) -> None:
    make_coco(tmp_path, "a", [entry(1), entry(2)], folder="a")
    make_coco(tmp_path, "b", [entry(9)], folder="images/b")

    assert [row.path for row in scan(coco(tmp_path, ["b", "a"])).rows] == [
        "images/b/009.jpg",
        "a/001.jpg",
        "a/002.jpg",
    ]


def test_an_id_in_two_splits_is_refused(tmp_path: Path) -> None:
    make_coco(tmp_path, "a", [entry(1)], folder="a")
    make_coco(tmp_path, "b", [entry(1, file_name="other.jpg")], folder="b")

    with pytest.raises(DataError, match="ids must be unique") as caught:
        scan(coco(tmp_path, ["a", "b"]))

    assert "a/001.jpg and b/other.jpg" in caught.value.where


def test_the_fingerprint_follows_ids_names_and_sizes_but_not_the_place(tmp_path: Path) -> None:
    make_coco(tmp_path / "here", "train", [entry(1), entry(2)], folder="train")
    make_coco(tmp_path / "there", "train", [entry(1), entry(2)], folder="images/train", annotations=".")
    changes = {"id": entry(5), "name": entry(2, file_name="x.jpg"), "size": entry(2, width=9), "order": None}
    for name, change in changes.items():
        images = [entry(1), change] if change else [entry(2), entry(1)]
        make_coco(tmp_path / name, "train", images, folder="train")

    prints = {path.name: scan(coco(path)).fingerprint for path in tmp_path.iterdir()}

    assert prints.pop("there") == prints["here"]
    assert len(set(prints.values())) == 5
    assert all(len(value) == 64 for value in prints.values())


def test_images_above_the_pixel_limit_are_refused_by_name(tmp_path: Path) -> None:
    images = [entry(1), entry(2, width=100, height=100), entry(3, width=40_000, height=1)]
    make_coco(tmp_path, "train", images, folder="train")

    found = scan(coco(tmp_path, max_pixels=9_999))

    assert [row.id for row in found.rows] == [1]
    assert found.refused == {"too_large": ["train/002.jpg", "train/003.jpg"]}


def test_the_pixel_limit_itself_is_accepted(tmp_path: Path) -> None:
    make_coco(tmp_path, "train", [entry(1, width=100, height=100)], folder="train")

    assert len(scan(coco(tmp_path, max_pixels=10_000)).rows) == 1


def test_max_images_takes_the_first_ones(tmp_path: Path) -> None:
    make_coco(tmp_path, "train", [entry(number) for number in range(5)], folder="train")
    for number in range(5):
        save(tmp_path / "plain" / f"{number}.png")

    assert [row.id for row in scan(coco(tmp_path, max_images=2)).rows] == [0, 1]
    assert [row.path for row in scan(folder(tmp_path / "plain", max_images=3)).rows] == [
        "0.png",
        "1.png",
        "2.png",
    ]


def test_a_folder_is_read_recursively_in_the_order_of_paths(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/b/c.tiff", "a.webp", ".hidden.jpg", ".cache/x.jpg"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photograph")

    found = scan(folder(tmp_path))

    assert [row.path for row in found.rows] == ["a.webp", "a/b/c.tiff", "a/z.png", "b.JPG"]
    assert found.exif


def test_ids_in_a_folder_are_63_bits_of_the_hash_of_the_path(tmp_path: Path) -> None:
    save(tmp_path / "süd" / "1.png")

    bits = f"{int(hashlib.sha256('süd/1.png'.encode()).hexdigest(), 16):0256b}"

    assert [row.id for row in scan(folder(tmp_path)).rows] == [int(bits[:63], 2)]


def test_sizes_in_a_folder_follow_the_exif_orientation(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "turned.jpg", (30, 20), exif=exif)
    save(tmp_path / "upright.jpg", (30, 20))

    assert [row[2:] for row in scan(folder(tmp_path)).rows] == [(20, 30), (30, 20)]


def test_damaged_and_large_files_in_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    save(tmp_path / "large.png", (50, 50))
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no photograph")

    found = scan(folder(tmp_path, max_pixels=2_000))

    assert [row.path for row in found.rows] == ["good.png"]
    assert found.refused == {"corrupt": ["empty.jpg", "text.jpg"], "too_large": ["large.png"]}


def test_linked_folders_are_read_once_even_in_a_circle(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")

    assert [row.path for row in scan(folder(tmp_path / "root")).rows] == ["link/1.png"]


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("{nonsense", "must be JSON"),
        ("", "COCO object with a list `images`"),
        ("[1, 2]", "COCO object with a list `images`"),
        ('{"annotations": []}', "COCO object with a list `images`"),
        ('{"images": {}}', "COCO object with a list `images`"),
        ('{"info": 1, "images": [{"id": 1', "must be JSON"),
        ('{"info" 1}', "must be JSON"),
        ('{"images": []}', "must hold images"),
        ('{"images": [7]}', "whole numbers"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}]}', "whole numbers"),
        ('{"images": [{"id": "1", "file_name": "a.jpg", "width": 4, "height": 4}]}', "whole numbers"),
        ('{"images": [{"id": true, "file_name": "a.jpg", "width": 4, "height": 4}]}', "whole numbers"),
        ('{"images": [{"id": -1, "file_name": "a.jpg", "width": 4, "height": 4}]}', "whole numbers"),
        ('{"images": [{"id": 1, "file_name": "a.jpg", "width": 0, "height": 4}]}', "whole numbers"),
        ('{"images": [{"id": 1, "file_name": "/etc/a.jpg", "width": 4, "height": 4}]}', "whole numbers"),
        ('{"images": [{"id": 1, "file_name": "../a.jpg", "width": 4, "height": 4}]}', "whole numbers"),
    ],
)
def test_annotations_that_are_not_coco_are_refused(tmp_path: Path, document: str, sentence: str) -> None:
    (tmp_path / "instances_train.json").write_text(document)

    with pytest.raises(DataError, match=sentence) as caught:
        scan(coco(tmp_path))

    assert "instances_train.json" in caught.value.where
    assert len(str(caught.value).splitlines()) == 3


def test_binary_annotations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "instances_train.json").write_bytes(b"\xff\xd8\xff\xe0")

    with pytest.raises(DataError, match="must be JSON"):
        scan(coco(tmp_path))


def test_a_missing_annotation_file_is_answered_with_what_is_there(tmp_path: Path) -> None:
    make_coco(tmp_path, "val2017", [entry(1)], folder="val2017")

    with pytest.raises(DataError, match=r"instances_train\.json") as caught:
        scan(coco(tmp_path))

    assert "annotations/instances_val2017.json" in caught.value.where
    assert "data.split" in caught.value.fix


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be an existing folder"):
        scan(coco(tmp_path / "nowhere"))


@pytest.mark.parametrize("split", ["", [], ["a", ""], [1]])
def test_a_split_that_is_no_name_is_refused(tmp_path: Path, split: Any) -> None:
    with pytest.raises(ConfigError, match=r"`data\.split` must be"):
        scan(coco(tmp_path, split))


def test_a_split_without_any_file_is_refused_with_the_places_looked_at(tmp_path: Path) -> None:
    make_coco(tmp_path, "train", [entry(1)], folder="lost")

    with pytest.raises(DataError, match="but none of 1 does") as caught:
        scan(coco(tmp_path))

    assert str(tmp_path / "images/train") in caught.value.where


def test_a_data_set_without_a_usable_photograph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.jpg").touch()
    (tmp_path / "empty").mkdir()

    with pytest.raises(DataError, match="but has 1 corrupt"):
        scan(folder(tmp_path / "bad"))
    with pytest.raises(DataError, match="but has none at all"):
        scan(folder(tmp_path / "empty"))


@pytest.mark.parametrize("data_format", ["coco", "folder"])
def test_scanning_loads_no_numerical_library(tmp_path: Path, data_format: str) -> None:
    make_coco(tmp_path, "train", [entry(1)], folder="train")
    code = (
        "import sys; from univip.config import DataConfig, DataFormat; from univip.data.scan import scan;"
        f"scan(DataConfig(format=DataFormat.{data_format}, root={str(tmp_path)!r}, split='train'));"
        "print([name for name in ('numpy', 'pyarrow', 'cv2', 'torch') if name in sys.modules])"
    )

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert output.strip() == "[]"


@pytest.mark.parametrize(
    ("root", "split", "images"),
    [("dev_coco", ["train2017", "val2017"], 206), ("voc07_short160", ["train", "val"], 5011)],
)
def test_real_data_sets_are_read_completely(
    real_data: Path, root: str, split: list[str], images: int
) -> None:
    found = scan(coco(real_data / root, split))

    assert len(found.rows) == images
    assert not found.refused
    row = found.rows[-1]
    with PIL.Image.open(real_data / root / row.path) as image:
        assert image.size == (row.width, row.height)
