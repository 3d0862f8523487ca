"""How well two masks agree, and how far a box or an ellipse alone would get. Full resolution, one object at a time."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mal.boxes import pixel_window, usable

Mask = NDArray[np.bool_]

BAND = 0.02  # width of the boundary band as a fraction of the image's diagonal (Cheng et al., 2021)


class Agreement(NamedTuple):
    """What one object says: all fractions 0..1."""

    boundary_iou: float
    floor_box: float
    floor_ellipse: float


def compare(predicted: Mask | None, truth: Mask, box: NDArray[np.float64]) -> Agreement:
    """Boundary IoU of one object and the floors on it.

    Args:
        predicted: (H, W) bool, or None where there is no mask: its boundary IoU is 0.
        truth: (H, W) bool.
        box: (4,) x0, y0, x1, y1 clipped to the image: the box that was given.
    """
    boundary = 0.0 if predicted is None else boundary_iou(predicted, truth)
    return Agreement(boundary, *floors(truth, box))


def boundary_iou(predicted: Mask, truth: Mask) -> float:
    """IoU of the two masks' inner boundary bands; 0 where both are empty.

    The band is what an erosion by max(1, round(BAND x diagonal)) pixels takes away; what lies outside the image
    counts as background. Computed in the tight window around both masks, which changes nothing: everything
    outside that window is background too.

    Source: Cheng, Girshick, Dollár, Berg, Kirillov, "Boundary IoU", CVPR 2021, section 4 and its dilation ratio .02.
    """
    height, width = truth.shape
    window = tight_window(predicted | truth)
    if window is None:
        return 0.0
    distance = max(1, round(BAND * float(np.hypot(height, width))))
    a, b = (_band(np.ascontiguousarray(mask[window]), distance) for mask in (predicted, truth))
    return float((a & b).sum() / (a | b).sum())


def floors(truth: Mask, box: NDArray[np.float64]) -> tuple[float, float]:
    """IoU with the truth of the filled box, and of the ellipse inscribed in it, by pixel centres.

    Both are 0 for a box without area: it names no pixel.
    """
    if not usable(box[None])[0]:
        return 0.0, 0.0
    x0, y0, x1, y1 = pixel_window(box)
    inside, area = truth[y0:y1, x0:x1], int(truth.sum())
    # Pixel centres in units of the half axes, from the box's centre.
    x = (np.arange(x0, x1) + 0.5 - (box[0] + box[2]) / 2) * 2 / (box[2] - box[0])
    y = (np.arange(y0, y1) + 0.5 - (box[1] + box[3]) / 2) * 2 / (box[3] - box[1])
    ellipse = x[None, :] ** 2 + y[:, None] ** 2 <= 1
    return _iou(inside, np.ones_like(inside), area), _iou(inside, ellipse, area)


def tight_window(mask: Mask) -> tuple[slice, slice] | None:
    """Slices (rows, columns) of the smallest window that holds the mask; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _iou(truth_in_window: Mask, other: Mask, truth_area: int) -> float:
    common = int((truth_in_window & other).sum())
    return common / max(1, truth_area + int(other.sum()) - common)


def _band(mask: Mask, distance: int) -> Mask:
    # A square of 2 d + 1 pixels erodes like d rounds of the paper's 3 x 3 square.
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    pixels = mask.view(np.uint8)
    return mask & (cv2.erode(pixels, square, borderType=cv2.BORDER_CONSTANT, borderValue=(0,)) == 0)
