"""What `mal export` is asked for, and what it answers."""

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from mal.errors import UsageError
from mal.export.engine_options import EngineOptions
from mal.sources import Address

PRECISIONS = ("fp32", "fp16", "int8")
TARGETS = ("onnx", "tensorrt", "tensorrt-rtx", "deepstream", "triton")


@dataclass(frozen=True)
class ExportRequest:
    """One export; wishes that contradict each other are refused here, before any work.

    Attributes:
        source: checkpoint (.safetensors), FP32 ONNX of ours, RUN folder (its student.safetensors), or "student",
            the shipped one; None: the shipped one. For triton also an engine (.plan) with its manifest.
        precision: one of `PRECISIONS`.
        refine: CRF iterations in the graph, 0 none; None: the model's own constant.
        target: one of `TARGETS`; None: "tensorrt" if it imports and sees a GPU, else "onnx".
        output: file to write, for deepstream and triton a new folder; None: model.onnx, model.plan, or the target's
            name. The manifest goes to `output` + ".json".
        engine: how an engine is built.
        calibrate: boxes to calibrate INT8 on; a fifth of their pictures is held aside for the gate, also for FP16.
        images: where their images are; None: as `open_boxes` finds it.
        accept: why a model is written that costs more than its budget; goes into the manifest.

    Raises:
        UsageError: a precision or target that does not exist, refine < 0, or wishes that contradict each other.
    """

    source: Path | str | None = None
    _: KW_ONLY
    precision: str = "fp32"
    refine: int | None = None
    target: str | None = None
    output: Path | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    calibrate: Path | None = None
    images: Address | None = None
    accept: str | None = None

    def __post_init__(self) -> None:
        if self.target is not None and self.target not in TARGETS:
            raise UsageError(f"unknown target {self.target!r}; expected {', '.join(TARGETS)}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}; expected {', '.join(PRECISIONS)}")
        if self.refine is not None and self.refine < 0:
            raise UsageError(f"--refine {self.refine}: expected a number of iterations, 0 for none")
        self._check_calibration()
        self._check_engine()

    def _check_calibration(self) -> None:
        if self.precision == "int8" and self.calibrate is None:
            raise UsageError(
                "--int8 needs --calibrate BOXES.json, boxes like those to be labelled, to measure ranges on"
            )
        if self.precision == "fp32" and (self.calibrate is not None or self.accept is not None):
            raise UsageError(
                "--calibrate and --accept go with --int8 or --fp16; FP32 has nothing to calibrate or accept"
            )
        if self.images is not None and self.calibrate is None:
            raise UsageError("--images goes with --calibrate: it says where the pictures of its boxes are")
        if self.accept is not None and not self.accept.strip():
            raise UsageError('--accept needs a reason, e.g. --accept "masks of this camera were looked at"')

    def _check_engine(self) -> None:
        if self.target in ("deepstream", "triton") and self.engine != EngineOptions():
            raise UsageError(f"--profile, --chips and the like are for engines; target {self.target} builds none")
        if self.engine.compute_capabilities is not None and self.target != "tensorrt-rtx":
            raise UsageError("--chips goes with --target tensorrt-rtx; any other TensorRT builds for the GPU it sees")
        if self.engine.hardware_compatible and self.target == "tensorrt-rtx":
            raise UsageError("--hardware-compatible goes with --target tensorrt; for tensorrt-rtx name the --chips")


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
