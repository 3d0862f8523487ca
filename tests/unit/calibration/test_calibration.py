"""Calibration: which crops are drawn, which nodes are quantised, and what is kept in float."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, shape_inference
from PIL import Image
from tensorrt_parts import layered_model

from mal.calibration.crops import SIZES, cut, draw, size_class
from mal.calibration.quantise import FOR_CPU, FOR_TENSORRT, Scheme, layers, quantise
from mal.calibration.ranges import METHODS, measure
from mal.calibration.search import Calibration, calibrate
from mal.config import ModelConstants
from mal.datasets import BoxFile, open_boxes
from mal.errors import InputError

CONSTANTS = ModelConstants(backbone="none", size=32)
SIDES = (20, 60, 120)


def box_file(folder: Path, images: int = 10, flat: bool = False) -> BoxFile:
    """Pictures with a small, a medium and a large box each; every tenth object is of a rare category."""
    rng = np.random.default_rng(0)
    document: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    for image in range(images):
        pixels = np.full((160, 160, 3), 40 * image % 256) if flat else rng.integers(0, 256, (160, 160, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image}.png")
        document["images"].append({"id": image, "file_name": f"{image}.png", "width": 160, "height": 160})
        for side in SIDES:
            number = len(document["annotations"])
            box = {"id": number, "image_id": image, "bbox": [10, 10, side, side], "category_id": 1 + (number % 10 == 9)}
            document["annotations"].append(box)
    (folder / "boxes.json").write_text(json.dumps(document))
    return open_boxes(folder / "boxes.json")


def test_a_fifth_of_the_pictures_is_held_aside(tmp_path: Path) -> None:
    file = box_file(tmp_path)
    drawn = draw(file)
    pictures = [set(file.image_row[rows].tolist()) for rows in (drawn.ranges, drawn.trials, drawn.aside)]
    assert len(pictures[2]) == 2
    assert not pictures[2] & (pictures[0] | pictures[1])
    every = np.concatenate([drawn.ranges, drawn.trials, drawn.aside])
    assert sorted(every.tolist()) == list(range(30))
    assert (len(drawn.ranges), len(drawn.trials), len(drawn.aside)) == (16, 8, 6)


def test_the_draw_repeats_by_its_seed(tmp_path: Path) -> None:
    file = box_file(tmp_path)
    assert draw(file).to_json() == draw(open_boxes(file.path)).to_json()
    assert draw(file, 1).to_json()["annotation_ids"] != draw(file).to_json()["annotation_ids"]
    assert draw(file).to_json()["annotation_ids"]["aside"] == file.annotation_ids(draw(file).aside)


def test_sizes_and_categories_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = box_file(tmp_path)
    monkeypatch.setattr("mal.calibration.crops.RANGES", 4)
    monkeypatch.setattr("mal.calibration.crops.TRIALS", 2)
    drawn = draw(file)
    used = np.concatenate([drawn.ranges, drawn.trials])
    assert Counter(size_class(file.boxes[used]).tolist()) == {0: 2, 1: 2, 2: 2}
    rare = np.flatnonzero(file.category == 1)
    left = np.setdiff1d(rare, drawn.aside)
    # Two draws a size: each rare object that was not held aside comes before the second frequent one.
    assert set(left.tolist()) <= set(used.tolist())


def test_one_picture_is_split_by_its_boxes(tmp_path: Path) -> None:
    drawn = draw(box_file(tmp_path, images=1))
    assert [len(rows) for rows in (drawn.ranges, drawn.trials, drawn.aside)] == [1, 1, 1]


def test_too_few_boxes(tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(InputError, match="0 boxes that can be labelled"):
        draw(open_boxes(tmp_path / "boxes.json"))


def test_crops_are_those_of_the_rows(tmp_path: Path) -> None:
    file = box_file(tmp_path)
    (tmp_path / "3.png").unlink()
    rows = np.array([29, 0, 9, 2, 1])
    crops = cut(file, rows, CONSTANTS)
    assert crops.rows.tolist() == [29, 0, 2, 1]  # the order asked for, without the missing picture's
    assert crops.pixels.shape == (4, 3, 32, 32)
    assert [SIZES[index] for index in crops.size] == ["large", "small", "large", "medium"]
    assert np.array_equal(crops.pixels[1], cut(file, rows[1:2], CONSTANTS).pixels[0])
    with pytest.raises(InputError, match=r"no crop to calibrate on; 3\.png"):
        cut(file, np.array([9]), CONSTANTS)


@pytest.mark.parametrize(("flat", "share"), [(True, 1.0), (False, 0.0)])
def test_flat_pictures_are_seen(tmp_path: Path, flat: bool, share: float) -> None:
    file = box_file(tmp_path, images=3, flat=flat)
    assert cut(file, np.arange(9), CONSTANTS).flat() == share


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (9, 3, 32, 32)).astype(np.float32)


def run(model: ModelProto, crops: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"crops": crops})[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", [FOR_CPU, FOR_TENSORRT], ids=["cpu", "tensorrt"])
def test_quantised_models_answer_alike(method: str, scheme: Scheme, crops: np.ndarray) -> None:
    model = layered_model()
    before = model.SerializeToString(deterministic=True)
    made = quantise(model, measure(model, crops, method), scheme)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(made, full_check=True)
    truth, logits = run(layered_model(), crops), run(made, crops)
    assert 0 < np.abs(logits - truth).max() < 0.25 * np.abs(truth).max()
    assert [value.SerializeToString() for value in made.graph.output] == [
        value.SerializeToString() for value in model.graph.output
    ]


def counts(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_what_is_quantised(crops: np.ndarray) -> None:
    model = layered_model()
    ranges = measure(model, crops, "min-max")
    assert list(layers(model)) == ["conv", "depthwise", "linear_layer", "value"]
    tensorrt, cpu = quantise(model, ranges, FOR_TENSORRT), quantise(model, ranges, FOR_CPU)
    # Each layer has one pair on its input and a DequantizeLinear on its weights; everything else is as it was.
    assert counts(tensorrt) == counts(model) + Counter(QuantizeLinear=4, DequantizeLinear=8)
    # On the CPU outputs too, biases in int32, and Clip became part of its layer.
    assert counts(cpu)["Clip"] == 0
    assert counts(cpu)["QuantizeLinear"] == 7  # inputs and outputs, one of them both
    made_by = {name: node.op_type for made in (tensorrt, cpu) for node in made.graph.node for name in node.output}
    for made in (tensorrt, cpu):
        attention = next(node for node in made.graph.node if node.name == "attention")
        assert "DequantizeLinear" not in {made_by[name] for name in attention.input}
        assert {opset.domain for opset in made.opset_import} == {""}
        assert {name: counts(made)[name] for name in ("LayerNormalization", "Gelu", "Reshape")} == {
            "LayerNormalization": 1, "Gelu": 1, "Reshape": 2,
        }  # fmt: skip
    zeros = [numpy_helper.to_array(t) for t in tensorrt.graph.initializer if t.name.endswith("zero_point")]
    assert len(zeros) == 8
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)  # TensorRT takes nothing else
    weight = next(t for t in cpu.graph.initializer if t.name == "depthwise_scale")
    assert numpy_helper.to_array(weight).shape == (8,)  # a scale a channel, or depthwise layers are lost


@pytest.mark.parametrize("scheme", [FOR_CPU, FOR_TENSORRT], ids=["cpu", "tensorrt"])
def test_kept_layers_are_untouched(scheme: Scheme, crops: np.ndarray) -> None:
    model = layered_model()
    made = quantise(model, measure(model, crops, "min-max"), scheme, ["depthwise"])
    node = next(node for node in made.graph.node if node.name == "depthwise")
    assert list(node.input)[1:] == ["depthwise", "depthwise_bias"]
    weights = {tensor.name: tensor for tensor in made.graph.initializer}
    assert weights["depthwise"].data_type == TensorProto.FLOAT
    assert all(dim.dim_value for value in shape_inference.infer_shapes(made).graph.output for dim in _fixed(value))


def _fixed(value: onnx.ValueInfoProto) -> list:
    return list(value.type.tensor_type.shape.dim)[1:]


def test_on_this_cpu_a_layer_and_its_clip_are_one_integer_kernel(crops: np.ndarray, tmp_path: Path) -> None:
    model = layered_model()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    content = quantise(model, measure(model, crops, "min-max"), FOR_CPU).SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found = counts(onnx.load(tmp_path / "optimised.onnx"))
    assert (found["QLinearConv"], found["Conv"], found["Clip"]) == (3, 0, 0)


def test_the_dearest_layer_is_found_and_kept_first(crops: np.ndarray) -> None:
    model = layered_model()

    def cost(quantised: ModelProto) -> float:
        # As if the depthwise layer were dear: what a quantised copy of it stores gives it away.
        return 0.5 if any(t.name == "depthwise_quantized" for t in quantised.graph.initializer) else 0.1

    made = calibrate(model, crops, FOR_CPU, cost)
    assert next(iter(made.costs)) == "depthwise"
    assert list(made.steps()) == [(), ("depthwise",), tuple(made.costs)[:2]]
    assert set(made.tried) == set(METHODS)
    facts = made.to_json(("depthwise",))
    assert (facts["kept_in_float"], facts["cost_by_layer"]["depthwise"]) == (["depthwise"], 0.5)
    assert "kept in float: depthwise" in made.text(("depthwise",))


def test_the_cheapest_ranges_win(crops: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = iter([0.3, 0.1, 0.2])
    made = calibrate(layered_model(), crops, FOR_CPU, lambda _: next(costs, 0.0))
    assert made.method == "percentile"
    assert made.tried == {"min-max": 0.3, "percentile": 0.1, "entropy": 0.2}


def test_the_picture(crops: np.ndarray) -> None:
    plot = pytest.importorskip("mal.calibration.plot", reason="needs matplotlib")
    made = Calibration(layered_model(), FOR_CPU, "min-max", None, {"min-max": 0.02}, {"conv": 0.01, "value": 0.005})
    assert plot.plot(made, ("conv",)).startswith(b"\x89PNG")
