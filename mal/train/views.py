"""What one training step sees of a crop: a window with a drifting box, for the student with other colours.

Every random number of a view comes from (seed, round, number of the sample in the round): the same run gives the same
views, interrupted or not, whatever the workers.
"""

import time
from collections.abc import Iterator
from typing import TypedDict

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mal.config import TrainConfig
from mal.crops import cut_crop, to_input
from mal.train.labels import UNKNOWN, Labels
from mal.train.neighbours import neighbour_maps, within
from mal.train.paste import Occluders
from mal.train.samples import Samples


class View(TypedDict):
    """One sample, or a batch of B of them. Rectangles are x0, y0, x1, y1 in units of the window.

    student, teacher: (3, S, S) float32 0..255, the same window in changed and in true colours.
    box, valid: (4,) the box, and the image's part of the window.
    target: (1, h, w) float32, share of object; known: (1, h, w) float32, 1 where target means something.
    trust: () float32, weight of the label.
    neighbours: (4, h, w) float32, where the other boxes lie: `neighbour_maps`.
    seconds: () float32, what making the view took: the loader's speed, whoever does it.
    """

    student: Tensor
    teacher: Tensor
    box: Tensor
    valid: Tensor
    target: Tensor
    known: Tensor
    trust: Tensor
    neighbours: Tensor
    seconds: Tensor


class Views(Dataset[View]):
    """Views by (row of the sample, number of the sample in the round)."""

    def __init__(self, samples: Samples, labels: Labels, config: TrainConfig, round_: int) -> None:
        self.samples, self.labels, self.config, self.round = samples, labels, config, round_
        self.occluders = Occluders(samples, labels)

    def __getitem__(self, key: tuple[int, int]) -> View:
        started = time.perf_counter()
        row, number = key
        config, samples = self.config, self.samples
        rng = np.random.default_rng((config.seed, self.round, number))
        side, size = samples.pixels.shape[1], config.size
        window = _window(samples.box, config.drift, rng)
        crop = cut_crop(samples.pixels[row], window * side, size, config.fill)
        label = self.labels.maps[row]
        sure = label != UNKNOWN
        planes = np.stack([label * sure, sure * np.uint8(255), np.zeros_like(label)], -1)
        planes = cut_crop(planes, window * len(label), size // 4, "edge")
        planes = np.divide(planes, 255, dtype=np.float32)
        target, known = planes[..., 0], planes[..., 1]
        others = within(samples.others[row], window)
        if self.labels.trust[row] > 0 and rng.random() < config.paste:
            crop, target, known, pasted = self.occluders.over(crop, target, known, rng)
            others = np.concatenate([others, pasted])
        box, valid = within(samples.box, window), np.clip(within(samples.valid[row], window), 0, 1)
        if rng.random() < 0.5:
            crop, target, known = crop[:, ::-1], target[:, ::-1], known[:, ::-1]
            box, valid, others = _flip(box), _flip(valid), _flip(others)
        crops = to_input(np.stack([_recolour(crop, config.colour, rng), crop]))
        return View(
            student=torch.from_numpy(crops[0]),
            teacher=torch.from_numpy(crops[1]),
            box=torch.from_numpy(box),
            valid=torch.from_numpy(valid),
            target=torch.from_numpy(target / np.maximum(known, 1e-3))[None],
            known=torch.from_numpy((known > 0.6).astype(np.float32))[None],
            trust=torch.tensor(self.labels.trust[row]),
            neighbours=torch.from_numpy(neighbour_maps(others, box, size // 4)),
            seconds=torch.tensor(time.perf_counter() - started),
        )


class Draw(Sampler[tuple[int, int]]):
    """Which samples an epoch sees: drawn by weight, decided by (seed, round, epoch) alone.

    Args:
        weights: (N,) chances, of any sum.
        count: samples an epoch.
        part: this process and how many there are; together they see what one alone would, step by step.
        batch: samples that a process sees at once.
    """

    def __init__(
        self,
        weights: NDArray[np.float64],
        count: int,
        seed: int,
        round_: int,
        part: tuple[int, int] = (0, 1),
        batch: int = 1,
    ) -> None:
        self.weights, self.count, self.seed, self.round, self.epoch = weights, count, seed, round_, 0
        self.part, self.batch = part, batch

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.part[1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng((self.seed, self.round, self.epoch, 1))
        rows = rng.choice(len(self.weights), self.count, p=self.weights / self.weights.sum())
        first = self.epoch * self.count
        mine, processes = self.part
        return (
            (int(row), first + offset) for offset, row in enumerate(rows) if offset // self.batch % processes == mine
        )


def _window(box: NDArray[np.float32], drift: tuple[float, float], rng: np.random.Generator) -> NDArray[np.float64]:
    """A window around the box, each side's margin drawn on its own, in units of half the box; within the crop."""
    low, high = box[:2].astype(np.float64), box[2:].astype(np.float64)
    half = (high - low) / 2
    margins = rng.uniform(*drift, (2, 2)) * half
    return np.clip(np.concatenate([low - margins[0], high + margins[1]]), 0, 1)


def _flip(rect: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mirrored rectangles (..., 4)."""
    x0, y0, x1, y1 = np.moveaxis(rect, -1, 0)
    return np.stack([1 - x1, y0, 1 - x0, y1], -1)


def _recolour(crop: NDArray[np.uint8], amount: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change brightness, contrast, saturation and tint; now and then grey or blurred (mal.md §1.5)."""
    brightness, contrast, saturation = 1 + amount * rng.uniform(-1, 1, 3)
    tint = 1 + amount / 6 * rng.standard_normal(3)
    grey, blur = rng.random() < 0.1, rng.random() < 0.15
    sigma = rng.uniform(0.5, 1.5)
    values = crop.astype(np.float32)
    mean = values.mean()
    values = (values - mean) * contrast + mean
    tone = values.mean(-1, keepdims=True)
    values = (tone + (values - tone) * (0 if grey else saturation)) * (brightness * tint).astype(np.float32)
    if blur:
        values = cv2.GaussianBlur(values, (0, 0), sigma)
    return np.clip(values, 0, 255).astype(np.uint8)
