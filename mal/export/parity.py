"""The gate of `mal export`: an exported model answers like the network it came from, or is not written."""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from mal.config import ModelConstants
from mal.errors import ParityError
from mal.export.refinement import box_coverage, normalisation
from mal.plugins.crf_refine.reference import crf_refine

Floats = NDArray[np.float32]
Model = Callable[[Floats], tuple[Floats, Floats]]
"""Crops (B, 3, S, S) -> logits (B, 1, h, w), zero = boundary, and scores (B,)."""

BUDGET = 1e-4
"""Largest difference of a probability or a score. Source: issue 3, point 4; fp32 itself costs about 1e-6."""

TIE = 4 * BUDGET
"""A cell whose logit is nearer to the boundary than this may fall either way: at p = 1/2 a logit moves four
times as far as its probability."""

REFINED_BUDGET = 1e-4
"""Share of cells that float32 may put on the other side. Where colours are alike a step enlarges a rounding error
up to ninefold, so a front that stands still by balance can move in one arithmetic and not in the other, and takes
its cells with it. The shipped student: 0 of 48,384 cells, at 3 and at 100 iterations. A network that has learned
nothing leaves many such fronts: 7 of 48,384 at 100 iterations, 0 at 10."""

BATCHES = (1, 3, 7)
"""Sizes tried in turn; none is the size that the exporter traced."""


@dataclass(frozen=True)
class Parity:
    """How far two models are apart on the same crops."""

    crops: int
    batches: tuple[int, ...]
    max_probability: float  # largest |difference| of a probability
    max_score: float  # ... of a score, of crops with the same mask
    cells: int
    cells_differ: int  # cells on different sides of the boundary, ties included
    cells_differ_beyond_tie: int
    budget: float = BUDGET

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)

    def text(self) -> str:
        """One line."""
        return (
            f"max|dp| {self.max_probability:.1e}  max|dscore| {self.max_score:.1e}  "
            f"cells that differ {self.cells_differ} of {self.cells}  ({self.crops} crops, budget {self.budget:.0e})"
        )


def compare(candidate: Model, truth: Model, crops: Floats) -> Parity:
    """Run both models on the same crops, in batches of 1, 3 and 7.

    Args:
        candidate: what is to be written; gets the batches.
        truth: what it must equal; gets one crop at a time.
        crops: (N, 3, S, S), at least one.

    Raises:
        ParityError: beyond the budget, a cell that differs without a tie, a value that is not finite, or outputs
            of another shape.
    """
    logits, scores = answers(candidate, crops, BATCHES)
    true_logits, true_scores = answers(truth, crops, (1,))
    if logits.shape != true_logits.shape or scores.shape != true_scores.shape:
        raise ParityError(
            f"the exported model gives logits {logits.shape} and scores {scores.shape} for {len(crops)} crops, "
            f"expected {true_logits.shape} and {true_scores.shape}; nothing was written"
        )
    if not (np.isfinite(true_logits).all() and np.isfinite(true_scores).all()):
        raise ParityError("the network gives values that are not finite; its weights are damaged, train it again")
    # NaN of the candidate stays NaN through max, and fails the comparison with the budget.
    worst_probability = float(np.abs(sigmoid(logits) - sigmoid(true_logits)).max())
    flipped = (logits > 0) != (true_logits > 0)
    # A cell that falls the other way changes its mask, and a small mask's score by more than any rounding does.
    same_mask = ~flipped.any((1, 2, 3))
    worst_score = float(np.abs(scores - true_scores)[same_mask].max(initial=0.0))
    beyond = int((flipped & (np.abs(true_logits) >= TIE)).sum())
    parity = Parity(len(crops), BATCHES, worst_probability, worst_score, logits.size, int(flipped.sum()), beyond)
    if not (worst_probability <= BUDGET and worst_score <= BUDGET and beyond == 0):
        raise ParityError(
            f"the exported model disagrees with the network: {parity.text()}, {beyond} of them no ties; "
            "nothing was written"
        )
    return parity


@dataclass(frozen=True)
class RefinedParity:
    """How far the graph's refinement is from the judge's, on the same unrefined logits."""

    crops: int
    iterations: int
    max_logit: float  # largest |difference| of a refined log-odds
    cells: int
    cells_differ: int  # cells on different sides of the boundary
    budget: float = REFINED_BUDGET

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)

    def text(self) -> str:
        """One line."""
        return (
            f"refined cells that differ {self.cells_differ} of {self.cells}  max|dL| {self.max_logit:.1e}  "
            f"({self.iterations} iterations against NumPy, budget {self.budget:.0e} of the cells)"
        )


def compare_refined(
    refined: Model, plain: Model, crops: Floats, model: ModelProto, constants: ModelConstants
) -> RefinedParity:
    """Hold the refinement in a graph against the judge.

    Args:
        refined: the graph with refinement.
        plain: the same without.
        crops: (N, 3, S, S).
        model: the refined graph: its mean and deviation make the judge's guide.
        constants: iterations, zeta and expansion.

    Raises:
        ParityError: too many cells differ, or the score changed.
    """
    logits, scores = answers(plain, crops)
    ours, our_scores = answers(refined, crops)
    if not np.allclose(scores, our_scores, rtol=0, atol=BUDGET):
        raise ParityError("refinement changed the score, which comes from the unrefined logits; nothing was written")
    batch, _, height, width = logits.shape
    cells = crops.reshape(batch, 3, height, crops.shape[2] // height, width, -1).mean((3, 5), dtype=np.float64)
    mean, std = (numpy_helper.to_array(tensor) for tensor in normalisation(model, "the exported model"))
    expected = crf_refine(
        logits,
        (cells - mean) / std,
        box_coverage(constants.expansion, height, width),
        constants.crf_iterations,
        constants.crf_zeta,
    )
    differ = int(((ours > 0) != (expected > 0)).sum())
    parity = RefinedParity(
        len(crops), constants.crf_iterations, float(np.abs(ours - expected).max()), logits.size, differ
    )
    if not differ <= REFINED_BUDGET * logits.size:
        raise ParityError(
            f"the refinement in the exported model is not the judge's: {parity.text()}; nothing was written"
        )
    return parity


def onnx_model(model: ModelProto, *, optimised: bool = True) -> Model:
    """A graph on ONNX Runtime's CPU, as the gate calls it.

    `optimised=False` computes the file's nodes one by one: half precision needs it, because the optimiser leaves out
    the rounding between two nodes that the CPU computes in float32.
    """
    import onnxruntime

    from mal.runtime.onnx_session import session_options

    options = session_options()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(crops: Floats) -> tuple[Floats, Floats]:
        logits, scores = session.run(["logits", "score"], {"crops": crops})
        return np.asarray(logits, np.float32), np.asarray(scores, np.float32)

    return run


def answers(model: Model, crops: Floats, batches: tuple[int, ...] = (8,)) -> tuple[Floats, Floats]:
    """Logits and scores of all crops, given to the model in batches of these sizes in turn.

    Raises:
        ParityError: batches of other numbers or shapes of outputs.
    """
    pairs: list[tuple[Floats, Floats]] = []
    first = 0
    for size in itertools.cycle(batches):
        pairs.append(model(crops[first : first + size]))
        first += size
        if first >= len(crops):
            break
    try:
        return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])
    except ValueError as error:
        raise ParityError(f"the model's outputs change their shape with the batch: {error}") from None


def sigmoid(values: Floats) -> NDArray[np.float64]:
    """Probabilities of logits."""
    return 0.5 * (1 + np.tanh(values.astype(np.float64) / 2))
