"""Real crops for the gates: the built-in photographs, and what a calibration held aside."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mal.calibration.crops import Crops, Draw, cut
from mal.config import ModelConstants
from mal.datasets import BoxFile, open_boxes
from mal.datasets.segmentations import Rle, to_rle
from mal.errors import InputError, ModelFileError


@dataclass(frozen=True)
class GateCrops:
    """What models are compared on.

    Attributes:
        pixels: (N, 3, S, S) float32 RGB 0..255.
        size: (N,) index of `calibration.crops.SIZES`.
        boxes: (N, 4) clipped to their images.
        truth: (N,) true masks, None where the file has none.
    """

    pixels: NDArray[np.float32]
    size: NDArray[np.int64]
    boxes: NDArray[np.float64]
    truth: list[Rle | None]


def gate_crops(constants: ModelConstants, drawn: Draw | None = None) -> GateCrops:
    """Every object of the built-in photographs, a few dozen, and what a calibration held aside.

    Raises:
        ModelFileError: the photographs are missing from this installation.
        InputError: not one crop of those held aside can be cut.
    """
    folder = Path(str(resources.files("mal"))) / "models" / "photos"
    if not (folder / "boxes.json").is_file():
        raise ModelFileError(f"the built-in photographs are missing from {folder}; reinstall mal")
    photographs = open_boxes(folder / "boxes.json", folder)
    parts = [cut(photographs, photographs.order(), constants)]
    truth: list[Rle | None] = [None] * len(parts[0])
    if drawn:
        parts.append(cut(drawn.file, drawn.aside, constants))
        truth += _true_masks(drawn.file, parts[1])
    return GateCrops(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.size for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        truth,
    )


def _true_masks(file: BoxFile, crops: Crops) -> list[Rle | None]:
    found: list[Rle | None] = []
    for segmentation, (height, width) in zip(file.segmentations(crops.rows), crops.shapes.tolist(), strict=True):
        try:
            found.append(to_rle(segmentation, height, width))
        except InputError:  # no mask to judge by; the crop itself is as good as any
            found.append(None)
    return found
