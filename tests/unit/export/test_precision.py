"""Half precision: what becomes half, what does not, and that the gate closes."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, shape_inference
from tensorrt_parts import SIZE, constants, crf_node, tiny_model

from mal.errors import ModelFileError, ParityError
from mal.export.parity import onnx_model
from mal.export.precision import FP16_BUDGET, compare_precision, to_fp16


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
    parity = compare_precision(onnx_model(half), onnx_model(model), crops, constants(refine))
    assert parity.mean_iou >= FP16_BUDGET
    assert parity.max_probability > 0  # it is another arithmetic
    assert parity.crops == 7
    assert parity.to_json()["budget"] == FP16_BUDGET


def test_a_weight_too_large_for_half() -> None:
    model = tiny_model()
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    value = numpy_helper.to_array(kernel).copy()
    value[0, 0, 0, 0] = 1e6
    kernel.CopyFrom(numpy_helper.from_array(value, "kernel"))
    with pytest.raises(ModelFileError, match=r"weight kernel reaches 1e\+06, float16 ends at 65504"):
        to_fp16(model)


def test_other_masks_are_refused(crops: np.ndarray) -> None:
    truth = onnx_model(tiny_model(0))

    def worse(given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, scores = truth(given)
        return logits + 0.2, scores

    with pytest.raises(ParityError, match="costs too much of the masks"):
        compare_precision(worse, truth, crops, constants(0))


def test_overflow_is_named(crops: np.ndarray) -> None:
    truth = onnx_model(tiny_model(0))

    def broken(given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, scores = truth(given)
        logits[0, 0, 0, 0] = np.nan
        return logits, scores

    with pytest.raises(ParityError, match="overflows in half precision"):
        compare_precision(broken, truth, crops, constants(0))


def test_only_masks_in_the_box_count(crops: np.ndarray) -> None:
    truth = onnx_model(tiny_model(0))

    def other_outside(given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, scores = truth(given)
        logits[:, :, 0, :] *= -1  # the box begins further in
        return logits, scores

    grown = constants(0).model_copy(update={"expansion": 1.0})
    assert compare_precision(other_outside, truth, crops, grown).mean_iou == 1
