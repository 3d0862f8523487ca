"""Replace arithmetic on shapes by constants: with a free batch alone, every shape but its first entry is known."""

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorShapeProto, ValueInfoProto, helper, numpy_helper, shape_inference

Dims = list[int | str]  # str: free, by its symbol


def fix_shapes(model: ModelProto) -> None:
    """Give Reshape and Resize constant arguments and drop the nodes that computed them, in place.

    A node with a free axis besides the first one stays as it is.
    """
    shapes = _shapes(model)
    constants: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        before, after = shapes.get(node.input[0]) if node.input else None, shapes.get(node.output[0])
        if not before or not after:
            continue
        old, new = _fixed(before[1:]), _fixed(after[1:])
        if old is None or new is None:
            continue
        if node.op_type == "Reshape" and isinstance(after[0], str):
            # 0 copies the batch, -1 counts what is a multiple of it (attention heads). Only without
            # `allowzero`, where 0 would mean an empty axis.
            _set_input(node, 1, np.array([0 if after[0] == before[0] else -1, *new], np.int64), constants)
            _set_attribute(node, "allowzero", 0)
        elif node.op_type == "Resize" and len(node.input) == 4 and len(before) == 4:
            scales = np.array([1.0, 1.0, *(a / b for a, b in zip(new[1:], old[1:], strict=True))], np.float32)
            if np.array_equal(np.floor(scales[2:] * np.array(old[1:], np.float32)), new[1:]):
                _set_input(node, 2, scales, constants)
                del node.input[3:]
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    remove_unused(model)


def remove_unused(model: ModelProto) -> None:
    """Drop nodes, initialisers and shape notes that no output needs, in place."""
    needed = {value.name for value in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    kept.reverse()
    initialisers = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    notes = [value for value in model.graph.value_info if value.name in needed]
    for field, items in (("node", kept), ("initializer", initialisers), ("value_info", notes)):
        model.graph.ClearField(field)  # pyright: ignore[reportArgumentType]  the literal is a field's name
        getattr(model.graph, field).extend(items)


def _shapes(model: ModelProto) -> dict[str, Dims]:
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in _dims(value)]
        for value in [*graph.value_info, *graph.input, *graph.output]
    }


def _dims(value: ValueInfoProto) -> Sequence[TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim


def _fixed(dims: Dims) -> list[int] | None:
    numbers = [dim for dim in dims if isinstance(dim, int)]
    return numbers if len(numbers) == len(dims) else None


def _set_input(node: NodeProto, index: int, value: np.ndarray, constants: dict[str, np.ndarray]) -> None:
    # Named by its content, so equal shapes share one initialiser.
    name = f"fixed_{'_'.join(str(entry) for entry in value.tolist())}"
    constants[name] = value
    node.input[index] = name


def _set_attribute(node: NodeProto, name: str, value: int) -> None:
    others = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*others, helper.make_attribute(name, value)])
