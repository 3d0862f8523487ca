"""The student that is exported: find it, read its constants, load it."""

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from mal.config import ModelConstants
from mal.errors import ModelFileError

if TYPE_CHECKING:
    from onnx import ModelProto

    from mal.export.parity import Model


def find_source(source: Path | str | None) -> Path:
    """The file that `mal export SOURCE` means.

    Raises:
        ModelFileError: nothing there, a folder without student.safetensors, or another kind of file.
    """
    if source is None or (str(source) == "student" and not Path(source).exists()):
        path = Path(str(resources.files("mal"))) / "models" / "student.safetensors"
        if not path.is_file():
            raise ModelFileError(f"the shipped student is missing from this installation ({path}); name a SOURCE")
        return path
    path = Path(source)
    if path.is_dir():
        path = path / "student.safetensors"
        if not path.is_file():
            raise ModelFileError(f"{path.parent} is no RUN folder: it holds no student.safetensors")
    if not path.is_file():
        raise ModelFileError(f"no model {path}; expected a .safetensors checkpoint, an .onnx of ours or a RUN folder")
    if path.suffix.lower() not in (".safetensors", ".onnx"):
        raise ModelFileError(f"{path}: expected a .safetensors checkpoint or an .onnx of ours, got {path.suffix!r}")
    return path


def read_constants(source: Path) -> ModelConstants:
    """Constants of a file that `find_source` found.

    Raises:
        ModelFileError: damaged or not ours.
    """
    if source.suffix.lower() == ".onnx":
        return _read_onnx(source)[1]
    from mal.network import checkpoint

    return checkpoint.read_constants(source)


def load_source(source: Path) -> "tuple[ModelProto, ModelConstants, Model]":
    """The unrefined FP32 graph of a file, its constants, and the model that the graph must answer like.

    Raises:
        ModelFileError: damaged, not ours, or an ONNX file that is not FP32.
    """
    from mal.export.parity import onnx_model
    from mal.export.refinement import take_out

    if source.suffix.lower() == ".onnx":
        model, constants = _read_onnx(source)
        take_out(model)
        return model, constants, onnx_model(model)

    from mal.export.onnx_from_torch import export_onnx, torch_model
    from mal.network.checkpoint import load_student

    student, constants = load_student(source)
    return export_onnx(student, constants), constants, torch_model(student, constants)


def _read_onnx(source: Path) -> "tuple[ModelProto, ModelConstants]":
    import onnx

    from mal.runtime.onnx_file import read_metadata

    content = source.read_bytes()
    constants = ModelConstants.from_metadata(read_metadata(content, str(source)), str(source))
    model = onnx.load_from_string(content)
    names = [port.name for port in (*model.graph.input, *model.graph.output)]
    if names != ["crops", "logits", "score"]:
        raise ModelFileError(f"{source} has inputs and outputs {', '.join(names)}; expected crops -> logits, score")
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer) or any(
        node.op_type == "DequantizeLinear" for node in model.graph.node
    ):
        raise ModelFileError(f"{source} is not FP32; export from the FP32 model or the checkpoint")
    return model, constants
