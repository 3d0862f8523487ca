"""What the tests of engines and precisions share: small conforming models, and the plugin or why there is none."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from mal.config import ModelConstants
from mal.errors import MissingPackageError
from mal.export.onnx_file import set_constants
from mal.export.refinement import refine_graph
from mal.plugins.crf_refine.tensorrt_library import build_plugin

SIZE = 32


def constants(refine: int) -> ModelConstants:
    return ModelConstants(backbone="none", size=SIZE, crf_iterations=refine, crf_zeta=0.2)


def tiny_model(refine: int = 3) -> ModelProto:
    """A model as `mal export` makes them: 8 x 8 logits of one convolution, and a score; weights by seed."""
    rng = np.random.default_rng(0)
    values = {
        "mean": np.array([120, 115, 100], np.float32).reshape(1, 3, 1, 1),
        "std": np.array([58, 57, 57], np.float32).reshape(1, 3, 1, 1),
        "kernel": rng.standard_normal((1, 3, 4, 4)).astype(np.float32),
        "axes": np.array([1, 2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Sub", ["crops", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        helper.make_node("Conv", ["normal", "kernel"], ["logits"], strides=[4, 4]),
        helper.make_node("Sigmoid", ["logits"], ["probability"]),
        helper.make_node("ReduceMean", ["probability", "axes"], ["score"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("crops", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, SIZE // 4, SIZE // 4]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return _ours(graph, refine)


def layered_model(refine: int = 0) -> ModelProto:
    """What quantisation meets: convolution and Clip, depthwise, a linear layer, attention, LayerNorm, GELU, a score."""
    rng = np.random.default_rng(0)
    values = {
        "first": rng.standard_normal((8, 3, 4, 4)) / 4,
        "first_bias": rng.standard_normal(8) / 4,
        "depthwise": rng.standard_normal((8, 1, 3, 3)) / 3,
        "depthwise_bias": rng.standard_normal(8) / 4,
        "linear": rng.standard_normal((8, 8)) / 3,
        "last": 4 * rng.standard_normal((1, 8, 1, 1)),
        "last_bias": np.full(1, 4.0),
        "ones": np.ones(8),
        "low": np.array(0.0),
        "high": np.array(6.0),
        "mean": np.full((1, 3, 1, 1), 128.0),
        "std": np.full((1, 3, 1, 1), 60.0),
    }
    # A channel that training has all but switched off: the scale of its weights is near zero, its bias is not.
    values["first"][0] *= 1e-5
    values["first_bias"][0] = 3
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    shapes = {"flat": [0, 8, 64], "square": [0, 8, 8, 8], "axes": [1, 2, 3]}
    tensors += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in shapes.items()]
    make = helper.make_node
    nodes = [
        make("Sub", ["crops", "mean"], ["centred"], "sub"),
        make("Div", ["centred", "std"], ["normal"], "div"),
        make("Conv", ["normal", "first", "first_bias"], ["a"], "conv", strides=[4, 4]),
        make("Clip", ["a", "low", "high"], ["b"], "clip"),
        make("Conv", ["b", "depthwise", "depthwise_bias"], ["c"], "depthwise", group=8, pads=[1, 1, 1, 1]),
        make("Clip", ["c", "low", "high"], ["d"], "clip2"),
        make("Reshape", ["d", "flat"], ["e"], "flatten"),
        make("Transpose", ["e"], ["tokens"], "tokens", perm=[0, 2, 1]),
        make("LayerNormalization", ["tokens", "ones"], ["f"], "norm"),
        make("MatMul", ["f", "linear"], ["g"], "linear_layer"),
        make("Gelu", ["g"], ["h"], "gelu"),
        make("Transpose", ["h"], ["h_t"], "keys", perm=[0, 2, 1]),
        make("MatMul", ["h", "h_t"], ["i"], "attention"),
        make("Softmax", ["i"], ["j"], "softmax"),
        make("MatMul", ["j", "h"], ["k"], "attended"),
        make("Transpose", ["k"], ["l"], "back", perm=[0, 2, 1]),
        make("Reshape", ["l", "square"], ["m"], "square_up"),
        make("Conv", ["m", "last", "last_bias"], ["logits"], "value"),
        make("Sigmoid", ["logits"], ["p"], "probability"),
        make("ReduceMean", ["p", "axes"], ["score"], "score_node", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("crops", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, 8, 8]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
        ],
        tensors,
    )
    return _ours(graph, refine)


def _ours(graph: GraphProto, refine: int) -> ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    set_constants(model, constants(refine))
    if refine:
        refine_graph(model, constants(refine), graph.name)
    return model


def crf_node(model: ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == "CRFRefine")


def need_rtx() -> ModuleType:
    return pytest.importorskip(
        "tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'mask-auto-labeler[tensorrt-rtx]'"
    )


def need_plugin() -> Path:
    """The plugin for one chip; which one does not matter, no kernel runs while an engine is built."""
    try:
        return build_plugin((86,))
    except MissingPackageError as error:
        pytest.skip(f"needs the TensorRT plugin: {error}")
