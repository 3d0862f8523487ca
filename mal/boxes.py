"""Box geometry in image pixels: x0, y0, x1, y1, half-open.

COCO's x, y, width, height exists in `mal.datasets` only.
"""

import math

import numpy as np
from numpy.typing import NDArray

from mal.errors import ShapeError

Boxes = NDArray[np.float64]


def as_boxes(boxes: object) -> Boxes:
    """Check an array of boxes and return it as float64.

    Args:
        boxes: (N, 4) numbers x0, y0, x1, y1 in image pixels; N may be 0.

    Raises:
        ShapeError: not (N, 4), or not numbers.
    """
    try:
        array = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"boxes must be numbers of shape (N, 4) x0, y0, x1, y1: {error}") from None
    if array.shape == (0,):  # what an empty list becomes
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ShapeError(f"boxes must be (N, 4) x0, y0, x1, y1, got shape {array.shape}")
    return array


def from_xywh(xywh: NDArray[np.floating]) -> Boxes:
    """Convert COCO's (N, 4) x, y, width, height into x0, y0, x1, y1."""
    xywh = as_boxes(xywh)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def clip(boxes: Boxes, width: int, height: int) -> Boxes:
    """Clip (N, 4) boxes to an image of `width` x `height` pixels.

    A box wholly outside comes out with no area, one that is not finite as NaN: `usable` tells both.
    """
    limit = np.array([width, height, width, height], np.float64)
    finite = np.isfinite(boxes).all(axis=1, keepdims=True)
    return np.where(finite, np.clip(boxes, 0.0, limit), np.nan)


def usable(boxes: Boxes) -> NDArray[np.bool_]:
    """(N,) bool: finite and with an area. Apply it to clipped boxes."""
    finite = np.isfinite(boxes).all(axis=1)
    with np.errstate(invalid="ignore"):
        return finite & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def expand(boxes: Boxes, expansion: float) -> Boxes:
    """Grow boxes about their centres: the rectangles that the network sees.

    Args:
        boxes: (N, 4) clipped boxes.
        expansion: growth of each side as a fraction; 0.3 makes both sides 1.3 times as long.

    Returns:
        (N, 4) exact float rectangles; they may leave the image.

    >>> expand(np.array([[10.0, 20.0, 30.0, 60.0]]), 0.3)
    array([[ 7., 14., 33., 66.]])
    """
    margin = (boxes[:, 2:] - boxes[:, :2]) * (expansion / 2)
    return np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1)


def pixel_window(box: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Whole-pixel window x0, y0, x1, y1 of the pixels whose centres lie inside one clipped box.

    A box without any pixel centre gets the one pixel that holds its own centre, so every usable box
    has at least one pixel. Source: design, fixed arithmetic ("decision").

    >>> pixel_window(np.array([1.5, 0.0, 3.5, 2.0]))
    (1, 0, 3, 2)
    >>> pixel_window(np.array([1.6, 5.0, 2.4, 9.0]))
    (2, 7, 3, 8)
    """
    # Pixel i has its centre at i + 0.5 and counts when x0 <= i + 0.5 < x1.
    x0, y0, x1, y1 = (int(edge) for edge in np.ceil(box - 0.5))
    if x1 <= x0 or y1 <= y0:
        # A sliver at the far edge has its centre on that edge, after rounding: the pixel before it holds the box.
        x = min(int((box[0] + box[2]) // 2), math.ceil(box[2]) - 1)
        y = min(int((box[1] + box[3]) // 2), math.ceil(box[3]) - 1)
        return x, y, x + 1, y + 1
    return x0, y0, x1, y1


def pixel_windows(boxes: Boxes) -> NDArray[np.int64]:
    """`pixel_window` of (N, 4) clipped boxes: (N, 4)."""
    windows = np.ceil(boxes - 0.5).astype(np.int64)
    for row in np.flatnonzero((windows[:, 2:] <= windows[:, :2]).any(axis=1)):
        windows[row] = pixel_window(boxes[row])
    return windows
