"""Real crops for the gates: the built-in photographs, cut as a model wants them."""

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mal import boxes
from mal.config import ModelConstants
from mal.crops import cut_crops, to_input
from mal.datasets import open_boxes
from mal.errors import ModelFileError
from mal.images import find_image, read_image


def gate_crops(constants: ModelConstants) -> NDArray[np.float32]:
    """(N, 3, S, S) float32 RGB 0..255: every object of the built-in photographs, a few dozen.

    Raises:
        ModelFileError: the photographs are missing from this installation.
    """
    folder = Path(str(resources.files("mal"))) / "models" / "photos"
    if not (folder / "boxes.json").is_file():
        raise ModelFileError(f"the built-in photographs are missing from {folder}; reinstall mal")
    box_file = open_boxes(folder / "boxes.json", folder)
    crops: list[NDArray[np.uint8]] = []
    for row, name in enumerate(box_file.images.file_names):
        image = read_image(find_image(name, folder))
        height, width = image.shape[:2]
        here = boxes.clip(box_file.boxes[box_file.image_row == row], width, height)
        rectangles = boxes.expand(here[boxes.usable(here)], constants.expansion)
        crops.append(cut_crops(image, rectangles, constants.size, constants.fill))
    return to_input(np.concatenate(crops))
