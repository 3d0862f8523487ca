"""FP32 -> the precision asked for: calibrated, typed, and held against FP32 by the gate.

network ─► Q/DQ (int8) ─► refinement ─► float16 (fp16, and int8 for TensorRT) ─► gate ─► written, or not
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto

from mal.calibration.crops import FLAT, SIZES, Crops, Draw, cut
from mal.config import ModelConstants
from mal.errors import ParityError, missing_package
from mal.export.gate_crops import GateCrops
from mal.export.parity import Parity, answers, onnx_model
from mal.export.precision import to_fp16
from mal.export.precision_gate import PrecisionParity, compare_precision, mask_iou
from mal.export.refinement import refine_graph

if TYPE_CHECKING:
    from mal.calibration.search import Calibration

MOST_FLAT = 0.5
"""A calibration set of which more than this share has no texture gives no ranges worth the name."""


@dataclass(frozen=True)
class Lowered:
    """A model of lower precision, and everything that is to be told about it."""

    model: ModelProto
    parity: PrecisionParity
    problems: list[str]  # why the gate would have refused it; empty: it passed
    calibration: dict[str, Any] | None  # of INT8, for the manifest
    picture: bytes | None  # PNG, what each layer costs
    lines: list[str]  # for people


def lower(
    network: ModelProto,
    fp32: ModelProto,
    constants: ModelConstants,
    *,
    precision: str,
    for_tensorrt: bool,
    gate: GateCrops,
    source: Parity,
    drawn: Draw | None = None,
    accept: bool = False,
) -> Lowered:
    """Make a model of lower precision that costs no more of the masks than its budget.

    Args:
        network: unrefined FP32 graph.
        fp32: the same as it would be written in FP32, refined if its constants say so.
        constants: of the model.
        precision: "fp16", or "int8", which needs `drawn`.
        for_tensorrt: INT8 as TensorRT takes it, with float16 between; else as ONNX Runtime's CPU is fastest.
        gate: crops that no range is measured on.
        source: what the gate found for `network`, first line of the table.
        drawn: the user's boxes, for a calibration.
        accept: go on where the gate refuses; `problems` says why it would have.

    Raises:
        ParityError: the precision costs too much, or the calibration crops are flat; with the table.
        InputError: no calibration crop can be cut.
    """
    if precision == "fp16":
        half = to_fp16(fp32)
        parity = compare_precision(
            onnx_model(half, optimised=False), onnx_model(fp32), gate, constants.expansion, precision
        )
        _judge(parity, parity.problems(), source, accept)
        return Lowered(half, parity, parity.problems(), None, None, [parity.text(source)])

    assert drawn is not None
    ranges, trials = cut(drawn.file, drawn.ranges, constants), cut(drawn.file, drawn.trials, constants)
    flat = _flat(ranges)
    if flat and not accept:
        raise ParityError(
            f"{flat}; calibrate on photographs like those to be labelled. Nothing was written", _textures(ranges)
        )
    made, kept, model, parity = _within_budget(network, fp32, constants, for_tensorrt, gate, ranges, trials)
    problems = [*([flat] if flat else []), *parity.problems()]
    _judge(parity, problems, source, accept)
    counts = {"ranges": len(ranges), "trials": len(trials), "flat": ranges.flat()}
    facts = {**drawn.to_json(), "crops": counts, **made.to_json(kept)}
    picture, missing = _picture(made, kept)
    lines = [
        f"crops   {len(ranges)} for ranges and {len(trials)} for trials, of {drawn.file.path.name}",
        *made.text(kept).splitlines(),
        *missing,
        parity.text(source),
    ]
    return Lowered(model, parity, problems, facts, picture, lines)


def _within_budget(
    network: ModelProto,
    fp32: ModelProto,
    constants: ModelConstants,
    for_tensorrt: bool,
    gate: GateCrops,
    ranges: Crops,
    trials: Crops,
) -> "tuple[Calibration, tuple[str, ...], ModelProto, PrecisionParity]":
    """Quantise every layer; keep the dearest in float, more and more of them, until the budget holds."""
    from mal.calibration.quantise import FOR_CPU, FOR_TENSORRT
    from mal.calibration.search import calibrate

    truth = onnx_model(fp32)
    made = calibrate(
        network,
        ranges.pixels,
        FOR_TENSORRT if for_tensorrt else FOR_CPU,
        _cost(network, trials, constants.expansion, optimised=not for_tensorrt),
    )
    best: tuple[tuple[str, ...], ModelProto, PrecisionParity] | None = None
    for kept in made.steps():
        model = made.quantised(kept)
        if constants.crf_iterations:
            refine_graph(model, constants, "the quantised network")
        if for_tensorrt:
            model = to_fp16(model)
        parity = compare_precision(
            onnx_model(model, optimised=not for_tensorrt), truth, gate, constants.expansion, "int8"
        )
        if best is None or parity.all.mean_iou > best[2].all.mean_iou:
            best = kept, model, parity
        if not parity.problems():
            best = kept, model, parity
            break
    assert best is not None  # the first step keeps nothing and is always there
    return made, *best


def _cost(network: ModelProto, trials: Crops, expansion: float, *, optimised: bool) -> Callable[[ModelProto], float]:
    true_logits, _ = answers(onnx_model(network), trials.pixels)

    def cost(quantised: ModelProto) -> float:
        logits, _ = answers(onnx_model(quantised, optimised=optimised), trials.pixels)
        return 1 - float(mask_iou(logits, true_logits, expansion).mean())

    return cost


def _flat(ranges: Crops) -> str | None:
    share = ranges.flat()
    if share <= MOST_FLAT:
        return None
    return f"{share:.0%} of {len(ranges)} calibration crops are flat: there is nothing in them to measure ranges on"


def _textures(crops: Crops) -> str:
    """The table of a refused calibration set: texture by object size."""
    lines = [f"{'ranges':<8}{'crops':>6}{'flat':>6}   texture, grey levels: least  median  most"]
    for index, name in enumerate(SIZES):
        found = crops.texture[crops.size == index]
        if len(found):
            least, median, most = np.quantile(found, (0, 0.5, 1))
            figures = f"{least:>29.1f}{median:>8.1f}{most:>6.1f}"
            lines.append(f"{name:<8}{len(found):>6}{(found < FLAT).sum():>6}{figures}")
    lines.append(f"flat: texture below {FLAT}; at most {MOST_FLAT:.0%} of the crops may be")
    return "\n".join(lines)


def _judge(parity: PrecisionParity, problems: list[str], source: Parity, accept: bool) -> None:
    if problems and not accept:
        raise ParityError(
            f"{parity.precision} costs too much of the masks: {'; '.join(problems)}. Nothing was written; "
            '--accept "reason" takes it all the same',
            parity.text(source),
        )


def _picture(made: "Calibration", kept: tuple[str, ...]) -> tuple[bytes | None, list[str]]:
    try:
        from mal.calibration.plot import plot
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return None, [f"no picture of the layers: {missing_package('matplotlib')}"]
    return plot(made, kept), []
