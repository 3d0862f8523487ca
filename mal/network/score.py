"""`score`: how good a mask is likely to be, computed from its logits alone."""

import torch
from torch import Tensor

from mal.network.head import central_box

# Networks trained on labels made from boxes are surer than they are right; halved logits rank better than plain
# ones (docs/training.md, "score").
TEMPERATURE = 2.0


def inside_map(expansion: float, size: int) -> Tensor:
    """(1, 1, size, size) in 0..1: share of each cell of the crop's grid that lies in the central box."""
    edge = torch.arange(size + 1) / size
    low, high = central_box(expansion)[0, [0, 2]]
    share = (torch.minimum(edge[1:], high) - torch.maximum(edge[:-1], low)).clamp(min=0) * size
    return (share[:, None] * share[None, :])[None, None]


def mask_score(logits: Tensor, inside: Tensor) -> Tensor:
    """Score masks without having seen one.

    The geometric mean of two things that fail on different objects: how sure the network is inside the mask
    (mean probability), and the IoU that the mask would have on average if each pixel belonged to the object
    with its probability (low where the surroundings are doubtful too).

    Args:
        logits: (B, 1, h, w), zero = boundary, unrefined.
        inside: (1, 1, h, w) from `inside_map`.

    Returns:
        (B,) 0..1; 0 for an empty mask.
    """
    probability = torch.sigmoid(logits.float() / TEMPERATURE) * inside
    mask = (logits > 0).float() * inside
    area = mask.sum((1, 2, 3))
    sure = (probability * (logits > 0)).sum((1, 2, 3))
    union = area + (probability * (logits <= 0)).sum((1, 2, 3))
    # sqrt(sure / area * sure / union); an empty mask has sure = 0, the floor only keeps 0 / 0 away.
    return sure * torch.rsqrt((area * union).clamp(min=1e-6))
