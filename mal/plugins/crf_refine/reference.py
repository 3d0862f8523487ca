"""The judge of CRF refinement, in NumPy and float64: what `mal::CRFRefine` means.

    k(p, q) = exp(-sum_c (guide_c(q) - guide_c(p))^2 / (2 zeta^2))            k(p, p) = 1
    start     L = logit(clamp(inside * sigmoid(logits), 0.1, 0.9))
    step      L(p) <- clamp(sum_q k(p, q) L(q) + ln inside(p), -ln 9, ln 9)   q in the 3x3 window of p

All pixels step at once. Neighbours outside the crop count nothing. There is no further unary term:
the network's output only sets the start.

Source: reference notes on MAL, 4.2 and 4.4. Odd values: `contract.py`.
"""

import numpy as np
from numpy.typing import NDArray

from mal.plugins.crf_refine.contract import HIGH, LIMIT, LOW, check

Floats = NDArray[np.floating]


def crf_refine(logits: Floats, guide: Floats, inside: Floats, iterations: int, zeta: float) -> Floats:
    """Refine logits so that like-coloured neighbours agree, inside the box.

    Args:
        logits: (B, 1, h, w) raw log-odds.
        guide: (B, 3, h, w) colours in normalised units.
        inside: (1 or B, 1, h, w) box coverage of each pixel, 0..1.
        iterations: steps, >= 0; 0 returns the start state.
        zeta: colour scale in normalised units, > 0.

    Returns:
        (B, 1, h, w) log-odds within ±ln 9, in the dtype of `logits`. > 0 is foreground, a tie background.

    Raises:
        ShapeError: shapes that do not belong together, or an attribute out of range.

    >>> alike = np.zeros((1, 3, 1, 2))
    >>> crf_refine(np.array([[[[1.0, -0.4]]]]), alike, np.ones((1, 1, 1, 2)), 1, 0.1).round(6)
    array([[[[0.6, 0.6]]]])
    """
    check(logits.shape, guide.shape, inside.shape, iterations, zeta)
    weights = window_weights(guide, zeta)
    coverage = _coverage(inside)
    state = _start(logits, coverage)
    state = np.log(state) - np.log1p(-state)
    with np.errstate(divide="ignore"):
        log_coverage = np.log(coverage)
    for _ in range(iterations):
        state = np.clip((weights * _window(state)).sum(axis=1, keepdims=True) + log_coverage, -LIMIT, LIMIT)
    return state.astype(logits.dtype)


def crf_refine_probability(logits: Floats, guide: Floats, inside: Floats, iterations: int, zeta: float) -> Floats:
    """The same as the paper's code computes it: probabilities and a denominator of 1e-6. Second opinion.

    Arguments, raises and shape as `crf_refine`; returns probabilities of foreground, 0.1..0.9. The 1e-6
    pulls both classes down, so an exact tie falls to the background here too.

    Source: reference notes on MAL, 4.2.
    """
    check(logits.shape, guide.shape, inside.shape, iterations, zeta)
    weights = window_weights(guide, zeta)
    coverage = _coverage(inside)
    front = _start(logits, coverage)
    back = 1 - front
    for _ in range(iterations):
        # A neighbour outside the crop has weight 0; the fill of 1 keeps its logarithm finite.
        fore = np.exp((weights * np.log(_window(front, outside=1.0))).sum(axis=1, keepdims=True)) * coverage
        rear = np.exp((weights * np.log(_window(back, outside=1.0))).sum(axis=1, keepdims=True))
        total = 1e-6 + fore + rear
        front = np.clip(fore / total, LOW, HIGH)
        back = np.clip(rear / total, LOW, HIGH)
    return front.astype(logits.dtype)


def window_weights(guide: Floats, zeta: float) -> Floats:
    """(B, 9, h, w) weights k(p, q), q in row order over the 3x3 window; 0 where q lies outside the crop."""
    colours = guide.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = [(_window(colours[:, c : c + 1], outside=np.nan) - colours[:, c : c + 1]) ** 2 for c in range(3)]
        weights = np.exp(-sum(apart) / (2 * zeta**2))
    weights[:, 4] = 1.0
    return np.nan_to_num(weights, nan=0.0)


def _window(field: Floats, outside: float = 0.0) -> Floats:
    """(B, 1, h, w) -> (B, 9, h, w): the value of each of the nine pixels of the window."""
    height, width = field.shape[2:]
    padded = np.pad(field[:, 0], ((0, 0), (1, 1), (1, 1)), constant_values=outside)
    return np.stack([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=1)


def _coverage(inside: Floats) -> Floats:
    return np.clip(np.nan_to_num(inside.astype(np.float64), nan=0.0), 0.0, 1.0)


def _start(logits: Floats, coverage: Floats) -> Floats:
    """Probability of foreground at the start."""
    opinion = np.nan_to_num(logits.astype(np.float64), nan=0.0)
    probability = 0.5 * (1 + np.tanh(opinion / 2))  # the sigmoid that does not overflow
    return np.clip(coverage * probability, LOW, HIGH)
