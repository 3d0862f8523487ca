from pathlib import Path

import numpy as np
import onnx
import orjson
import pytest
from onnx import TensorProto, helper

from mal.config import ModelConstants
from mal.datasets import open_boxes
from mal.errors import OutputError
from mal.evaluation.demo import PHOTOS, run_demo
from mal.images import find_image, read_image


@pytest.fixture
def bright_is_object(tmp_path: Path) -> Path:
    """A model that takes what is brighter than grey for the object: (B, 3, 32, 32) -> (B, 1, 8, 8), score (B,)."""
    constants = ModelConstants(backbone="none", size=32)
    kernel = np.full((1, 3, 4, 4), 1 / 48, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["crops", "kernel", "bias"], ["logits"], strides=[4, 4]),
            helper.make_node("ReduceMean", ["logits", "axes"], ["mean"], keepdims=0),
            helper.make_node("Sigmoid", ["mean"], ["score"]),
        ],
        "bright",
        [helper.make_tensor_value_info("crops", TensorProto.FLOAT, ["B", 3, 32, 32])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 1, 8, 8]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["B"]),
        ],
        [
            onnx.numpy_helper.from_array(kernel, "kernel"),
            onnx.numpy_helper.from_array(np.array([-127], np.float32), "bias"),
            onnx.numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, constants.to_metadata())
    path = tmp_path / "bright.onnx"
    onnx.save(model, path)
    return path


def test_demo_labels_every_photograph(tmp_path: Path, bright_is_object: Path) -> None:
    out = tmp_path / "some" / "demo"

    index = run_demo(out, model=bright_is_object, device="cpu")

    masks = orjson.loads((out / "masks.json").read_bytes())
    assert index == out / "index.html"
    assert len(masks["annotations"]) == 21
    assert all("mal" in annotation for annotation in masks["annotations"])
    assert len(list((out / "pictures").iterdir())) == 7
    assert run_demo(out, model=bright_is_object, device="cpu") == index  # a second time over its own files


def test_demo_says_when_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        run_demo(tmp_path / "file" / "demo")


def test_photographs_and_boxes_fit_and_are_accounted_for() -> None:
    box_file = open_boxes(PHOTOS / "boxes.json")
    sources = (PHOTOS / "SOURCES.md").read_text()
    assert box_file.source.address == str(PHOTOS)
    for row, name in enumerate(box_file.images.file_names):
        width, height = int(box_file.images.widths[row]), int(box_file.images.heights[row])
        assert read_image(find_image(name, PHOTOS), width, height).shape == (height, width, 3)
        assert f"`{name}`" in sources
        boxes = box_file.boxes[box_file.image_row == row]
        assert len(boxes)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= [width, height]).all()
    assert {path.name for path in PHOTOS.glob("*.jpg")} == set(box_file.images.file_names)
    assert sum(path.stat().st_size for path in PHOTOS.iterdir()) < 1_500_000
