"""`score`: how good a mask is likely to be, computed from its logits alone."""

import torch
from torch import Tensor

from mal.network.head import central_box

BAND = 1.0  # logits: how far the boundary is moved both ways


def inside_map(expansion: float, size: int) -> Tensor:
    """(1, 1, size, size) in 0..1: share of each cell of the crop's grid that lies in the central box."""
    edge = torch.arange(size + 1) / size
    low, high = central_box(expansion)[0, [0, 2]]
    share = (torch.minimum(edge[1:], high) - torch.maximum(edge[:-1], low)).clamp(min=0) * size
    return (share[:, None] * share[None, :])[None, None]


def mask_score(logits: Tensor, inside: Tensor) -> Tensor:
    """Score masks without having seen one.

    A good mask keeps its shape when the boundary moves (stability) and reaches the sides of its box from
    within, no row or column of the box without it (fit).

    Args:
        logits: (B, 1, h, w), zero = boundary, unrefined.
        inside: (1, 1, h, w) from `inside_map`.

    Returns:
        (B,) 0..1.
    """
    logits = logits.float()
    core = (torch.sigmoid(4 * (logits - BAND)) * inside).sum((1, 2, 3))
    hull = (torch.sigmoid(4 * (logits + BAND)) * inside).sum((1, 2, 3))
    stability = core / hull.clamp(min=1e-3)
    p = torch.sigmoid(logits)
    fit = 1 - (_gap(p.amax(2), inside.amax(2)) + _gap(p.amax(3), inside.amax(3))) / 2
    return (stability * fit).clamp(0, 1)[:]


def _gap(projection: Tensor, extent: Tensor) -> Tensor:
    """(B,) 0..1: Dice distance between maxima along an axis and the box's extent."""
    p, q = projection.flatten(1), extent.flatten(1)
    return 1 - 2 * (p * q).sum(1) / ((p * p).sum(1) + (q * q).sum(1)).clamp(min=1e-3)
