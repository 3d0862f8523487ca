"""What the tests of engines share: a small conforming model, and the plugin or the reason why it is not to be had."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

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
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    set_constants(model, constants(refine))
    if refine:
        refine_graph(model, constants(refine), "tiny")
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
