"""`mal export`: a student in; out come one checked ONNX file, an engine of it if wished, and their manifests."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mal.config import ModelConstants
from mal.errors import DeviceError, MissingPackageError, ModelFileError, OutputError, UsageError
from mal.export.engine_options import EngineOptions, trtexec_line
from mal.runtime.machine import gpu_count
from mal.sources import Address

if TYPE_CHECKING:
    from onnx import ModelProto

    from mal.export.engine_from_onnx import Engine
    from mal.export.parity import Model

# What a target's file is called, and the module that builds its engine.
_SUFFIX = {"onnx": ".onnx", "tensorrt": ".plan", "tensorrt-rtx": ".plan"}
_BUILDER = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# INT8 for ONNX Runtime's CPU and for TensorRT are two files: docs/precision.md.
_INT8_ELSEWHERE = "--target deepstream and --target tensorrt-rtx need no GPU and leave the INT8 ONNX that trtexec takes"


@dataclass(frozen=True)
class ExportReport:
    """What was exported, from what, and how it was checked."""

    source: Path
    output: Path
    manifest: dict[str, Any]
    checks: tuple[str, ...]  # lines of the gate and of the calibration, for people
    hint: str | None = None  # how to go on from here

    def to_json(self) -> dict[str, Any]:
        """The manifest, with the paths of this run."""
        return {"source_path": str(self.source), "path": str(self.output), **self.manifest}

    def text(self) -> str:
        """Lines for the terminal; the first says which source was taken."""
        megabytes = self.manifest["bytes"] / 1e6
        engine = self.manifest.get("engine")
        return "\n".join(
            [
                f"source  {self.source}  ({self.manifest['constants']['name']}, licence {self.manifest['licence']})",
                *self.checks,
                *([f"engine  {_engine_line(engine)}"] if engine else []),
                f"wrote   {self.output}  {megabytes:.1f} MB  {self.manifest['target']} {self.manifest['precision']}  "
                f"refine {self.manifest['refine']}",
                *([f"next    {self.hint}"] if self.hint else []),
            ]
        )


def _engine_line(engine: dict[str, Any]) -> str:
    chips = " ".join(map(str, engine["compute_capabilities"])) + (" and later" if engine["hardware_compatible"] else "")
    plugin = f"  needs {engine['plugin']}" if engine["plugin"] else ""
    return f"{engine['tensorrt']}  compute capabilities {chips}  crops {engine['profile']}  of {engine['onnx']}{plugin}"


def export_model(
    source: Path | str | None = None,
    *,
    precision: str = "fp32",
    refine: int | None = None,
    target: str | None = None,
    output: Path | None = None,
    engine: EngineOptions | None = None,
    calibrate: Path | None = None,
    images: Address | None = None,
    accept: str | None = None,
    for_tensorrt: bool | None = None,
) -> ExportReport:
    """Export a student; a model that fails the parity gate is not written.

    Args:
        source: checkpoint (.safetensors), FP32 ONNX of ours, RUN folder (its student.safetensors), or "student",
            the shipped one; None: the shipped one.
        precision: "fp32", "fp16" or "int8".
        refine: CRF iterations in the graph, 0 none; None: the model's own constant.
        target: "onnx", "tensorrt", "tensorrt-rtx", "deepstream" or "triton"; None: "tensorrt" if it imports and sees a
            GPU, else "onnx".
        output: file to write, for deepstream and triton a folder; None: model.onnx, model.plan, or the target's name.
            The manifest goes to `output` + ".json". An engine leaves the ONNX it was built from beside it, with a
            manifest of its own, and the plugin it needs. INT8 leaves a picture of what each layer costs, `output` +
            ".calibration.png", where matplotlib is installed.
        engine: how an engine is built; None: the defaults.
        calibrate: boxes to calibrate INT8 on; a fifth of their pictures is held aside for the gate, also for FP16.
        images: where their images are; None: as `open_boxes` finds it.
        accept: why a model is written that costs more than its budget; goes into the manifest.
        for_tensorrt: which of the two forms of INT8; None: by the target.

    Raises:
        UsageError: options that contradict each other, a target that is not available yet, a suffix that contradicts
            the target, an output that is the source, or refine < 0.
        ModelFileError: the source is missing, damaged or not ours.
        InputError: boxes to calibrate on that cannot be used.
        ParityError: the exported model does not answer like its source, or its precision costs too much.
        MissingPackageError: the target's TensorRT or our plugin for it is not to be had.
        EngineError: TensorRT refused the model.
        OutputError: the output cannot be written.
        ModuleNotFoundError: torch, onnx or onnxruntime is not installed (`mal` names the extra).
    """
    if target in ("triton", "deepstream") and engine not in (None, EngineOptions()):
        raise UsageError(f"--profile, --chips and the like are for engines; target {target} builds none")
    if target == "triton":
        from mal.export.triton import export_triton

        return export_triton(
            source,
            precision=precision,
            refine=refine,
            output=output,
            calibrate=calibrate,
            images=images,
            accept=accept,
        )
    if target == "deepstream":
        from mal.export.deepstream import export_deepstream

        return export_deepstream(
            source,
            precision=precision,
            refine=refine,
            output=output,
            calibrate=calibrate,
            images=images,
            accept=accept,
        )
    target = target or _default_target(output)
    path = output or Path("model").with_suffix(_SUFFIX.get(target, ".onnx"))
    _check_wishes(precision, refine, target, path)
    options = engine or EngineOptions()
    _check_calibration(precision, calibrate, images, accept)
    found = find_source(source)
    onnx_path = path if target == "onnx" else path.with_suffix(".onnx")
    if onnx_path.exists() and onnx_path.samefile(found):
        raise UsageError(f"--output {path} would overwrite the source {found}; choose another name")
    if target in _BUILDER:
        _need_builder(_BUILDER[target], path, found, precision, refine, options)

    from mal.calibration.crops import draw
    from mal.datasets import open_boxes
    from mal.export.files import write_all
    from mal.export.gate_crops import gate_crops
    from mal.export.lower import lower
    from mal.export.manifest import dump, make_manifest
    from mal.export.onnx_file import set_constants
    from mal.export.parity import compare, compare_refined, onnx_model
    from mal.export.refinement import refine_graph
    from mal.runtime.plan_file import manifest_path

    drawn = draw(open_boxes(calibrate, images)) if calibrate else None  # cheap to refuse; tracing the network is not
    model, constants, truth = _load(found)
    gate = gate_crops(constants, drawn)
    plain = onnx_model(model)
    parity = compare(plain, truth, gate.pixels)
    figures, lines = {"network": parity.to_json()}, [f"parity  {parity.text()}"]

    if refine is not None:
        constants = constants.model_copy(update={"crf_iterations": refine})
    set_constants(model, constants)
    network = type(model).FromString(model.SerializeToString())
    if constants.crf_iterations:
        refine_graph(model, constants, str(found))
        refined = compare_refined(onnx_model(model), plain, gate.pixels, model, constants)
        figures["refinement"] = refined.to_json()
        lines.append(f"parity  {refined.text()}")
    facts: dict[str, Any] = {}
    picture = None
    if precision != "fp32":
        lowered = lower(
            network,
            model,
            constants,
            precision=precision,
            for_tensorrt=target != "onnx" if for_tensorrt is None else for_tensorrt,
            gate=gate,
            source=parity,
            drawn=drawn,
            accept=accept is not None,
        )
        model, picture = lowered.model, lowered.picture
        figures["precision"] = lowered.parity.to_json()
        lines += lowered.lines
        if lowered.calibration:
            facts["calibration"] = lowered.calibration
        if lowered.problems:
            facts["accepted"] = {"reason": accept, "problems": lowered.problems}

    content = model.SerializeToString(deterministic=True)
    about = partial(make_manifest, constants=constants, precision=precision, source=found, parity=figures, facts=facts)
    manifest = about(content, target="onnx")
    files = [(manifest_path(onnx_path), dump(manifest)), (onnx_path, content)]
    if target in _BUILDER:
        built = _build(content, _BUILDER[target], bool(constants.crf_iterations), options)
        manifest = about(built.plan, target=target)
        manifest["engine"] = built.to_json(onnx_path.name)
        files += [(manifest_path(path), dump(manifest)), (path, built.plan)]
        if built.plugin:
            files.append((path.with_name(built.plugin.name), built.plugin.read_bytes()))
    if picture:
        files.append((path.with_name(path.name + ".calibration.png"), picture))
    write_all(files)
    hint = None
    if target not in _BUILDER:
        plan = path.with_suffix(".plan")
        hint = _INT8_ELSEWHERE if precision == "int8" else _elsewhere(path, plan, constants, options)
    return ExportReport(found, path, manifest, tuple(lines), hint)


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


def _need_builder(
    package: str, path: Path, source: Path, precision: str, refine: int | None, options: EngineOptions
) -> None:
    """What is missing is better said before minutes of work, with the way to build the engine elsewhere."""
    from mal.export.engine_from_onnx import find_builder

    try:
        find_builder(package)
    except (MissingPackageError, DeviceError) as error:
        if precision == "int8":
            raise type(error)(f"{error}, or: {_INT8_ELSEWHERE}") from None
        constants = _constants(source)
        if refine is not None:
            constants = constants.model_copy(update={"crf_iterations": refine})
        onnx = path.with_suffix(".onnx")
        elsewhere = _elsewhere(onnx, path, constants, options)
        raise type(error)(f"{error}, or export with --target onnx -o {onnx} and {elsewhere}") from None


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


def _constants(source: Path) -> ModelConstants:
    if source.suffix.lower() == ".onnx":
        return _read_onnx(source)[1]
    from mal.network.checkpoint import read_constants

    return read_constants(source)


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
    if target not in _SUFFIX:
        raise UsageError(f"unknown target {target!r}; expected {', '.join(_SUFFIX)}, deepstream or triton")
    if precision not in ("fp32", "fp16", "int8"):
        raise UsageError(f"unknown precision {precision!r}; expected fp32, fp16 or int8")
    if refine is not None and refine < 0:
        raise UsageError(f"--refine {refine}: expected a number of iterations, 0 for none")
    if path.is_dir():
        example = path / f"model{_SUFFIX[target]}"
        raise UsageError(f"--output {path} is a folder; target {target} writes a file, e.g. {example}")
    if path.suffix.lower() != _SUFFIX[target]:
        raise UsageError(f"--output {path} contradicts target {target}; its name must end in {_SUFFIX[target]}")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")


def _check_calibration(precision: str, calibrate: Path | None, images: Address | None, accept: str | None) -> None:
    if precision == "int8" and calibrate is None:
        raise UsageError("--int8 needs --calibrate BOXES.json: boxes like those to be labelled, to measure ranges on")
    if precision == "fp32" and (calibrate is not None or accept is not None):
        raise UsageError("--calibrate and --accept go with --int8 or --fp16; FP32 has nothing to calibrate or accept")
    if images is not None and calibrate is None:
        raise UsageError("--images goes with --calibrate: it says where the pictures of its boxes are")
    if accept is not None and not accept.strip():
        raise UsageError('--accept needs a reason, e.g. --accept "masks of this camera were looked at"')


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
    names = [port.name for port in (*model.graph.input, *model.graph.output)]
    if names != ["crops", "logits", "score"]:
        raise ModelFileError(f"{source} has inputs and outputs {', '.join(names)}; expected crops -> logits, score")
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer) or any(
        node.op_type == "DequantizeLinear" for node in model.graph.node
    ):
        raise ModelFileError(f"{source} is not FP32; export from the FP32 model or the checkpoint")
    return model, constants
