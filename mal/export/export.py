"""`mal export`: a student in; out come one checked ONNX file, an engine of it if wished, and their manifests."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mal.config import ModelConstants
from mal.errors import DeviceError, MissingPackageError, OutputError, UsageError
from mal.export.engine_options import EngineOptions, trtexec_line
from mal.export.request import ExportReport, ExportRequest
from mal.export.source import find_source, read_constants
from mal.runtime.machine import gpu_count

if TYPE_CHECKING:
    from mal.export.engine_from_onnx import Engine

# What a target's file is called, and the module that builds its engine.
_SUFFIX = {"onnx": ".onnx", "tensorrt": ".plan", "tensorrt-rtx": ".plan"}
_BUILDER = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# INT8 for ONNX Runtime's CPU and for TensorRT are two files: docs/precision.md.
_INT8_ELSEWHERE = "--target deepstream and --target tensorrt-rtx need no GPU and leave the INT8 ONNX that trtexec takes"


def export_model(request: ExportRequest) -> ExportReport:
    """Export a student; a model that fails the parity gate is not written.

    An engine leaves the ONNX file it was built from beside it, with a manifest of its own, and the plugin it needs.
    INT8 leaves a picture of what each layer costs, output + ".calibration.png", where matplotlib is installed.

    Raises:
        UsageError: a suffix that contradicts the target, an output that is the source, a chip that TensorRT lacks.
        ModelFileError: the source is missing, damaged or not ours.
        InputError: boxes to calibrate on that cannot be used.
        ParityError: the exported model does not answer like its source, or its precision costs too much.
        MissingPackageError: the target's TensorRT or our plugin for it is not to be had.
        DeviceError: the target's TensorRT builds for the GPU it sees, and sees none.
        EngineError: TensorRT refused the model.
        OutputError: the output cannot be written.
        ModuleNotFoundError: torch, onnx or onnxruntime is not installed (`mal` names the extra).
    """
    if request.target == "triton":
        from mal.export.triton import export_triton

        return export_triton(request)
    if request.target == "deepstream":
        from mal.export.deepstream import export_deepstream

        return export_deepstream(request)
    return _export_file(request, request.target or _default_target(request.output))


def _export_file(request: ExportRequest, target: str) -> ExportReport:
    path = request.output or Path("model").with_suffix(_SUFFIX[target])
    _check_output(path, target)
    source = find_source(request.source)
    onnx = path.with_suffix(".onnx")
    if onnx.exists() and onnx.samefile(source):
        raise UsageError(f"--output {path} would overwrite the source {source}; choose another name")
    package = _BUILDER.get(target)
    if package:
        _need_builder(package, path, source, request)

    from mal.export.files import write_all
    from mal.export.make import make_model
    from mal.export.manifest import dump
    from mal.runtime.plan_file import manifest_path

    made = make_model(request, source, for_tensorrt=package is not None)
    manifest = made.manifest("onnx")
    files = [(manifest_path(onnx), dump(manifest)), (onnx, made.content)]
    if package:
        built = _build(made.content, package, bool(made.constants.crf_iterations), request.engine)
        manifest = made.manifest(target, built.plan)
        manifest["engine"] = built.to_json(onnx.name)
        files += [(manifest_path(path), dump(manifest)), (path, built.plan)]
        if built.plugin:
            files.append((path.with_name(built.plugin.name), built.plugin.read_bytes()))
    write_all([*files, *made.pictures(path)])
    hint = None
    if not package:
        plan = path.with_suffix(".plan")
        int8 = request.precision == "int8"
        hint = _INT8_ELSEWHERE if int8 else _elsewhere(path, plan, made.constants, request.engine)
    return ExportReport(source, path, manifest, made.lines, hint)


def _build(content: bytes, package: str, refined: bool, options: EngineOptions) -> "Engine":
    from mal.export.engine_from_onnx import build_engine
    from mal.plugins.crf_refine.tensorrt_library import build_plugin

    return build_engine(content, package=package, options=options, plugin=build_plugin() if refined else None)


def _default_target(output: Path | None) -> str:
    """An engine where one can be built, unless the output's name says otherwise."""
    from mal.runtime.tensorrt_package import load_tensorrt

    if output and output.suffix.lower() == ".onnx":
        return "onnx"
    try:
        load_tensorrt("tensorrt")
    except MissingPackageError:
        return "onnx"
    return "tensorrt" if gpu_count() else "onnx"


def _need_builder(package: str, path: Path, source: Path, request: ExportRequest) -> None:
    """What is missing is better said before minutes of work, with the way to build the engine elsewhere."""
    from mal.export.engine_from_onnx import choose_chips, find_builder

    try:
        trt, gpu = find_builder(package)
    except (MissingPackageError, DeviceError) as error:
        if request.precision == "int8":
            raise type(error)(f"{error}, or: {_INT8_ELSEWHERE}") from None
        constants = read_constants(source)
        if request.refine is not None:
            constants = constants.model_copy(update={"crf_iterations": request.refine})
        onnx = path.with_suffix(".onnx")
        elsewhere = _elsewhere(onnx, path, constants, request.engine)
        raise type(error)(f"{error}, or export with --target onnx -o {onnx} and {elsewhere}") from None
    choose_chips(trt, gpu, request.engine, half=request.precision != "fp32")


def _elsewhere(onnx: Path, plan: Path, constants: ModelConstants, options: EngineOptions) -> str:
    """How an engine is built on another machine."""
    from mal.plugins.crf_refine.tensorrt_library import find_plugin

    plugin = None
    if constants.crf_iterations:
        with suppress(MissingPackageError):
            plugin = find_plugin()
        plugin = plugin or Path("libmal_crf_tensorrt.so")  # as `mal plugins build` will print it
    line = trtexec_line(onnx, plan, constants.size, options, plugin)
    return f"build the engine where it will run (TensorRT 10.9 or later, DeepStream): {line}"


def _check_output(path: Path, target: str) -> None:
    if path.is_dir():
        example = path / f"model{_SUFFIX[target]}"
        raise UsageError(f"--output {path} is a folder; target {target} writes a file, e.g. {example}")
    if path.suffix.lower() != _SUFFIX[target]:
        raise UsageError(f"--output {path} contradicts target {target}; its name must end in {_SUFFIX[target]}")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
