"""A model of a few numbers that keeps the contract, and a data set with every kind of trouble."""

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_bench import Bench
from onnx import TensorProto, helper
from PIL import Image

from mal.config import ModelConstants
from mal.errors import MissingPackageError
from mal.plugins import cuda_library
from mal.plugins.compile import Recipe, find_compiler

SIZE = 32
CONSTANTS = ModelConstants(backbone="tiny", size=SIZE)


class FakeSession:
    """Bright is foreground; counts what it is given."""

    constants = CONSTANTS
    model_id = "0" * 12
    backend = "fake"
    device = "cpu"
    threads = 1
    lanes = 1
    auto_batch = 16

    def allocate(self, batch: int) -> np.ndarray:
        return np.empty((batch, 3, SIZE, SIZE), np.float32)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.batches.append(len(crops))
        logits = crops.mean(1)[:, 2::4, 2::4] - 127
        return logits, logits.mean((1, 2)) / 255 + 0.5

    def close(self) -> None:
        pass


def tiny_model(
    batch: int | str = "B", crops: str = "crops", score: str = "score", metadata: dict[str, str] | None = None
) -> onnx.ModelProto:
    """Mean brightness of 4 x 4 pixels is the logit: (B, 3, 32, 32) -> (B, 1, 8, 8), score (B,)."""
    kernel = np.full((1, 3, 4, 4), 1 / 48 / 64, np.float32)
    nodes = [
        helper.make_node("Conv", [crops, "kernel", "bias"], ["logits"], strides=[4, 4]),
        helper.make_node("ReduceMean", ["logits", "axes"], ["mean"], keepdims=0),
        helper.make_node("Sigmoid", ["mean"], [score]),
    ]
    constants = [
        onnx.numpy_helper.from_array(kernel, "kernel"),
        onnx.numpy_helper.from_array(np.array([-2], np.float32), "bias"),
        onnx.numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(crops, TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 1, 8, 8]),
            helper.make_tensor_value_info(score, TensorProto.FLOAT, [batch]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, CONSTANTS.to_metadata() if metadata is None else metadata)
    return model


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        path = tmp_path / "tiny.onnx"
        path.write_bytes(tiny_model(**changes).SerializeToString())
        return path

    return make


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture
def dataset(tmp_path: Path, rng: np.random.Generator) -> Path:
    """boxes.json with 12 images: 7 boxes each, then crowd, outside, degenerate, no image, a broken image."""
    folder = tmp_path / "images"
    folder.mkdir()
    images, annotations = [], []
    for number in range(12):
        width, height = 60 + number, 50
        blobs = rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.png")
        images.append({"id": f"image {number}", "file_name": f"{number}.png", "width": width, "height": height})
        for _ in range(7):
            x, y = rng.uniform(-2.5, 40), rng.uniform(0, 30)
            annotations.append({"image_id": f"image {number}", "bbox": [x, y, *rng.uniform(3, 25, 2)]})
    annotations[3]["iscrowd"] = 1
    annotations[3]["segmentation"] = {"size": [50, 60], "counts": [3000]}
    annotations[9]["bbox"] = [100, 100, 20, 20]
    annotations[15]["bbox"] = [10, 10, 0, 20]
    annotations[20]["image_id"] = "nowhere"
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:-40])
    annotations[40]["note"] = "kept ünïcode \\u00e9"
    annotations.reverse()  # not in the images' order
    for number, annotation in enumerate(annotations):
        annotation |= {"id": number, "category_id": 1, "area": 1.50}
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "blob"}], "x": None}
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def fake_session() -> FakeSession:
    return FakeSession()


@pytest.fixture(scope="session")
def crop_kernel() -> ctypes.CDLL:
    """What crops.cu does, on memory of the host; declared."""
    try:
        command = (find_compiler(), "-std=c++17", "-O2", "-fPIC", "-ffp-contract=off")
    except MissingPackageError as missing:
        pytest.skip(str(missing))
    header = cuda_library.CROP_HEADER
    path = Recipe("mal_test_cut", command, (Path(__file__).with_name("cut_on_cpu.cpp"),), (header,)).build()
    return cuda_library.declare_crops(ctypes.CDLL(str(path)))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)
