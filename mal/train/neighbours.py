"""What the other boxes of an image say: a pixel that the object of a smaller box claims is no pixel of a larger one.

A bag before a coat, a cup on a table: the smaller box is mostly in front. Where boxes are parts of one another (a wheel
and its car) this is wrong: `adapt.claimed=1` switches it off.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mal import boxes as geometry
from mal.datasets import BoxFile
from mal.train.samples import Samples


def claimed_by_smaller(
    probability: NDArray[np.uint8], samples: Samples, files: Sequence[BoxFile], least: float
) -> NDArray[np.bool_]:
    """Cells of each object that smaller boxes' objects claim.

    Args:
        probability: (N, g, g) uint8 x 255 on the grids of the cached crops.
        samples: their crops; `row` and `source` say which boxes they are.
        files: the box files that the samples were cut from.
        least: a probability above this is a claim, 0..1.

    Returns:
        (N, g, g) bool.
    """
    grid = probability.shape[-1]
    claimed = np.zeros(probability.shape, bool)
    # Crops are centred on clipped boxes; outside the image nothing is compared, so clipping to what is known suffices.
    boxes = np.stack([files[s].boxes[row] for s, row in zip(samples.source, samples.row, strict=True)])
    image = np.array([files[s].image_row[row] for s, row in zip(samples.source, samples.row, strict=True)])
    for source, file in enumerate(files):
        mine = np.flatnonzero(samples.source == source)
        sizes = np.stack([file.images.widths, file.images.heights], 1)[image[mine]]
        limits = np.where((sizes > 0).all(1, keepdims=True), sizes, np.inf)  # some files tell no sizes
        boxes[mine] = np.clip(boxes[mine], 0, np.tile(limits, 2))
    crops = geometry.expand(boxes, samples.expansion)
    cell = (crops[:, 2:] - crops[:, :2]) / grid
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    order = np.lexsort((area, image, samples.source))  # the objects of an image together, smaller ones first
    starts = np.flatnonzero(np.diff(samples.source[order]) | np.diff(image[order])) + 1
    for group in np.split(order, starts):
        for at, large in enumerate(group):
            for small in group[:at]:
                if area[small] == area[large] or not _overlap(boxes[small], boxes[large]):
                    continue
                # A cell of the small one's grid -> a cell of the large one's, OpenCV counting from cell centres.
                scale = cell[small] / cell[large]
                move = (crops[small, :2] - crops[large, :2]) / cell[large] + scale / 2 - 0.5
                matrix = np.array([[scale[0], 0, move[0]], [0, scale[1], move[1]]])
                claims = cv2.warpAffine(probability[small], matrix, (grid, grid), flags=cv2.INTER_LINEAR)
                claimed[large] |= claims > least * 255
    return claimed


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return bool((np.minimum(a[2:], b[2:]) > np.maximum(a[:2], b[:2])).all())
