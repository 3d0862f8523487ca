"""benchmarks/retention: what the segmenters learn, and how they are judged; a model that knows the answer stands in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.retention.__main__ import Objects, Plan, average_precision

SQUARES = {"cat": [10, 10, 20, 30], "dog": [40, 5, 15, 15]}
IDS = {"cat": 7, "dog": 3}  # in the training file's order; the file that judges has them the other way round


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    rows: list[dict[str, Any]] = [
        {"id": number, "image_id": 1, "category_id": IDS[name], "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
         "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for number, (name, (x, y, w, h)) in enumerate(SQUARES.items(), 1)
    ]  # fmt: skip
    images = [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}]
    return {"images": images, "annotations": rows, "categories": [{"id": each, "name": ""} for each in IDS.values()]}


@pytest.mark.parametrize(("swapped", "smoke", "ap"), [(False, False, 1.0), (True, False, 0.0), (True, True, 1.0)])
def test_true_masks_of_the_right_class_have_an_ap_of_one(
    document: dict[str, Any], tmp_path: Path, swapped: bool, smoke: bool, ap: float
) -> None:
    data = Objects(document, tmp_path, only={1, 2}, most=None)
    _, target = data[0]
    assert target["masks"].sum(dim=(1, 2)).tolist() == [600, 225]
    labels = target["labels"].flip(0) if swapped else target["labels"]

    def model(images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert images[0].shape == (3, 60, 80)
        return [{"masks": target["masks"][:, None].float(), "labels": labels, "scores": torch.tensor([0.9, 0.8])}]

    plan = Plan(steps=1, batch=1, rate=0.1, size=64, weights=None, smoke=smoke, device="cpu")
    val = document | {"categories": document["categories"][::-1]}
    found = average_precision(model, data.classes, val, tmp_path, plan, None)  # pyright: ignore[reportArgumentType]
    assert found == pytest.approx(ap)


def test_both_sides_learn_the_same_objects(document: dict[str, Any], tmp_path: Path) -> None:
    _, target = Objects(document, tmp_path, only={2}, most=None)[0]
    assert target["boxes"].tolist() == [[40, 5, 55, 20]]
    assert np.array_equal(target["labels"], [2])
