"""CRF refinement in torch: the training target and the torch session. What it means: `reference.py`."""

import torch
from torch import Tensor
from torch.nn.functional import pad, threshold_

from mal.plugins.crf_refine.contract import HALF_WINDOW, HIGH, LIMIT, LOW, check


@torch.no_grad()
def crf_refine(logits: Tensor, guide: Tensor, inside: Tensor, iterations: int, zeta: float) -> Tensor:
    """Refine logits so that like-coloured neighbours agree, inside the box. No gradient.

    Args:
        logits: (B, 1, h, w) raw log-odds, any floating dtype, any device.
        guide: (B, 3, h, w) colours in normalised units.
        inside: (1 or B, 1, h, w) box coverage of each pixel, 0..1.
        iterations: steps, >= 0; 0 returns the start state.
        zeta: colour scale in normalised units, > 0.

    Returns:
        (B, 1, h, w) log-odds within ±ln 9, dtype and device of `logits`; computed in float32.

    Raises:
        ShapeError: shapes that do not belong together, or an attribute out of range.
    """
    check(tuple(logits.shape), tuple(guide.shape), tuple(inside.shape), iterations, zeta)
    if logits.device.type != "cpu" or logits.numel() <= _SERIAL_PIXELS:
        return _refine(logits, guide, inside, iterations, zeta)
    count = max(1, _SERIAL_PIXELS // logits[0].numel())
    refined = torch.empty_like(logits)
    for first in range(0, len(logits), count):
        crops = slice(first, first + count)
        coverage = inside if len(inside) == 1 else inside[crops]
        refined[crops] = _refine(logits[crops], guide[crops], coverage, iterations, zeta)
    return refined


# torch splits an operation of more than 32,768 elements over its threads. Hundreds of such short
# operations a call wait for each other whenever the machine is busy (8 s instead of 0.04 s measured);
# smaller groups of crops run serially, and stay in the L2 cache.
_SERIAL_PIXELS = 16384
_EIGHT = [*HALF_WINDOW, *((-y, -x) for y, x in HALF_WINDOW)]


def _refine(logits: Tensor, guide: Tensor, inside: Tensor, iterations: int, zeta: float) -> Tensor:
    coverage = inside.float().nan_to_num(nan=0.0).clamp(0, 1)
    state = (coverage * torch.sigmoid(logits.float().nan_to_num(nan=0.0))).clamp(LOW, HIGH).logit()
    if iterations == 0:
        return state.to(logits.dtype)
    # ln 0 as a number so negative that the clamp decides: -inf + a sum is the same, but slower on a CPU.
    log_coverage = coverage.log().clamp_min(-1e4).expand_as(state)
    weights = _eight_weights(guide.float(), zeta)

    # A border of zeros: neighbours outside the crop count nothing.
    padded = pad(state, (1, 1, 1, 1))
    height, width = state.shape[2:]
    centre = padded[:, :, 1:-1, 1:-1]
    neighbours = [padded[:, :, 1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in _EIGHT]
    total = torch.empty_like(state)
    for _ in range(iterations):
        torch.add(centre, log_coverage, out=total)
        for weight, neighbour in zip(weights, neighbours, strict=True):
            total.addcmul_(weight, neighbour)
        torch.clamp(total, -LIMIT, LIMIT, out=centre)
    return centre.to(logits.dtype).clone()


def _eight_weights(guide: Tensor, zeta: float) -> list[Tensor]:
    """Eight (B, 1, h, w) maps k(p, p + offset), in the order of `_EIGHT`."""
    height, width = guide.shape[2:]
    # NaN outside the crop, and NaN from colours that are not finite, both become weight 0.
    padded = pad(guide, (1, 1, 1, 1), value=float("nan"))
    maps: list[Tensor] = []
    for y, x in _EIGHT:
        apart = padded[:, :, 1 + y : 1 + y + height, 1 + x : 1 + x + width] - guide
        weight = torch.exp(apart.square_().sum(1, keepdim=True) * (-0.5 / zeta**2)).nan_to_num_(nan=0.0)
        maps.append(threshold_(weight, 1e-30, 0.0))  # denormal weights would cost 100 x the time
    return maps
