"""YOLO label files become a COCO document."""

import json
from pathlib import Path

import numpy as np
import pytest
from box_writing import written
from PIL import Image

from mal.datasets import open_boxes
from mal.errors import BoxFileError


def data_set(root: Path, labels: dict[str, str], size: tuple[int, int] = (100, 200)) -> Path:
    for name, text in labels.items():
        for folder in ("images", "labels"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(root / "images" / f"{name}.jpg")
        (root / "labels" / f"{name}.txt").write_text(text)
    return root


def test_boxes_in_pixels(tmp_path: Path) -> None:
    lines = ["1 0.5 0.5 0.25 0.5", "0 0.5 0.5 1 1 0.9", "3 0 0 0.5 0.25 0.25 0.75", "", "  "]
    boxes = open_boxes(data_set(tmp_path, {"train/a": "\n".join(lines), "train/b": ""}))

    assert (boxes.format, boxes.source.address) == ("yolo", str(tmp_path / "images"))
    assert boxes.images.file_names == ["train/a.jpg", "train/b.jpg"]
    assert (boxes.images.widths.tolist(), boxes.images.heights.tolist()) == ([100, 100], [200, 200])
    assert boxes.boxes.tolist() == [[37.5, 50, 62.5, 150], [0, 0, 100, 200], [0, 0, 50, 150]]
    assert boxes.category_names == ["class 0", "class 1", "class 3"]
    assert boxes.category.tolist() == [1, 0, 2]
    assert boxes.annotation_ids(range(3)) == [1, 2, 3]


def test_output_is_coco(tmp_path: Path) -> None:
    boxes = open_boxes(data_set(tmp_path, {"a": "0 .5 .5 .5 .5 .75"}))
    text = written(boxes, {0: {"area": b"5"}})
    output = json.loads(text)
    bbox = [25.0, 50.0, 50.0, 100.0]
    annotation = {"id": 1, "image_id": 1, "category_id": 0, "bbox": bbox, "confidence": 0.75, "area": 5}
    assert output["annotations"] == [annotation]
    assert output["images"] == [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 200}]
    assert output["categories"] == [{"id": 0, "name": "class 0"}]


@pytest.mark.parametrize("line", ["0 1 2 3", "0", "a b c d e", "0 nan .5 .5 .5", "0 .1 .2 .3 .4 .5 .6 .7", "-"])
def test_lines_that_are_no_boxes_stay_as_objects(tmp_path: Path, line: str) -> None:
    boxes = open_boxes(data_set(tmp_path, {"a": f"{line}\n0 .5 .5 .5 .5"}))
    assert np.isnan(boxes.boxes).all(axis=1).tolist() == [True, False]
    assert boxes.reason(0) == "bbox is not four finite numbers"
    assert json.loads(written(boxes))["annotations"][0]["label"] == line


def test_labels_without_a_readable_image_are_not_lost(tmp_path: Path) -> None:
    root = data_set(tmp_path, {"a": "0 .5 .5 .5 .5", "b": "0 .5 .5 .5 .5"})
    (root / "images/a.jpg").unlink()
    (root / "images/b.jpg").write_bytes(b"no image")
    boxes = open_boxes(root)
    assert boxes.images.file_names == ["a.jpg", "b.jpg"]
    assert np.isnan(boxes.boxes).all()


def test_fractions_refer_to_the_upright_image(tmp_path: Path) -> None:
    root = data_set(tmp_path, {"a": "0 .5 .5 1 1"})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 200)).save(root / "images/a.jpg", exif=exif)
    assert open_boxes(root).boxes.tolist() == [[0, 0, 200, 100]]


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}"])
def test_yaml(tmp_path: Path, names: str) -> None:
    root = data_set(tmp_path / "set", {"train/a": "1 .5 .5 1 1", "val/b": "0 .5 .5 1 1", "other/c": "0 .5 .5 1 1"})
    file = tmp_path / "pets.yaml"
    file.write_text(f"path: set\ntrain: images/train\nval: [images/val]\ntest:\nnames: {names}\n")
    boxes = open_boxes(file)
    assert boxes.images.file_names == ["images/train/a.jpg", "images/val/b.jpg"]
    assert [boxes.category_names[index] for index in boxes.category] == ["dog", "cat"]
    assert boxes.source.address == str(root)


def test_roboflow_layout_and_lists_of_images(tmp_path: Path) -> None:
    data_set(tmp_path / "train", {"a": "0 .5 .5 1 1"})
    data_set(tmp_path / "more", {"b": "0 .5 .5 1 1", "c": "0 .5 .5 1 1"})
    (tmp_path / "val.txt").write_text("./more/images/c.jpg\n\n")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: val.txt\nnames: [cat]\n")
    assert open_boxes(tmp_path).images.file_names == ["train/images/a.jpg", "more/images/c.jpg"]


def test_class_names_beside_the_labels(tmp_path: Path) -> None:
    root = data_set(tmp_path, {"a": "1 .5 .5 1 1"})
    (root / "labels/classes.txt").write_text("cat\ndog\n")
    boxes = open_boxes(root)
    assert (boxes.category_names, boxes.category.tolist()) == (["cat", "dog"], [1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: nowhere", "is not there"),
        ("a: [", "cannot be read as YAML"),
        ("- 1", "is not a YOLO data set"),
        ("a: 1", "no YOLO labels"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(BoxFileError, match=words):
        open_boxes(tmp_path / "data.yaml")


@pytest.mark.parametrize("inside", ["images/train", "train", "."])
@pytest.mark.parametrize("listed", [False, True])
def test_a_yaml_whose_images_are_elsewhere(tmp_path: Path, inside: str, listed: bool) -> None:
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text("0 .5 .5 .5 .5")
    (root / "train.txt").write_text("images/train/a.png\n")
    (root / "data.yaml").write_text(f"train: {'train.txt' if listed else 'images/train'}\nnames: [cat]\n")
    (elsewhere / inside).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 200)).save(elsewhere / inside / "a.png")
    boxes = open_boxes(root / "data.yaml", elsewhere)
    assert boxes.boxes.tolist() == [[25, 50, 75, 150]]
    assert boxes.source.read(boxes.images.file_names[0])
