"""Append CRF refinement to an exported graph, or take it out again.

crops ─┬─► network ─► unrefined ─────────┬─► score
       │                                 └─► mal::CRFRefine ─► logits
       └─► mean of S/h x S/w pixels ─► normalised ─► guide ─┘
                                  inside (a constant) ──────┘
"""

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, TensorShapeProto, checker, helper, numpy_helper

from mal.config import ModelConstants
from mal.errors import ModelFileError
from mal.export.static_shapes import remove_unused
from mal.plugins.crf_refine.names import DOMAIN, NAME
from mal.plugins.crf_refine.onnx_function import crf_function, crf_node

_UNREFINED, _GUIDE, _INSIDE = "unrefined", "crf_guide", "crf_inside"


def refine_graph(model: ModelProto, constants: ModelConstants, source: str) -> None:
    """Make `logits` of an unrefined graph of ours refined, in place.

    The guide is the normalised crop averaged over the pixels of each cell, as the training target sees it.
    The score stays as it was, from the unrefined logits.

    Args:
        model: FP32 graph as `export_onnx` makes it.
        constants: crf_iterations and crf_zeta become attributes of the node, expansion tells where the box lies.
        source: name of the model, for messages.

    Raises:
        ModelFileError: the graph is not as `export_onnx` makes it.
    """
    graph = model.graph
    size, height, width = _sizes(model, source)
    mean, std = normalisation(model, source)
    for node in graph.node:
        _rename(node, "logits", _UNREFINED)
    graph.initializer.append(numpy_helper.from_array(box_coverage(constants.expansion, height, width), _INSIDE))
    block = [size // height, size // width]
    graph.node.extend(
        [
            helper.make_node("AveragePool", ["crops"], ["crf_cells"], "crf_cells", kernel_shape=block, strides=block),
            helper.make_node("Sub", ["crf_cells", mean.name], ["crf_centred"], "crf_centred"),
            helper.make_node("Div", ["crf_centred", std.name], [_GUIDE], _GUIDE),
            crf_node(_UNREFINED, _GUIDE, _INSIDE, "logits", constants.crf_iterations, constants.crf_zeta),
        ]
    )
    model.functions.append(crf_function())
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    checker.check_model(model, full_check=True)


def box_coverage(expansion: float, height: int, width: int) -> NDArray[np.float32]:
    """(1, 1, height, width) in 0..1: share of each cell of the crop that lies in its box.

    The crop is the box grown by `expansion`, so the box is its central part.

    >>> box_coverage(1.0, 1, 8).ravel().tolist()
    [0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0]
    """

    def along(cells: int) -> NDArray[np.float64]:
        margin = expansion / (1 + expansion) / 2
        edges = np.arange(cells + 1) / cells
        return np.diff(np.clip(edges, margin, 1 - margin)) * cells

    return (along(height)[:, None] * along(width))[None, None].astype(np.float32)


def take_out(model: ModelProto) -> None:
    """Undo `refine_graph`, in place; a graph without refinement stays as it is."""
    graph = model.graph
    nodes = [node for node in graph.node if (node.domain, node.op_type) == (DOMAIN, NAME)]
    if not nodes:
        return
    kept = [node for node in graph.node if node not in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    for node in graph.node:
        _rename(node, nodes[0].input[0], "logits")
    functions = [function for function in model.functions if (function.domain, function.name) != (DOMAIN, NAME)]
    del model.functions[:]
    model.functions.extend(functions)
    domains = [domain for domain in model.opset_import if domain.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(domains)
    remove_unused(model)


def _rename(node: NodeProto, old: str, new: str) -> None:
    node.input[:] = [new if name == old else name for name in node.input]
    node.output[:] = [new if name == old else name for name in node.output]


def _sizes(model: ModelProto, source: str) -> tuple[int, int, int]:
    """S, h and w."""
    crops = {value.name: value.type.tensor_type.shape for value in model.graph.input}.get("crops")
    logits = {value.name: value.type.tensor_type.shape for value in model.graph.output}.get("logits")
    if crops is None or logits is None or len(crops.dim) != 4 or len(logits.dim) != 4:
        raise ModelFileError(f"{source} is not a graph of `mal export`: it has no crops (B, 3, S, S) or no logits")
    size, height, width = _axis(crops, 2), _axis(logits, 2), _axis(logits, 3)
    if not (height and width) or size % height or size % width:
        raise ModelFileError(f"{source}: its logits {height} x {width} do not divide its crops of {size} pixels")
    return size, height, width


def _axis(shape: TensorShapeProto, index: int) -> int:
    return shape.dim[index].dim_value


def normalisation(model: ModelProto, source: str) -> tuple[TensorProto, TensorProto]:
    """Mean and deviation (1, 3, 1, 1) in grey levels, as the graph begins with them: crops -> Sub -> Div.

    Raises:
        ModelFileError: it begins otherwise.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    name = "crops"
    found: list[TensorProto] = []
    for operation in ("Sub", "Div"):
        readers = [node for node in model.graph.node if node.op_type == operation and node.input[0] == name]
        if len(readers) != 1 or readers[0].input[1] not in constants:
            raise ModelFileError(f"{source} does not begin with crops -> Sub -> Div; export it from its checkpoint")
        found.append(constants[readers[0].input[1]])
        name = readers[0].output[0]
    return found[0], found[1]
