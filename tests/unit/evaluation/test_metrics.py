import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from mal.errors import InputError, MissingPackageError
from mal.evaluation.metrics import Evaluation, bootstrap, evaluate

KEYS = [
    *("objects", "miou_object", "miou_class", "miou_small", "miou_medium", "miou_large", "share_75"),
    *("boundary_iou", "floor_box", "floor_ellipse", "mask_ap", "score_spearman", "score_auc"),
]

Document = dict[str, Any]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def thing(key: int | str, box: tuple[int, int, int, int], image: int = 1, category: int = 1, **more: Any) -> Document:
    x0, y0, x1, y1 = box
    plain = {"id": key, "image_id": image, "category_id": category, "iscrowd": 0, "bbox": [x0, y0, x1 - x0, y1 - y0]}
    return plain | {"segmentation": rectangle(*box)} | more


def document(*annotations: Document) -> Document:
    images = [{"id": key, "file_name": f"{key}.jpg", "width": 400, "height": 300} for key in (1, 2)]
    return {
        "images": images,
        "categories": [{"id": key, "name": str(key)} for key in (1, 2)],
        "annotations": [*annotations],
    }


def judge(folder: Path, predicted: object, truth: object) -> Evaluation:
    for name, content in (("predicted", predicted), ("truth", truth)):
        (folder / f"{name}.json").write_bytes(orjson.dumps(content))
    return evaluate(folder / "predicted.json", folder / "truth.json")


# One small (20 x 20), one medium (60 x 60), one large (200 x 100) object; the text id beside the numbers.
TRUTH = document(
    thing(1, (0, 0, 20, 20)), thing(2, (100, 100, 160, 160), image=2, category=2), thing("c", (0, 150, 200, 250))
)


def test_figures_by_hand(tmp_path: Path) -> None:
    predicted = document(
        thing("c", (0, 150, 200, 240), mal={"score": 0.9}),  # IoU .9
        thing(1, (0, 0, 20, 10), mal={"score": 0.2}),  # IoU .5
        thing(2, (100, 100, 160, 148), image=2, category=2, mal={"score": 0.5}),  # IoU .8
    )

    found = judge(tmp_path, predicted, TRUTH)

    assert found.objects == 3
    assert found.miou_object == pytest.approx(2.2 / 3)
    assert found.miou_class == pytest.approx((0.7 + 0.8) / 2)
    assert [found.miou_small, found.miou_medium, found.miou_large] == pytest.approx([0.5, 0.8, 0.9])
    assert found.share_75 == pytest.approx(2 / 3)
    assert found.floor_box == 1
    assert found.floor_ellipse == pytest.approx(np.pi / 4, abs=0.01)
    # Of ten thresholds .50 .. .95: class 1 passes nine with one object (.9) and one with the other (.5); class 2 seven.
    assert found.mask_ap == pytest.approx((0.5 * 9 / 10 + 0.5 * 1 / 10 + 7 / 10) / 2, abs=0.01)
    assert found.score_spearman == pytest.approx(1)
    assert found.score_auc == 1
    assert found.area_spearman == pytest.approx(1)
    assert not found.missing
    assert not found.broken
    assert not found.unmatched


def test_truth_against_itself(tmp_path: Path) -> None:
    found = judge(tmp_path, TRUTH, TRUTH)
    assert [found.miou_object, found.miou_class, found.share_75, found.boundary_iou] == [1, 1, 1, 1]
    assert found.mask_ap == pytest.approx(1)
    assert found.score_auc is None


def test_what_does_not_fit_is_counted_and_named(tmp_path: Path) -> None:
    good, size = TRUTH["annotations"][0], {"size": [300, 400]}
    predicted = document(
        good,
        thing(2, (0, 0, 1, 1), segmentation=size | {"counts": "\x7f"}),
        thing("stray", (0, 0, 5, 5)),
        thing("1", (0, 0, 5, 5)),  # the text 1 is another id than the number 1
    )

    found = judge(tmp_path, predicted, TRUTH)

    assert found.miou_object == pytest.approx(1 / 3)
    assert found.missing == ["c"]
    assert [key for key, _ in found.broken] == [2]
    assert found.unmatched == ["stray", "1"]
    text = found.text()
    assert all(word in text for word in ("1 objects (c)", "2 objects (stray, 1)", "broken RLE"))


