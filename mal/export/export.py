"""`mal export`: a student in, one checked ONNX file and its manifest out."""

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mal.config import ModelConstants
from mal.errors import ModelFileError, OutputError, UsageError

if TYPE_CHECKING:
    from onnx import ModelProto

    from mal.export.parity import Model

_LATER = {
    "tensorrt": "write ONNX and build the engine with trtexec --onnx=model.onnx --stronglyTyped",
    "tensorrt-rtx": "write ONNX and build the engine with TensorRT-RTX's own tools",
    "deepstream": "write ONNX and give it to nvinfer",
    "triton": "write ONNX and give it to Triton's ONNX Runtime backend",
}


@dataclass(frozen=True)
class ExportReport:
    """What was exported, from what, and how it was checked."""

    source: Path
    output: Path
    manifest: dict[str, Any]
    parity: tuple[str, ...]  # figures of the gate, for people

    def to_json(self) -> dict[str, Any]:
        """The manifest, with the paths of this run."""
        return {"source_path": str(self.source), "path": str(self.output), **self.manifest}

    def text(self) -> str:
        """Lines for the terminal; the first says which source was taken."""
        megabytes = self.manifest["bytes"] / 1e6
        return "\n".join(
            [
                f"source  {self.source}  ({self.manifest['constants']['name']}, licence {self.manifest['licence']})",
                *(f"parity  {line}" for line in self.parity),
                f"wrote   {self.output}  {megabytes:.1f} MB  {self.manifest['target']} {self.manifest['precision']}  "
                f"refine {self.manifest['refine']}",
            ]
        )


def export_model(
    source: Path | str | None = None,
    *,
    precision: str = "fp32",
    refine: int | None = None,
    target: str | None = None,
    output: Path | None = None,
) -> ExportReport:
    """Export a student; a model that fails the parity gate is not written.

    Args:
        source: checkpoint (.safetensors), FP32 ONNX of ours, RUN folder (its student.safetensors), or "student",
            the shipped one; None: the shipped one.
        precision: "fp32".
        refine: CRF iterations in the graph, 0 none; None: the model's own constant.
        target: "onnx"; None: "onnx".
        output: file to write; None: model.onnx. The manifest goes to `output` + ".json".

    Raises:
        UsageError: a precision or target that is not available yet, a suffix that contradicts the target, an output
            that is the source, or refine < 0.
        ModelFileError: the source is missing, damaged or not ours.
        ParityError: the exported model does not answer like its source.
        OutputError: the output cannot be written.
        ModuleNotFoundError: torch, onnx or onnxruntime is not installed (`mal` names the extra).
    """
    target = target or "onnx"
    path = output or Path("model.onnx")
    _check_wishes(precision, refine, target, path)
    found = find_source(source)
    if path.exists() and path.samefile(found):
        raise UsageError(f"--output {path} is the source itself; choose another name")

    from mal.export.gate_crops import gate_crops
    from mal.export.manifest import dump, make_manifest, manifest_path
    from mal.export.onnx_file import set_constants
    from mal.export.parity import compare, compare_refined, onnx_model
    from mal.export.refinement import refine_graph

    model, constants, truth = _load(found)
    crops = gate_crops(constants)
    plain = onnx_model(model)
    parity = compare(plain, truth, crops)
    figures, lines = {"network": parity.to_json()}, [parity.text()]

    if refine is not None:
        constants = constants.model_copy(update={"crf_iterations": refine})
    set_constants(model, constants)
    if constants.crf_iterations:
        refine_graph(model, constants, str(found))
        refined = compare_refined(onnx_model(model), plain, crops, model, constants)
        figures["refinement"] = refined.to_json()
        lines.append(refined.text())

    content = model.SerializeToString(deterministic=True)
    manifest = make_manifest(content, constants, target=target, precision=precision, source=found, parity=figures)
    # The manifest first: a model without one never lies around, a manifest tells its model by the hash.
    _write(manifest_path(path), dump(manifest))
    _write(path, content)
    return ExportReport(found, path, manifest, tuple(lines))


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


def _check_wishes(precision: str, refine: int | None, target: str, path: Path) -> None:
    if target in _LATER:
        raise UsageError(f"--target {target} comes with a later version; {_LATER[target]}")
    if target != "onnx":
        raise UsageError(f"unknown target {target!r}; expected onnx")
    if precision != "fp32":
        raise UsageError(f"--{precision} comes with a later version; leave it out for FP32")
    if refine is not None and refine < 0:
        raise UsageError(f"--refine {refine}: expected a number of iterations, 0 for none")
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder; target onnx writes a file, e.g. {path / 'model.onnx'}")
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"--output {path} contradicts target onnx; its name must end in .onnx")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")


def _load(source: Path) -> "tuple[ModelProto, ModelConstants, Model]":
    """The unrefined graph of a source, its constants, and the model that it must answer like."""
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
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer) or any(
        node.op_type == "DequantizeLinear" for node in model.graph.node
    ):
        raise ModelFileError(f"{source} is not FP32; export from the FP32 model or the checkpoint")
    return model, constants


def _write(path: Path, content: bytes) -> None:
    """The file appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
