"""What can be told about a student without a mask: do its masks fit the boxes, do two views agree, does each pixel
belong to one object?"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mal.config import TrainConfig
from mal.crops import cut_crop, to_input
from mal.network.head import central_box
from mal.train.labels import extent_iou, iou, to_label_grid
from mal.train.neighbours import claimed_by_smaller, neighbour_maps, within
from mal.train.samples import Samples, Tick
from mal.train.sighted import Net, logits

Probability = NDArray[np.float32]


@torch.no_grad()
def predict(
    student: Net,
    samples: Samples,
    rows: NDArray[np.int64],
    config: TrainConfig,
    *,
    flip: bool = False,
    tick: Tick | None = None,
) -> Probability:
    """(n, h, w) probabilities of the crops as deployment would cut them (box central, true colours).

    `flip`: of the mirrored crops, mirrored back.
    """
    device = next(student.parameters()).device
    rect, size, made = samples.central(config.expansion), student.head.size, []
    window, box = rect / samples.pixels.shape[1], central_box(config.expansion)[0].numpy()
    for first in range(0, len(rows), 32):
        part = rows[first : first + 32]
        crops = to_input(np.stack([cut_crop(samples.pixels[row], rect, size, config.fill) for row in part]))
        batch = torch.from_numpy(crops).to(device, memory_format=torch.channels_last)
        others = [neighbour_maps(within(samples.others[row], window), box, size // 4) for row in part]
        seen = torch.from_numpy(np.stack(others)).to(device)
        found = (
            logits(student, batch.flip(3), None, seen.flip(3)).flip(3) if flip else logits(student, batch, None, seen)
        )
        made.append(found[:, 0].sigmoid().float().cpu().numpy())
        if tick:
            tick(first + len(part), len(rows))
    return np.concatenate(made)


@dataclass(frozen=True)
class Judgement:
    """Signals without masks, means over the objects judged, 0..1.

    Attributes:
        threshold: the candidate of the highest extent IoU.
        extent: IoU of the masks' extents with their boxes, at that threshold.
        flip: IoU of the masks of a crop and of its mirror image, at that threshold.
        claimed: share of a mask that the objects of smaller boxes claim, at that threshold.
        probability: (n, h, w) of the objects judged.
    """

    threshold: float
    extent: float
    flip: float
    claimed: float
    probability: Probability

    @property
    def value(self) -> float:
        """One number to compare two students by."""
        return self.extent * self.flip * (1 - self.claimed)


def judge(student: Net, samples: Samples, rows: NDArray[np.int64], config: TrainConfig) -> Judgement:
    """Judge a student on some samples. Neighbours that are not among `rows` claim nothing.

    The extent alone chooses the threshold: mirrored masks agree the more the larger they are, whatever they are worth.
    """
    plain = predict(student, samples, rows, config)
    mirrored = predict(student, samples, rows, config, flip=True)
    box = central_box(config.expansion)[0].numpy() * plain.shape[-1]
    grids = to_label_grid(plain, samples, config)
    claimed = claimed_by_smaller(grids, samples, rows, config.claimed)

    def at(threshold: float) -> Judgement:
        masks = grids > threshold * 255
        return Judgement(
            threshold,
            float(np.mean([extent_iou(p > threshold, box) for p in plain])),
            float(np.mean([iou(a > threshold, b > threshold) for a, b in zip(plain, mirrored, strict=True)])),
            float(np.mean((masks & claimed).sum((1, 2)) / np.maximum(1, masks.sum((1, 2))))),
            plain,
        )

    return max((at(threshold) for threshold in config.thresholds), key=lambda each: each.extent)
