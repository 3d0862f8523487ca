"""Half precision as a property of the ONNX file.

crops ─► Cast ─► network in float16 ─► Cast ─┬─► score                  float32
   └────────────► guide, float32 ─► mal::CRFRefine ─► logits            float32

The network is where the time goes. What follows it is small and decides by comparing: it stays in float32. So does the
guide, whose differences are divided by zeta: float16 colours would put 4 % on a weight.
"""

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    checker,
    helper,
    numpy_helper,
    shape_inference,
)

from mal.errors import ModelFileError
from mal.plugins.crf_refine.names import DOMAIN, NAME

_LARGEST = float(np.finfo(np.float16).max)


def to_fp16(model: ModelProto) -> ModelProto:
    """The same model with its network in float16; inputs, outputs and what follows the network stay float32.

    Args:
        model: FP32 model of ours, refined or not, quantised or not (its scales become float16); stays as it is.

    Raises:
        ModelFileError: a weight that float16 cannot hold.

    Source: reference notes on TensorRT, 3 (ONNX Runtime's converter makes the fewest casts, attention stays fused).
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    network = _network(graph)
    rest = [node for node in graph.node if not any(node is other for other in network)]
    body = _body(model, graph, network, rest)
    for tensor in body.graph.initializer:
        _check_range(tensor)
    body = convert_float_to_float16(body, keep_io_types=True)

    read = {name for node in rest for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in read] + list(body.graph.initializer)
    nodes = _sorted([*body.graph.node, *rest], {value.name for value in graph.input} | {t.name for t in tensors})
    for field, items in (("node", nodes), ("initializer", tensors), ("value_info", [])):
        items = [type(item).FromString(item.SerializeToString()) for item in items]
        graph.ClearField(field)  # pyright: ignore[reportArgumentType]  the literal is a field's name
        getattr(graph, field).extend(items)
    checker.check_model(half, full_check=True)
    return half


def _network(graph: GraphProto) -> list[NodeProto]:
    """Nodes that the unrefined logits are made by, in the graph's order."""
    made_by = {name: node for node in graph.node for name in node.output}
    refining = [node for node in graph.node if (node.domain, node.op_type) == (DOMAIN, NAME)]
    wanted = [refining[0].input[0] if refining else "logits"]
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in made_by and name not in found:
            node = made_by[name]
            found.update(node.output)
            wanted.extend(node.input)
    return [node for node in graph.node if found.intersection(node.output)]


def _body(model: ModelProto, graph: GraphProto, network: list[NodeProto], rest: list[NodeProto]) -> ModelProto:
    """The network as a model of its own: its outputs are what the rest of the graph reads of it."""
    needed = {name for node in rest for name in node.input} | {value.name for value in graph.output}
    known = shape_inference.infer_shapes(model).graph
    values = {value.name: value for value in [*known.value_info, *known.output]}
    outputs = [values[name] for node in network for name in node.output if name in needed]
    # What both parts read gets a name of its own here, because its type will differ.
    shared = {tensor.name for tensor in graph.initializer} & needed
    for node in network:
        node.input[:] = [f"{name}_fp16" if name in shared else name for name in node.input]
    read = {name for node in network for name in node.input}
    tensors: list[TensorProto] = []
    for tensor in graph.initializer:
        own = TensorProto()
        own.CopyFrom(tensor)
        own.name = f"{tensor.name}_fp16" if tensor.name in shared else tensor.name
        if own.name in read:
            tensors.append(own)
    inputs: list[ValueInfoProto] = [value for value in graph.input if value.name in read]
    body = helper.make_graph(network, "network", inputs, outputs, tensors)
    return helper.make_model(body, opset_imports=model.opset_import, ir_version=model.ir_version)


def _check_range(tensor: TensorProto) -> None:
    if tensor.data_type != TensorProto.FLOAT:
        return
    largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
    if not largest <= _LARGEST:
        raise ModelFileError(
            f"weight {tensor.name} reaches {largest:.3g}, float16 ends at {_LARGEST:.0f}; export without --fp16"
        )


def _sorted(nodes: list[NodeProto], known: set[str]) -> list[NodeProto]:
    """Nodes so that each comes after those it reads; otherwise in the given order."""
    known = known | {""}  # an input left out
    waiting, done = list(nodes), list[NodeProto]()
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            raise ModelFileError("the graph's nodes wait for each other")
        done += ready
        known = known.union(*(node.output for node in ready))
        waiting = [node for node in waiting if not known.issuperset(node.output)]
    return done
