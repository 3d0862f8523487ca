"""FP32 network -> the same with QuantizeLinear and DequantizeLinear nodes: INT8 as a property of the file.

Two schemes, because no file serves both (docs/decisions/0006):

    for ONNX Runtime's CPU    Q/DQ on both sides of a layer, uint8 with a zero point: a layer, its bias and its
                              ReLU6 become one integer kernel
    for TensorRT              Q/DQ on a layer's inputs only, int8 around zero, biases in float
"""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

from onnx import ModelProto
from onnxruntime.quantization import QDQQuantizer, QuantType

LAYERS = ("Conv", "MatMul")
"""What is quantised where its second input is a constant. A product of two activations is attention: Q/DQ there
would take its fused kernel apart. Gemm works on pooled vectors, where no time is spent."""

ACTIVATIONS = ("Clip", "Relu")
"""What can become part of the layer before it."""


@dataclass(frozen=True)
class Scheme:
    """How layers are quantised."""

    name: str
    activations: Any  # a QuantType
    symmetric: bool
    absorbed: tuple[str, ...]  # of ACTIVATIONS
    options: dict[str, Any]


FOR_CPU = Scheme("uint8 with zero points", QuantType.QUInt8, False, ACTIVATIONS, {})
FOR_TENSORRT = Scheme(
    "int8 around zero",
    QuantType.QInt8,
    True,
    (),
    {"QuantizeBias": False, "OpTypesToExcludeOutputQuantization": list(LAYERS)},
)


def layers(model: ModelProto) -> dict[str, str]:
    """What can be quantised, in the graph's order: name for people (the weight's, where it has one) -> node."""
    constant = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in LAYERS and node.input[1] in constant:
            weight = node.input[1]
            found[weight.removesuffix(".weight") if weight.endswith(".weight") else node.name] = node.name
    return found


def quantise(model: ModelProto, ranges: Any, scheme: Scheme, kept: Sequence[str] = ()) -> ModelProto:
    """Insert Q/DQ nodes; inputs and outputs stay float32. Weights get one scale a channel.

    Args:
        model: unrefined FP32 graph; stays as it is.
        ranges: of `mal.calibration.ranges.measure`.
        scheme: `FOR_CPU` or `FOR_TENSORRT`.
        kept: names of `layers` that stay in float.

    Source: reference notes on TensorRT, 4; the work is ONNX Runtime's quantiser.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    chosen = {node for name, node in layers(model).items() if name not in kept}
    others = [node.name for node in copy.graph.node if node.op_type in LAYERS and node.name not in chosen]
    with quiet():
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=scheme.activations,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=others,
            op_types_to_quantize=[*LAYERS, *scheme.absorbed],
            extra_options={"ActivationSymmetric": scheme.symmetric, "WeightSymmetric": True, **scheme.options},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    made: ModelProto = quantizer.model.model
    # The quantiser imports domains that it did not use.
    used = {node.domain for node in made.graph.node}
    imports = [opset for opset in made.opset_import if opset.domain in used]
    del made.opset_import[:]
    made.opset_import.extend(imports)
    del made.metadata_props[:]  # it notes there what it did
    made.metadata_props.extend(model.metadata_props)
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    return made


@contextmanager
def quiet() -> Generator[None]:
    """ONNX Runtime's quantiser prints and logs what no user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)
