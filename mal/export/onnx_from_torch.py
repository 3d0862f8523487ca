"""Student -> one ONNX model: batch free, everything else static, constants in its metadata."""

import io
import warnings
from contextlib import redirect_stderr, redirect_stdout

import onnx
import torch
from onnx import ModelProto
from torch.export import Dim

from mal.config import ModelConstants
from mal.export.onnx_file import set_constants
from mal.export.parity import Floats, Model
from mal.export.static_shapes import fix_shapes
from mal.network.deploy import DeployStudent
from mal.network.student import Student

OPSET = 20
# Traced at 2 crops: at 1 the exporter would take the batch for a constant.
_TRACED_BATCH = 2


def export_onnx(student: Student, constants: ModelConstants) -> ModelProto:
    """Make the deployed graph of a student as an ONNX model, unrefined.

    Input `crops` float32 (B, 3, S, S), RGB, 0..255; outputs `logits` float32 (B, 1, h, w), zero = boundary,
    and `score` float32 (B,). B is free. Opset 20. No external data, no path of this machine.

    Args:
        student: trained network, moved to evaluation.
        constants: written to `metadata_props`.

    Source: design, fixed arithmetic.
    """
    deployed = DeployStudent(student, constants).eval()
    crops = torch.zeros(_TRACED_BATCH, 3, constants.size, constants.size)
    # The exporter's progress, and its and its dependencies' deprecations, are nothing a user can act on.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed,
            (crops,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["crops"],
            output_names=["logits", "score"],
            dynamic_shapes={"crops": {0: Dim("batch")}},
        )
    assert program is not None  # torch returns nothing only when it is given a file
    model = program.model_proto
    fix_shapes(model)
    _strip_traces(model)
    set_constants(model, constants)
    onnx.checker.check_model(model, full_check=True)
    return model


def torch_model(student: Student, constants: ModelConstants) -> Model:
    """The deployed network in torch FP32, as the gate calls it."""
    network = DeployStudent(student, constants).eval()

    def run(crops: Floats) -> tuple[Floats, Floats]:
        with torch.inference_mode():
            logits, scores = network(torch.from_numpy(crops))
        return logits.numpy(), scores.numpy()

    return run


def _strip_traces(model: ModelProto) -> None:
    """Drop what names this machine and its sources: stack traces of nodes, and documentation."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
