"""Pseudo-labels: what boxes alone tell about masks.

Round 1: several GrabCut proposals a box. A proposal that reaches the sides of its box and no further is more
often right, so those whose extent agrees with the box vote, the others are dropped.
Round 2: the student has seen many boxes and can judge: its own probabilities are soft labels, mixed with the first
ones, and objects that it is sure of count more.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mal.config import LabelConfig, Recipe, SelfTrainConfig, TrainConfig
from mal.crops import cut_crop
from mal.network.score import mask_score
from mal.train.samples import Samples, Tick, in_threads, renamed

OBJECT, UNKNOWN, BACKGROUND = 255, 128, 0
Mask = NDArray[np.bool_]


@dataclass
class Labels:
    """Labels of all samples on the grid of their cached crops.

    Attributes:
        maps: (N, g, g) uint8: share of object x 255; 128 means unknown.
        trust: (N,) float32 0..1, weight in the loss; 0 where there is no label.
    """

    maps: NDArray[np.uint8]
    trust: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write both arrays; `load` reads them back.

        Raises:
            OutputError: they cannot be written.
        """
        with renamed(path) as part, part.open("wb") as stream:
            np.savez(stream, maps=self.maps, trust=self.trust)

    @classmethod
    def load(cls, path: Path) -> "Labels":
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls(stored["maps"], stored["trust"])

    @classmethod
    def none(cls, count: int, grid: int) -> "Labels":
        """No label at all: plain MAL training."""
        return cls(np.full((count, grid, grid), UNKNOWN, np.uint8), np.zeros(count, np.float32))


def labels_from_boxes(samples: Samples, config: LabelConfig, tick: Tick | None = None) -> Labels:
    """Label all samples from their boxes (round 1). Threads: OpenCV gives the interpreter free."""
    labels = Labels.none(len(samples), config.grid)
    cv2.setNumThreads(1)  # the objects are the parallel work

    def one(row: int) -> None:
        label, trust = label_crop(samples.pixels[row], samples.box, samples.valid[row], config)
        if label is not None:
            labels.maps[row], labels.trust[row] = label, trust

    for done, _ in enumerate(in_threads(one, range(len(samples))), 1):
        if tick and (done % 50 == 0 or done == len(samples)):
            tick(done, len(samples))
    return labels


def label_crop(
    crop: NDArray[np.uint8], box: NDArray[np.float32], valid: NDArray[np.float32], config: LabelConfig
) -> tuple[NDArray[np.uint8] | None, float]:
    """Label one crop.

    Args:
        crop: (C, C, 3) uint8 RGB.
        box, valid: (4,) the box and the image's part, in units of the crop.

    Returns:
        (g, g) label, None where no proposal fits the box; and its trust, 0..1.
    """
    grid = config.grid
    image = cut_crop(crop, np.array([0.0, 0.0, crop.shape[1], crop.shape[0]]), grid, "edge")
    place = _Place.of(box * grid, valid * grid, grid)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.uint8)
    masks = [
        drop_specks(mask, config.speck)
        for recipe in config.recipes
        if (mask := grab_cut(image if recipe.space == "rgb" else lab, place, recipe)) is not None
    ]
    return vote(masks, place, config)


@dataclass(frozen=True)
class _Place:
    """Where the box lies on the grid of a crop; arrays (g, g) but for u, v (g,)."""

    box: NDArray[np.float32]
    u: NDArray[np.float32]
    v: NDArray[np.float32]
    radius: NDArray[np.float32]
    inside: Mask
    columns: Mask
    rows: Mask

    @classmethod
    def of(cls, box: NDArray[np.float32], valid: NDArray[np.float32], grid: int) -> "_Place":
        cell = np.arange(grid, dtype=np.float32) + 0.5
        u = (2 * cell - box[0] - box[2]) / (box[2] - box[0])
        v = (2 * cell - box[1] - box[3]) / (box[3] - box[1])
        return cls(
            box,
            u,
            v,
            np.hypot(u[None, :], v[:, None]),
            (np.abs(u) <= 1)[None, :] & (np.abs(v) <= 1)[:, None],
            (cell > valid[0]) & (cell < valid[2]),
            (cell > valid[1]) & (cell < valid[3]),
        )


def grab_cut(image: NDArray[np.uint8], place: "_Place", recipe: Recipe) -> Mask | None:
    """One proposal, (g, g) bool within the box; None where GrabCut has no pixels of one kind."""
    columns = np.flatnonzero(place.columns & (np.abs(place.u) <= 1 + recipe.ring))
    rows = np.flatnonzero(place.rows & (np.abs(place.v) <= 1 + recipe.ring))
    if not len(columns) or not len(rows):
        return None
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    seeds = np.full(place.inside.shape, cv2.GC_BGD, np.uint8)
    seeds[place.inside] = cv2.GC_PR_BGD
    seeds[place.inside & (place.radius <= 1) if recipe.region == "ellipse" else place.inside] = cv2.GC_PR_FGD
    seeds[place.inside & (place.radius < recipe.core)] = cv2.GC_FGD
    cut = np.ascontiguousarray(seeds[window])
    cv2.setRNGSeed(0)  # its k-means draws; the same box gives the same proposal
    try:
        cv2.grabCut(
            np.ascontiguousarray(image[window]),
            cut,
            (0, 0, 0, 0),  # not looked at: the seeds are a mask
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            recipe.iterations,
            cv2.GC_INIT_WITH_MASK,
        )
    except cv2.error:  # a crop of one colour, or no background left inside the image
        return None
    mask = np.zeros(place.inside.shape, bool)
    mask[window] = (cut & 1).astype(bool)
    return mask & place.inside


