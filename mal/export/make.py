"""A student -> one checked ONNX model in memory, whatever it is written as.

source ─► FP32 graph ─► gate ─► refinement ─► gate ─► FP16 or INT8 ─► gate ─► Made
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from mal.calibration.crops import draw
from mal.config import ModelConstants
from mal.datasets import open_boxes
from mal.export.gate_crops import gate_crops
from mal.export.lower import lower
from mal.export.manifest import make_manifest
from mal.export.onnx_file import set_constants
from mal.export.parity import compare, compare_refined, onnx_model
from mal.export.refinement import refine_graph
from mal.export.request import ExportRequest
from mal.export.source import load_source


@dataclass(frozen=True)
class Made:
    """A model that has passed the gate, or was accepted all the same, and everything that is known of it."""

    source: Path
    content: bytes  # the ONNX file
    constants: ModelConstants
    precision: str
    parity: dict[str, Any]  # figures of the gate
    facts: dict[str, Any]  # calibration and what was accepted, for the manifest
    picture: bytes | None  # PNG, what INT8 costs in each layer
    lines: tuple[str, ...]  # of the gate and of the calibration, for people

    def manifest(self, target: str, content: bytes | None = None) -> dict[str, Any]:
        """Of the ONNX file, or of `content`, an engine of it."""
        return make_manifest(
            self.content if content is None else content,
            self.constants,
            target=target,
            precision=self.precision,
            source=self.source,
            parity=self.parity,
            facts=self.facts,
        )

    def pictures(self, output: Path) -> list[tuple[Path, bytes]]:
        """The picture's file beside `output`, if there is a picture."""
        return [(output.with_name(output.name + ".calibration.png"), self.picture)] if self.picture else []


def make_model(request: ExportRequest, source: Path, *, for_tensorrt: bool) -> Made:
    """Make the model of a request; nothing is written.

    Args:
        request: its target and output do not matter here.
        source: what `find_source` found.
        for_tensorrt: which of the two forms of INT8 (docs/decisions/0006).

    Raises:
        ModelFileError: the source is damaged or not ours.
        InputError: boxes to calibrate on that cannot be used.
        ParityError: the model does not answer like its source, or its precision costs too much.
    """
    # Boxes are cheap to refuse; tracing the network is not.
    drawn = draw(open_boxes(request.calibrate, request.images)) if request.calibrate else None
    model, constants, truth = load_source(source)
    gate = gate_crops(constants, drawn)
    plain = onnx_model(model)
    parity = compare(plain, truth, gate.pixels)
    figures, lines = {"network": parity.to_json()}, [f"parity  {parity.text()}"]

    if request.refine is not None:
        constants = constants.model_copy(update={"crf_iterations": request.refine})
    set_constants(model, constants)
    network = ModelProto.FromString(model.SerializeToString())
    if constants.crf_iterations:
        refine_graph(model, constants, str(source))
        refined = compare_refined(onnx_model(model), plain, gate.pixels, model, constants)
        figures["refinement"] = refined.to_json()
        lines.append(f"parity  {refined.text()}")
    facts: dict[str, Any] = {}
    picture = None
    if request.precision != "fp32":
        lowered = lower(
            network,
            model,
            constants,
            precision=request.precision,
            for_tensorrt=for_tensorrt,
            gate=gate,
            source=parity,
            drawn=drawn,
            accept=request.accept is not None,
        )
        model, picture = lowered.model, lowered.picture
        figures["precision"] = lowered.parity.to_json()
        lines += lowered.lines
        if lowered.calibration:
            facts["calibration"] = lowered.calibration
        if lowered.problems:
            facts["accepted"] = {"reason": request.accept, "problems": lowered.problems}
    content = model.SerializeToString(deterministic=True)
    return Made(source, content, constants, request.precision, figures, facts, picture, tuple(lines))
