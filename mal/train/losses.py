"""The losses. Maps are (B, 1, h, w), probabilities 0..1, rectangles (B, 4) in units of the window."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mal.plugins.crf_refine.torch_body import crf_refine

EPSILON = 0.002


def dice(p: Tensor, q: Tensor, weight: Tensor | None = None) -> Tensor:
    """Dice distance with squared denominators, a sample: (B, ...) -> (B,) 0..1. Source: mal.md §4."""
    p, q = p.flatten(1), q.flatten(1)
    weight = torch.ones_like(p) if weight is None else weight.flatten(1)
    both, each = (p * q * weight).sum(1), ((p * p + q * q) * weight).sum(1)
    return 1 - (2 * both + EPSILON) / (each + EPSILON)


def coverage(rects: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Share of each column and of each row of the grid that the rectangles cover: two (B, size) in 0..1."""
    edge = torch.arange(size + 1, dtype=rects.dtype, device=rects.device) / size

    def share(low: Tensor, high: Tensor) -> Tensor:
        part = torch.minimum(edge[1:], high[:, None]) - torch.maximum(edge[:-1], low[:, None])
        return part.clamp(min=0) * size

    return share(rects[:, 0], rects[:, 2]), share(rects[:, 1], rects[:, 3])


def area_map(rects: Tensor, size: int) -> Tensor:
    """(B, 1, size, size) in 0..1: share of each cell that the rectangles cover."""
    columns, rows = coverage(rects, size)
    return (rows[:, :, None] * columns[:, None, :])[:, None]


def mil(p: Tensor, box: Tensor, valid: Tensor) -> Tensor:
    """Every row and column of the box holds some object, every other one none: (B,).

    Bags are the rows and columns inside the image: what was filled in outside says nothing. Bag scores are
    maxima over cells inside the image. Source: mal.md §4.1.
    """
    size = p.shape[-1]
    columns, rows = coverage(box, size)
    real_columns, real_rows = ((share > 0.5).to(p.dtype) for share in coverage(valid, size))
    p = p[:, 0] * real_rows[:, :, None] * real_columns[:, None, :]
    return dice(p.amax(1), columns, real_columns) + dice(p.amax(2), rows, real_rows)


def label_loss(logits: Tensor, target: Tensor, known: Tensor, trust: Tensor) -> Tensor:
    """Cross-entropy + Dice on the known cells of trusted labels: a scalar, mean over trust."""
    cells = known.flatten(1).sum(1).clamp(min=1)
    entropy = (binary_cross_entropy_with_logits(logits, target, reduction="none") * known).flatten(1).sum(1) / cells
    each = entropy + dice(logits.sigmoid(), target, known)
    return (each * trust).sum() / trust.sum().clamp(min=1)


@torch.no_grad()
def crf_target(student: Tensor, teacher: Tensor, guide: Tensor, inside: Tensor, iterations: int, zeta: float) -> Tensor:
    """What the mean of both networks becomes when colours vote: (B, 1, h, w) of 0 and 1. Source: mal.md §4.2.

    Args:
        student, teacher: probabilities.
        guide: (B, 3, h, w) colours, as `Student.guide` gives them.
        inside: share of the box in each cell.
    """
    mean = ((student + teacher) / 2).clamp(1e-4, 1 - 1e-4)
    return (crf_refine(torch.logit(mean), guide, inside, iterations, zeta) > 0).to(student.dtype)
