"""Validation by true masks, where the user has some. They choose and report; nothing is ever trained on them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mal import boxes as geometry
from mal.config import TrainConfig
from mal.datasets import open_boxes
from mal.datasets.segmentations import to_mask, to_rle
from mal.errors import InputError
from mal.masks import mask_from_logits
from mal.train.judge import Probability, predict
from mal.train.samples import Samples, cut_samples
from mal.train.sighted import Net

MOST = 1000
"""Objects measured, drawn at random: the mean's standard error is about .006, and an epoch waits seconds for it."""


@dataclass(frozen=True)
class Truth:
    """Objects with true masks.

    Attributes:
        samples, rows: their crops.
        boxes: (n, 4) clipped, in image pixels.
        masks: n compressed RLEs.
    """

    samples: Samples
    rows: NDArray[np.int64]
    boxes: NDArray[np.float64]
    masks: list[dict[str, Any]]

    def miou(self, probability: Probability, threshold: float, expansion: float) -> float:
        """Mean of `ious`."""
        return float(self.ious(probability, threshold, expansion).mean())

    def ious(self, probability: Probability, threshold: float, expansion: float) -> NDArray[np.float64]:
        """(n,) IoU of each object at full image resolution, as `mal eval` measures masks before refinement."""
        boundary = math.log(threshold / (1 - threshold))
        p = probability.clip(1e-6, 1 - 1e-6)
        ious: list[float] = []
        for logits, box, rle in zip(np.log(p / (1 - p)) - np.float32(boundary), self.boxes, self.masks, strict=True):
            mask, truth = mask_from_logits(logits, box, expansion), to_mask(rle)
            height, width = mask.pixels.shape
            both = int((mask.pixels & truth[mask.y0 : mask.y0 + height, mask.x0 : mask.x0 + width]).sum())
            ious.append(both / max(1, int(mask.pixels.sum()) + int(truth.sum()) - both))
        return np.array(ious)

    def best(self, student: Net, config: TrainConfig) -> tuple[float, float]:
        """(mean IoU, threshold) at the candidate threshold that serves these objects best."""
        probability = predict(student, self.samples, self.rows, config)
        return max((self.miou(probability, each, config.expansion), each) for each in config.thresholds)


def read_truth(config: TrainConfig, folder: Path) -> Truth | None:
    """Objects of `val`, their crops cut into `folder`; None where the settings name no such file.

    Raises:
        InputError: no object with a box, an image and a readable mask.
    """
    if config.val is None:
        return None
    file = open_boxes(config.val, config.val_images)
    samples = cut_samples([file], config.model_copy(update={"min_side": 1.0, "areas": (0.0, math.inf)}), folder)
    try:
        annotations: list[dict[str, Any]] = orjson.loads(config.val.read_bytes())["annotations"]
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"val={config.val} must be a COCO JSON with masks") from None
    rows = np.sort(np.random.default_rng(13).permutation(len(samples))[:MOST])
    boxes: list[NDArray[np.float64]] = []
    masks: list[dict[str, Any]] = []
    for row in samples.row[rows]:
        image = int(file.image_row[row])
        width, height = int(file.images.widths[image]), int(file.images.heights[image])
        try:
            rle = to_rle(annotations[row].get("segmentation"), height, width)
        except InputError as error:
            raise InputError(f"val={config.val}: annotation in place {row}: {error}") from None
        if rle is None:
            raise InputError(f"val={config.val}: annotation in place {row} has no mask; is this the file of boxes?")
        boxes.append(geometry.clip(file.boxes[row : row + 1], width, height)[0])
        masks.append(rle)
    return Truth(samples, rows, np.stack(boxes), masks)