def test_annotation_without_segmentation_counts_zero(tmp_path: Path) -> None:
    bare = [{key: value for key, value in row.items() if key != "segmentation"} for row in TRUTH["annotations"]]
    found = judge(tmp_path, document(*bare), TRUTH)
    assert [found.objects, found.miou_object, found.mask_ap] == [3, 0, 0]
    assert found.missing == [1, 2, "c"]


def test_empty_mask_counts_zero_and_is_not_missing(tmp_path: Path) -> None:
    nothing = {"size": [300, 400], "counts": [300 * 400]}
    found = judge(tmp_path, document(thing(1, (0, 0, 20, 20), segmentation=nothing, mal={"score": 0.1})), TRUTH)
    assert found.miou_object == 0
    assert found.missing == [2, "c"]


def test_true_crowds_are_left_out(tmp_path: Path) -> None:
    crowd = thing(9, (0, 0, 100, 100), iscrowd=1, segmentation={"size": [300, 400], "counts": [300 * 400]})
    found = judge(tmp_path, document(*TRUTH["annotations"], crowd), document(*TRUTH["annotations"], crowd))
    assert found.objects == 3
    assert found.miou_object == 1
    assert not found.unmatched


def test_size_classes_go_by_the_true_mask_and_include_their_upper_bound(tmp_path: Path) -> None:
    large_box_small_mask = thing(4, (0, 0, 200, 200), segmentation=rectangle(0, 0, 10, 10))
    truth = document(thing(1, (0, 0, 32, 32)), thing(2, (0, 0, 96, 96)), thing(3, (0, 0, 96, 97)), large_box_small_mask)
    found = judge(tmp_path, truth, truth)
    assert [found.count_small, found.count_medium, found.count_large] == [2, 1, 1]


def test_json_has_the_promised_keys_in_order(tmp_path: Path) -> None:
    values = json.loads(json.dumps(judge(tmp_path, TRUTH, TRUTH).to_json()))
    assert list(values)[: len(KEYS)] == KEYS
    assert "judged" not in values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"].append(d["annotations"][0]), "annotation id 1 occurs twice"),
        (lambda d: d["annotations"][0].pop("id"), "id None"),
        (lambda d: d["annotations"][0].update(image_id=77), "image 77"),
        (lambda d: d["annotations"][0].pop("segmentation"), "no true mask"),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 2]]), "annotation 1: a polygon"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "bbox"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, True, 4]), "bbox"),
        (lambda d: d["images"][0].update(width=0), "height and a width"),
        (lambda d: d["annotations"].clear(), "no object"),
        (lambda d: d.pop("images"), "'images'"),
    ],
)
def test_truth_that_cannot_be_used(tmp_path: Path, change: Any, message: str) -> None:
    truth = json.loads(json.dumps(TRUTH))
    change(truth)
    with pytest.raises(InputError, match=message):
        judge(tmp_path, TRUTH, truth)


@pytest.mark.parametrize(("predicted", "message"), [([], "is a list"), ({}, "'images'"), ("x", "'images'")])
def test_prediction_that_is_no_coco_document(tmp_path: Path, predicted: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        judge(tmp_path, predicted, TRUTH)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    with pytest.raises(InputError, match="not JSON"):
        evaluate(broken, broken)
    with pytest.raises(InputError, match="No such file"):
        evaluate(broken, tmp_path / "none.json")


def test_missing_package_names_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingPackageError, match=r'pip install "mask-auto-labeler\[eval\]"'):
        judge(tmp_path, TRUTH, TRUTH)


def test_interval_draws_images_not_objects() -> None:
    """Two images of 100 objects, one all 0, one all 1: drawn whole, the mean is 0, .5 or 1."""
    iou, image = np.repeat([0.0, 1.0], 100), np.repeat([3, 8], 100)
    assert bootstrap(iou, image) == (0, 1)
    assert bootstrap(np.full(10, 0.7), np.arange(10)) == pytest.approx((0.7, 0.7))


@pytest.mark.shared
def test_boxes_of_coco_val_score_what_the_floor_says(shared: Path) -> None:
    data = shared / "data" / "coco-val" / "instances.json"
    found = evaluate(data, data)
    assert found.objects == 952
    assert found.floor_box == pytest.approx(0.606, abs=0.001)
    assert found.floor_ellipse == pytest.approx(0.645, abs=0.001)
