"""Lists of detections in COCO's results format: in, out, and what is no such list."""

import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from mal.datasets import open_boxes
from mal.errors import BoxFileError, UsageError
from mal.runtime.label import label_dataset


@pytest.fixture
def detections(dataset: Path) -> Path:
    """The data set's boxes as a detector writes them; its own annotations stay behind and must not be read."""
    document = json.loads(dataset.read_bytes())
    keys = ("image_id", "bbox", "category_id")
    listed = [{**{key: each[key] for key in keys}, "score": each["id"] / 100} for each in document["annotations"]]
    path = dataset.with_name("dets.json")
    path.write_text(json.dumps(listed))
    dataset.write_text(
        json.dumps(
            document | {"annotations": [{"id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "image_id": "image 0"}]}
        )
    )
    return path


def masks_of(annotations: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(each["bbox"], each.get("segmentation"), each.get("mal", {}).get("score")) for each in annotations]


def test_the_same_masks_as_of_annotations(dataset: Path, model: Path) -> None:
    document = json.loads(dataset.read_bytes())
    for each in document["annotations"]:
        each.pop("iscrowd", None)
        each.pop("segmentation", None)
    dataset.write_text(json.dumps(document))
    expected = json.loads(label_dataset(dataset, model=model).output.read_bytes())["annotations"]
    keys = ("image_id", "bbox", "category_id")
    listed = [{**{key: each[key] for key in keys}, "score": each["id"] / 100} for each in document["annotations"]]
    path = dataset.with_name("dets.json")
    path.write_text(json.dumps(listed, indent=1))
    dataset.write_text(json.dumps(document | {"annotations": [{"bbox": [0, 0, 1, 1]}] * 9}))

    report = label_dataset(path, images_json=dataset, model=model)

    output = json.loads(report.output.read_bytes())
    assert report.output.name == "dets.masks.json"
    assert masks_of(output) == masks_of(expected)
    assert [each["score"] for each in output] == [each["score"] for each in listed]
    lines = [json.loads(line) for line in Path(f"{report.output}.skipped.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:  # called by its place, as COCO's tools do
        assert listed[line["annotation_id"] - 1]["image_id"] == line["image_id"]
        assert "segmentation" not in output[line["annotation_id"] - 1]


def test_cocos_own_reader_takes_the_output(detections: Path, dataset: Path, model: Path) -> None:
    output = json.loads(label_dataset(detections, images_json=dataset, model=model).output.read_bytes())
    labelled = [each for each in output if "segmentation" in each and each["image_id"] != "nowhere"]
    truth = COCO()
    truth.dataset = json.loads(dataset.read_bytes())
    truth.createIndex()
    loaded = truth.loadRes(labelled)
    assert len(loaded.anns) == len(labelled) > 70
    assert loaded.annToMask(loaded.anns[1]).any()


def test_what_is_no_list_of_detections(detections: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(BoxFileError, match="--images-json"):
        open_boxes(detections)
    with pytest.raises(BoxFileError, match=r"does not start with \[ but with"):
        open_boxes(dataset, images_json=dataset)
    with pytest.raises(BoxFileError, match="is a JSON list"):
        open_boxes(detections, images_json=detections)
    with pytest.raises(BoxFileError, match="No such file"):
        open_boxes(detections, images_json=tmp_path / "nothing.json")
    (tmp_path / "more.json").write_text("[{}] {}")
    with pytest.raises(BoxFileError, match="expected end of the file"):
        open_boxes(tmp_path / "more.json", images_json=dataset)
    (tmp_path / "empty.json").write_text(" [ ] ")
    assert len(open_boxes(tmp_path / "empty.json", images_json=dataset)) == 0
    with pytest.raises(UsageError, match="is the input itself"):
        label_dataset(detections, images_json=dataset, output=dataset)


def test_another_file_of_images_is_another_run(detections: Path, dataset: Path) -> None:
    first = open_boxes(detections, images_json=dataset).sha256
    dataset.write_text(dataset.read_text().replace("blob", "blot"))
    assert open_boxes(detections, images_json=dataset).sha256 != first
