"""Half precision: what becomes half, and what does not."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, shape_inference
from tensorrt_parts import SIZE, constants, crf_node, tiny_model

from mal.errors import ModelFileError
from mal.export.parity import onnx_model
from mal.export.precision import to_fp16
from mal.export.precision_gate import BUDGETS, mask_iou


@pytest.fixture
def crops(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (7, 3, SIZE, SIZE)).astype(np.float32)


def types(model: ModelProto) -> dict[str, int]:
    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = {
        value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]
    }
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize("refine", [0, 3])
def test_the_network_is_half_and_its_ends_are_not(refine: int) -> None:
    model = tiny_model(refine)
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    found = types(half)
    assert {found[name] for name in ("crops", "logits", "score")} == {TensorProto.FLOAT}
    assert {found[name] for name in ("normal", "kernel")} == {TensorProto.FLOAT16}
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 2
    assert half.metadata_props == model.metadata_props
    assert [value.SerializeToString() for value in half.graph.input] == [
        value.SerializeToString() for value in model.graph.input
    ]


def test_refinement_stays_float() -> None:
    model = tiny_model()
    half = to_fp16(model)
    found = types(half)
    node = crf_node(half)
    assert {found[name] for name in node.input} == {TensorProto.FLOAT}
    assert node == crf_node(model)
    assert half.functions == model.functions
    # Mean and deviation are read by both parts: each has its own.
    assert found["mean"] == TensorProto.FLOAT
    assert found["mean_fp16"] == TensorProto.FLOAT16


def test_the_model_given_stays_as_it_was() -> None:
    model = tiny_model()
    before = model.SerializeToString(deterministic=True)
    to_fp16(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("refine", [0, 3])
def test_it_runs_and_answers_alike(refine: int, crops: np.ndarray) -> None:
    model = tiny_model(refine)
    half = to_fp16(model)
    session = onnxruntime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        logits, score = session.run(None, {"crops": crops[:batch]})
        assert logits.dtype == score.dtype == np.float32
        assert logits.shape == (batch, 1, SIZE // 4, SIZE // 4)
    logits, _ = onnx_model(half, optimised=False)(crops)
    true_logits, _ = onnx_model(model)(crops)
    assert mask_iou(logits, true_logits, constants(refine).expansion).mean() >= BUDGETS["fp16"].mean_iou
    assert (logits != true_logits).any()  # it is another arithmetic


def test_a_weight_too_large_for_half() -> None:
    model = tiny_model()
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    value = numpy_helper.to_array(kernel).copy()
    value[0, 0, 0, 0] = 1e6
    kernel.CopyFrom(numpy_helper.from_array(value, "kernel"))
    with pytest.raises(ModelFileError, match=r"weight kernel reaches 1e\+06, float16 ends at 65504"):
        to_fp16(model)