def drop_specks(mask: Mask, share: float) -> Mask:
    """Remove pieces, and fill holes, smaller than `share` of the mask."""
    least = share * max(1, int(mask.sum()))
    for value in (True, False):
        count, pieces, stats, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=4)
        small = [piece for piece in range(1, count) if stats[piece, cv2.CC_STAT_AREA] < least]
        if small:
            mask = np.where(np.isin(pieces, small), not value, mask)
    return mask


def extent_iou(mask: Mask, box: NDArray[np.floating]) -> float:
    """IoU of a mask's bounding box (cells) with `box` (4,) in cells; 0 for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return 0.0
    x0, x1, y0, y1 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    width = max(0.0, min(x1, box[2]) - max(x0, box[0]))
    height = max(0.0, min(y1, box[3]) - max(y0, box[1]))
    both = width * height
    return float(both / ((x1 - x0) * (y1 - y0) + (box[2] - box[0]) * (box[3] - box[1]) - both))


def vote(masks: list[Mask], place: "_Place", config: LabelConfig) -> tuple[NDArray[np.uint8] | None, float]:
    """Let the proposals that fit the box vote, weighted by how well they fit.

    Returns:
        (g, g) label and trust: the agreement of the voters with the outcome times their share.
    """
    cells = max(1, int(place.inside.sum()))
    fits = [
        (mask, extent)
        for mask in masks
        if (extent := extent_iou(mask, place.box)) >= config.min_extent
        and config.min_fill < mask.sum() / cells < config.max_fill
    ]
    if not fits:
        return None, 0.0
    weights = np.array([extent**4 for _, extent in fits], np.float32)
    share = np.tensordot(weights / weights.sum(), np.stack([mask for mask, _ in fits]).astype(np.float32), 1)
    outcome = share > 0.5
    agreement = float(np.mean([iou(mask, outcome) for mask, _ in fits])) * len(fits) / len(config.recipes)
    label = np.full(share.shape, UNKNOWN, np.uint8)
    label[share >= config.sure], label[share <= 1 - config.sure] = OBJECT, BACKGROUND
    return label, min(1.0, agreement / config.full_trust)


def iou(a: Mask, b: Mask) -> float:
    """IoU of two masks; 0 when both are empty."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def labels_from_student(labels: Labels, probability: NDArray[np.uint8], config: SelfTrainConfig) -> Labels:
    """Labels of the next round: no masks used, only what the student thinks.

    Soft labels: its own probabilities, drawn towards the label from the box where there is one, then sharpened. An
    object counts the more, the higher its score ranks among objects that fill as much of their boxes: the lowest count
    nothing. Among all objects full ones would win, since they score higher, and the masks of the rest would fill up
    from round to round.

    Args:
        labels: of round 1.
        probability: (N, g, g) uint8, the student's probability x 255 on the same grid.
    """
    made = Labels(np.empty_like(labels.maps), np.zeros_like(labels.trust))
    scores, filled = np.zeros((2, len(labels.trust)), np.float32)
    for row, label in enumerate(labels.maps):
        p = np.clip(probability[row].astype(np.float32) / 255, 1e-3, 1 - 1e-3)
        scores[row], filled[row] = _score(p, config.boundary), (p > config.boundary).sum()
        if labels.trust[row] > 0:
            p += config.vote * np.where(label == UNKNOWN, 0, label / 255 - p)
        soft = np.round(255 / (1 + np.exp(-config.sharpen * (_logit(p) - _logit(config.boundary)))))
        made.maps[row] = np.where(soft == UNKNOWN, UNKNOWN + 1, soft)
    made.trust[:] = np.clip((rank_among_like(scores, filled) - config.drop) / (config.full - config.drop), 0, 1)
    return made


def rank_among_like(scores: NDArray[np.float32], filled: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each object the share, 0..1, of the objects of like fill that score lower; itself counts.

    Args:
        scores, filled: (N,). The twentieth of all objects whose fill is nearest by rank, and at least 100, are alike.
    """
    order, rank = filled.argsort(kind="stable"), np.zeros(len(scores))
    sorted_, alike = scores[order], min(len(scores), max(100, len(scores) // 20))
    for place, row in enumerate(order):
        first = min(max(0, place - alike // 2), len(scores) - alike)
        rank[row] = ((sorted_[first : first + alike] < scores[row]).sum() + 1) / alike
    return rank


def _logit(p: Any) -> Any:
    return np.log(p / (1 - p))


def _score(p: NDArray[np.float32], boundary: float) -> float:
    """What the deployed graph would say of these probabilities."""
    logits = torch.from_numpy(_logit(p) - np.float32(_logit(boundary)))[None, None]
    return float(mask_score(logits, torch.ones_like(logits)))


def to_label_grid(probability: NDArray[np.float32], samples: Samples, config: TrainConfig) -> NDArray[np.uint8]:
    """Predictions of central crops (n, h, w) -> (n, g, g) uint8 x 255 on the grid of the cached crops, 0 around."""
    grid, cells = config.labels.grid, probability.shape[-1]
    share = (1 + config.expansion) / (1 + samples.expansion) * grid / cells  # label cells to one logit cell
    corner = (grid - share * cells) / 2
    # OpenCV counts from pixel centres: label = share * (cell + 0.5) + corner - 0.5
    move = np.array([[share, 0, corner + share / 2 - 0.5], [0, share, corner + share / 2 - 0.5]])
    wide = [cv2.warpAffine(each, move, (grid, grid), flags=cv2.INTER_LINEAR) for each in probability]
    return np.round(np.stack(wide) * 255).astype(np.uint8)
