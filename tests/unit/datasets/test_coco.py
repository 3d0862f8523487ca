"""COCO and LVIS: every column, every id, and the way back."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from box_writing import written
from hypothesis import given, settings
from hypothesis import strategies as st

from mal.datasets import BoxFile, open_boxes, scan

IMAGES = [{"id": 3, "file_name": "a.jpg", "width": 40, "height": 30}, {"id": 1, "file_name": "b/c.jpg"}]
BOX = {"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 2, 3.5, 4]}


def opened(folder: Path, annotations: list[Any], images: list[Any] = IMAGES, **others: Any) -> BoxFile:
    file = folder / "boxes.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, **others}))
    return open_boxes(file)


def test_columns(tmp_path: Path) -> None:
    boxes = opened(
        tmp_path,
        [BOX, {**BOX, "id": 2, "image_id": 1, "iscrowd": 1}, {**BOX, "id": 9, "image_id": 8, "category_id": 5}],
        categories=[{"id": 5, "name": "cat"}, {"id": 7, "name": "dog"}],
    )

    assert (len(boxes), boxes.format, boxes.source.address) == (3, "coco", str(tmp_path))
    assert boxes.images.ids == [3, 1]
    assert boxes.images.file_names == ["a.jpg", "b/c.jpg"]
    assert boxes.images.widths.tolist() == [40, 0]
    assert boxes.images.heights.tolist() == [30, 0]
    assert boxes.image_row.tolist() == [0, 1, -1]
    assert boxes.boxes.tolist() == [[1, 2, 4.5, 6]] * 3
    assert boxes.crowd.tolist() == [False, True, False]
    assert boxes.category.tolist() == [1, 1, 0]
    assert boxes.category_names == ["cat", "dog"]
    assert boxes.annotation_ids([2, 0]) == [9, 1]
    assert boxes.image_ids([2, 0]) == [8, 3]
    assert [boxes.reason(row) for row in range(3)] == [None, "crowd", "no image has its image_id"]
    assert (boxes.boxes.dtype, boxes.image_row.dtype, boxes.category.dtype) == (np.float64, np.int32, np.int32)


def test_order_groups_by_image_and_keeps_the_files_order_within(tmp_path: Path) -> None:
    boxes = opened(tmp_path, [{**BOX, "image_id": image_id} for image_id in (1, 99, 3, 1, 3)])
    assert boxes.order().tolist() == [2, 4, 0, 3, 1]


def test_images_after_annotations(tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({"annotations": [BOX], "licenses": "none", "images": IMAGES}))
    assert open_boxes(file).image_row.tolist() == [0]


def test_image_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert opened(tmp_path, []).source.address == str(tmp_path / "images")
    assert open_boxes(tmp_path / "boxes.json", tmp_path).source.address == str(tmp_path)


def test_lvis_takes_the_path_from_the_address(tmp_path: Path) -> None:
    image = {"id": 3, "coco_url": "http://images.cocodataset.org/val2017/000000000139.jpg"}
    boxes = opened(tmp_path, [BOX], [image])
    assert (boxes.format, boxes.images.file_names) == ("lvis", ["val2017/000000000139.jpg"])


def test_a_file_name_wins_over_the_address(tmp_path: Path) -> None:
    boxes = opened(tmp_path, [BOX], [{**IMAGES[0], "coco_url": "http://images.cocodataset.org/val2017/1.jpg"}])
    assert (boxes.format, boxes.images.file_names) == ("coco", ["a.jpg"])


def test_ids_of_any_kind(tmp_path: Path) -> None:
    big = 2**80
    ids = [5, "5", 5.0, big, -(2**62), 2**62, "x", 2**63, -(2**63) - 1, 2**64]
    images = [{"id": image_id, "file_name": f"{number}.jpg"} for number, image_id in enumerate(ids) if number != 2]
    boxes = opened(tmp_path, [{**BOX, "image_id": image_id, "id": image_id} for image_id in ids], images)
    assert boxes.image_row.tolist() == [0, 1, 0, 2, 3, 4, 5, 6, 7, 8]
    assert boxes.annotation_ids(range(10)) == [5, "5", None, *ids[3:]]
    assert boxes.duplicate_ids == 1  # 5.0 is 5


@pytest.mark.parametrize("image_id", [None, True, [3], {"a": 3}, 3.5, math.nan])
def test_what_is_no_id_finds_no_image(tmp_path: Path, image_id: object) -> None:
    boxes = opened(tmp_path, [{**BOX, "image_id": image_id}, BOX], [*IMAGES, {"id": image_id, "file_name": "x.jpg"}])
    assert boxes.image_row.tolist() == [-1, 0]


@pytest.mark.parametrize("others", [{"categories": [{"name": "cat"}]}, {"images": [{"file_name": "a.jpg"}]}])
def test_tables_without_any_id_hold_nothing(tmp_path: Path, others: dict[str, Any]) -> None:
    boxes = opened(tmp_path, [BOX, {**BOX, "image_id": None}], **others)
    assert boxes.image_row.tolist() == ([-1, -1] if "images" in others else [0, -1])


def test_ids_far_apart(tmp_path: Path) -> None:
    images = [{"id": image_id, "file_name": str(image_id)} for image_id in (10**15, 7, -(10**12))]
    boxes = opened(tmp_path, [{**BOX, "image_id": image_id} for image_id in (-(10**12), 8, 10**15, 7)], images)
    assert boxes.image_row.tolist() == [2, -1, 0, 1]


def test_duplicate_annotation_ids_are_counted_and_stay_objects(tmp_path: Path) -> None:
    boxes = opened(tmp_path, [{**BOX, "id": number} for number in (4, 4, "4", "4", 4, None, None)])
    assert boxes.duplicate_ids == 3
    assert [boxes.reason(row) for row in range(7)] == [None] * 7
    without = [{key: BOX[key] for key in ("image_id", "bbox")}] * 3
    assert opened(tmp_path, without).duplicate_ids == 0


def test_duplicate_images(tmp_path: Path) -> None:
    images = [*IMAGES, IMAGES[0], {"id": 1, "file_name": "other.jpg"}]
    boxes = opened(tmp_path, [BOX, {**BOX, "image_id": 1}], images)
    assert boxes.image_row.tolist() == [0, -2]
    assert boxes.reason(0) is None
    assert "several images" in str(boxes.reason(1))


@pytest.mark.parametrize(
    "bbox",
    [
        *(None, "1,2,3,4", {}, 7, [], [1, 2, 3], [1, 2, 3, 4, 5]),
        *([1, 2, 3, "4"], [1, 2, 3, None], [True, 2, 3, 4], [[1], 2, 3, 4]),
        *([1, 2, 3, math.nan], [1, math.inf, 3, 4], [-math.inf, 2, 3, 4], [10**400, 1, 1, 1]),
    ],
    ids=str,
)
def test_unreadable_boxes_are_nan(tmp_path: Path, bbox: object) -> None:
    boxes = opened(tmp_path, [BOX, {**BOX, "bbox": bbox}, BOX, {"id": 4, "image_id": 3}])
    assert np.isnan(boxes.boxes).all(axis=1).tolist() == [False, True, False, True]
    assert [boxes.reason(row) for row in (0, 1)] == [None, "bbox is not four finite numbers"]


@pytest.mark.parametrize("bbox", [[1, 2, 0, 4], [1, 2, 3, -4], [5, 5, -1, -1]])
def test_boxes_without_area_stay_as_they_are(tmp_path: Path, bbox: list[float]) -> None:
    boxes = opened(tmp_path, [{**BOX, "bbox": bbox}])
    assert boxes.boxes.tolist() == [[bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]]]
    assert boxes.reason(0) == "bbox has no area"


def test_infinite_boxes_by_overflow(tmp_path: Path) -> None:
    assert opened(tmp_path, [{**BOX, "bbox": [1e308, 0, 1.7e308, 1]}]).reason(0) == "bbox is not four finite numbers"
    file = tmp_path / "boxes.json"
    file.write_text(
        '{"images": [{"id": 3, "file_name": "a"}], "annotations": [{"image_id": 3, "bbox": [1, 2, 1e999, 4]}]}'
    )
    assert open_boxes(file).reason(0) == "bbox is not four finite numbers"


@pytest.mark.parametrize("annotation", [None, 5, "text", [], [BOX], {}, True])
def test_what_is_no_annotation_keeps_its_place(tmp_path: Path, annotation: object) -> None:
    boxes = opened(tmp_path, [BOX, annotation, BOX])
    assert boxes.image_row.tolist() == [0, -1, 0]
    output = json.loads(written(boxes, {0: {"area": b"1"}, 2: {"area": b"2"}}))
    assert output["annotations"] == [{**BOX, "area": 1}, annotation, {**BOX, "area": 2}]


@pytest.mark.parametrize("size", ["40", -1, 0, None, 1.5, 2**40, [], math.nan])
def test_sizes_that_make_no_sense_are_unknown(tmp_path: Path, size: object) -> None:
    boxes = opened(tmp_path, [BOX], [{"id": 3, "file_name": "a.jpg", "width": size, "height": 30}])
    assert (boxes.images.widths.tolist(), boxes.images.heights.tolist()) == ([0], [30])


@pytest.mark.parametrize("image", [None, 3, {}, {"id": 3}, {"id": 3, "file_name": None}, {"id": 3, "file_name": ""}])
def test_images_that_name_no_file(tmp_path: Path, image: object) -> None:
    boxes = opened(tmp_path, [BOX], [image, IMAGES[1]])
    assert boxes.reason(0) in ("no image has its image_id", "its image has no file_name")
    assert boxes.images.file_names == ["", "b/c.jpg"]


def test_text_that_is_no_utf8_spoils_only_its_own_record(tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    text = '{"images": [{"id": 3, "file_name": "a.jpg"}, {"id": 4, "file_name": "\xff.jpg"}], "annotations": [%s]}'
    file.write_bytes((text % json.dumps(BOX)).encode("latin-1"))
    boxes = open_boxes(file)
    assert boxes.images.file_names == ["a.jpg", ""]
    assert written(boxes, {}) == file.read_bytes()


def test_lone_surrogates(tmp_path: Path) -> None:
    boxes = opened(tmp_path, [{**BOX, "note": "\ud800"}, BOX], [IMAGES[0], {"id": 4, "file_name": "\udcff.jpg"}])
    assert boxes.image_row.tolist() == [0, 0]
    assert boxes.images.file_names[0] == "a.jpg"
    assert json.loads(written(boxes, {0: {"area": b"1"}}))["annotations"][0] == {**BOX, "note": "\ud800", "area": 1}


def test_nan_elsewhere_is_copied(tmp_path: Path) -> None:
    boxes = opened(tmp_path, [{**BOX, "score": math.nan, "note": "NaN"}, BOX], IMAGES, info={"loss": -math.inf})
    text = (tmp_path / "boxes.json").read_bytes()
    assert boxes.boxes.tolist() == [[1, 2, 4.5, 6]] * 2
    assert written(boxes, {}) == text
    assert written(boxes, {0: {"area": b"1"}}) == text.replace(b'"note": "NaN"', b'"note": "NaN", "area": 1')


def test_byte_order_mark(tmp_path: Path) -> None:
    boxes = opened(tmp_path, [BOX])
    text = b"\xef\xbb\xbf" + boxes.path.read_bytes()
    boxes.path.write_bytes(text)
    boxes = open_boxes(boxes.path)
    assert len(boxes) == 1
    assert written(boxes, {}) == text


def test_gzip(tmp_path: Path) -> None:
    import gzip

    plain = opened(tmp_path, [BOX] * 5)
    packed = tmp_path / "boxes.json.gz"
    packed.write_bytes(gzip.compress(plain.path.read_bytes()))
    boxes = open_boxes(packed)
    assert boxes.boxes.tolist() == plain.boxes.tolist()
    assert boxes.sha256 == plain.sha256


def test_sha256_is_that_of_the_file(tmp_path: Path) -> None:
    import hashlib

    boxes = opened(tmp_path, [BOX])
    assert boxes.sha256 == hashlib.sha256(boxes.path.read_bytes()).hexdigest()


def test_a_key_that_is_there_keeps_its_place_and_everything_else_its_letters(tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    one = '{"id": 1, "area": 1.50, "image_id":3 , "x": [1e2, "\\u00e4"], "bbox": [1, 2, 3, 4.0]}'
    file.write_text('{"images": [], "annotations": [\n  ' + one + " ,\n  {}\n]}")
    text = written(open_boxes(file), {0: {"area": b"7", "mal": b"{}"}, 1: {"area": b"8", "mal": b"1"}})
    new = '{"id": 1, "area": 7, "image_id":3 , "x": [1e2, "\\u00e4"], "bbox": [1, 2, 3, 4.0], "mal": {}}'
    assert text.decode() == '{"images": [], "annotations": [\n  ' + new + ' ,\n  {"area": 8, "mal": 1}\n]}'


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    from mal.errors import BoxFileError

    boxes = opened(tmp_path, [BOX])
    boxes.path.write_text(boxes.path.read_text() + " ")
    with pytest.raises(BoxFileError, match="was changed"):
        written(boxes, {})


def test_ten_thousand_ids_are_read_again_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "WINDOW", 1000)
    boxes = opened(tmp_path, [{**BOX, "id": number} for number in range(3000)])
    rows = np.random.default_rng(0).permutation(3000)
    assert boxes.annotation_ids(rows) == rows.tolist()


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)
_ids = st.integers(-3, 9) | st.sampled_from(["1", "a", "", 2**70, 1.0]) | _scalars
_annotation = st.fixed_dictionaries(
    {"image_id": _ids},
    optional={
        "id": _ids,
        "bbox": st.lists(st.floats() | st.integers(-9, 9), min_size=4, max_size=4) | _values,
        "iscrowd": st.sampled_from([0, 1, True]) | _values,
        "category_id": _ids,
        "area": _values,
        "segmentation": _values,
        "},{": _values,
        'quo"te\\': _values,
    },
)
_document = st.fixed_dictionaries(
    {"images": st.lists(st.fixed_dictionaries({"id": _ids}, optional={"file_name": _scalars, "width": _scalars}))},
    optional={"info": _values, "a]}": _values},
)


@settings(deadline=None, max_examples=80)
@given(_document, st.lists(_annotation | _values, max_size=12), st.sampled_from([40, 300, 1 << 18]), st.data())
def test_any_document_is_copied_and_extended(
    tmp_path_factory: pytest.TempPathFactory, rest: Any, annotations: list[Any], window: int, data: st.DataObject
) -> None:
    """Whatever the windows: nothing is lost or invented, columns equal a plain reading, the copy is literal."""
    document = {**rest, "annotations": annotations, "categories": [{"id": 1}]}
    style = data.draw(st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}]))
    file = tmp_path_factory.mktemp("any") / "boxes.json"
    try:
        text = json.dumps(document, **style).encode()
    except UnicodeEncodeError:
        text = json.dumps(document).encode()
    file.write_bytes(text)
    new = {row: {"area": b"[1.50]", "mal": b'{"flags":[]}'} for row in range(0, len(annotations), 2)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "WINDOW", window)
        boxes = open_boxes(file)
        assert written(boxes, {}) == text
        output = written(boxes, new)

    plain: list[Any] = json.loads(text)["annotations"]
    assert len(boxes) == len(plain)
    for row, annotation in enumerate(plain):
        record: dict[str, Any] = annotation if isinstance(annotation, dict) else {}
        bbox = record.get("bbox")
        edges = [edge for edge in bbox if type(edge) in (int, float)] if isinstance(bbox, list) else []
        if isinstance(bbox, list) and len(edges) == len(bbox) == 4 and all(abs(edge) < 2**1023 for edge in edges):
            x, y, w, h = map(float, edges)
            assert boxes.boxes[row].tolist() == [x, y, x + w, y + h]
        elif not (len(edges) == 4 and all(math.isfinite(edge) for edge in edges if isinstance(edge, float))):
            assert not np.isfinite(boxes.boxes[row]).all()
        if row in new and isinstance(annotation, dict):
            record.update({"area": [1.5], "mal": {"flags": []}})
    assert repr(json.loads(output)["annotations"]) == repr(plain)
