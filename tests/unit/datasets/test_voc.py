"""Pascal VOC's XML becomes a COCO document."""

import json
from pathlib import Path

import pytest
from box_writing import written

from mal.datasets import open_boxes
from mal.errors import BoxFileError

OBJECT = "<object><name>{}</name><difficult>1</difficult><bndbox>{}</bndbox></object>"
CORNERS = "<xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>20</ymax>"
FILE = "<annotation>{}<size><width>50</width><height>40</height><depth>3</depth></size>{}</annotation>"


def data_set(root: Path, **files: str) -> Path:
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir()
    for name, text in files.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def test_pixels_count_from_one_and_include_the_last(tmp_path: Path) -> None:
    objects = OBJECT.format("dog", CORNERS) + OBJECT.format("cat", CORNERS) + OBJECT.format("dog", CORNERS)
    text = FILE.format("<filename>x.png</filename>", objects)
    boxes = open_boxes(data_set(tmp_path, a=text, b=FILE.format("", "")))

    assert (boxes.format, boxes.source.address) == ("voc", str(tmp_path / "JPEGImages"))
    assert boxes.boxes.tolist() == [[0, 1, 10, 20]] * 3
    assert boxes.images.file_names == ["x.png", "b.jpg"]
    assert (boxes.images.widths.tolist(), boxes.images.heights.tolist()) == ([50, 50], [40, 40])
    assert boxes.category_names == ["dog", "cat"]
    assert boxes.category.tolist() == [0, 1, 0]
    first = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0.0, 1.0, 10.0, 19.0], "difficult": 1}
    assert json.loads(written(boxes))["annotations"][0] == first


def test_one_file_and_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(FILE.format("", OBJECT.format("dog", CORNERS)))
    for path in (tmp_path, tmp_path / "a.xml"):
        boxes = open_boxes(path)
        assert (len(boxes), boxes.source.address, boxes.images.file_names) == (1, str(tmp_path), ["a.jpg"])
    assert open_boxes(tmp_path / "a.xml", tmp_path.parent).source.address == str(tmp_path.parent)


@pytest.mark.parametrize("corners", ["", "<xmin>1</xmin>", CORNERS.replace("20", "many"), CORNERS.replace("20", "nan")])
def test_objects_without_a_box_stay(tmp_path: Path, corners: str) -> None:
    boxes = open_boxes(data_set(tmp_path, a=FILE.format("", OBJECT.format("dog", corners) + "<object/>")))
    assert [boxes.reason(row) for row in range(2)] == ["bbox is not four finite numbers"] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation>", "is broken XML"),
        ("", "is broken XML"),
        ("<html/>", "expected <annotation>, got <html>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "declares a document type"),
    ],
)
def test_bad_xml(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BoxFileError, match=words):
        open_boxes(data_set(tmp_path, a=text))


def test_one_broken_file_among_others_is_listed(tmp_path: Path) -> None:
    good = FILE.format("", OBJECT.format("dog", CORNERS))
    boxes = open_boxes(data_set(tmp_path, a=good, b="<annotation>", c=good))
    assert boxes.images.file_names[1] == "b.jpg"
    assert boxes.image_row.tolist() == [0, 1, 2]
    assert [boxes.reason(row) for row in range(3)] == [None, "bbox is not four finite numbers", None]
    assert "b.xml is broken XML" in json.loads(written(boxes))["annotations"][1]["problem"]
