"""What the other boxes of an image say.

Claims: a pixel that the object of a smaller box claims is mostly no pixel of a larger one: a bag before a coat, a cup
on a table. Where boxes are parts of one another (a wheel and its car) this is wrong: `claimed=1` switches it off.
A pixel that the object of a larger box is surer of may be anybody's.
Maps: where the other boxes lie, for a network that is shown them (train/sighted.py).
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mal.train.samples import Samples

MAPS = 4
"""Of `neighbour_maps`."""


def claims(
    probability: NDArray[np.uint8], samples: Samples, rows: NDArray[np.int64], sizes: tuple[float, float] = (0.0, 1.0)
) -> NDArray[np.uint8]:
    """What other objects of the image claim of each object's crop.

    Args:
        probability: (n, g, g) uint8 x 255 on the grids of the cached crops.
        samples: the crops.
        rows: (n,) which of them these are; only among these is looked.
        sizes: whose claims: of boxes of more than the first and less than the second times this object's area.

    Returns:
        (n, g, g) uint8 x 255, the highest of their probabilities; 0 where there is none.
    """
    grid = probability.shape[-1]
    highest = np.zeros_like(probability)
    crops, image = samples.rect[rows], samples.image[rows]
    sides = crops[:, 2:] - crops[:, :2]
    corner, far = (crops[:, :2] + sides * edge for edge in (samples.box[:2], samples.box[2:]))  # of the boxes
    cell, area = sides / grid, sides.prod(1)
    least, most = sizes[0] * (1 + 1e-9), sizes[1] * (1 - 1e-9)  # equal boxes are no smaller and no larger ones
    order = np.argsort(image, kind="stable")  # the objects of an image together
    for group in np.split(order, np.flatnonzero(np.diff(image[order])) + 1):
        for own in group:
            for other in group[(area[group] > area[own] * least) & (area[group] < area[own] * most)]:
                low, high = np.maximum(corner[other], corner[own]), np.minimum(far[other], far[own])
                if other == own or (high <= low).any():
                    continue
                # A cell of the other's grid -> a cell of this one's, OpenCV counting from cell centres.
                scale = cell[other] / cell[own]
                move = (crops[other, :2] - crops[own, :2]) / cell[own] + scale / 2 - 0.5
                matrix = np.array([[scale[0], 0, move[0]], [0, scale[1], move[1]]])
                found = cv2.warpAffine(probability[other], matrix, (grid, grid), flags=cv2.INTER_LINEAR)
                np.maximum(highest[own], found, out=highest[own])
    return highest


def claimed_by_smaller(
    probability: NDArray[np.uint8], samples: Samples, rows: NDArray[np.int64], least: float
) -> NDArray[np.bool_]:
    """(n, g, g): cells of each object that smaller boxes' objects claim with more than `least`. As `claims`."""
    return claims(probability, samples, rows) > least * 255


def surer_larger(probability: NDArray[np.uint8], samples: Samples, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n, g, g): cells of each object's mask that a larger box's object is surer of. As `claims`.

    On ccp about half of these cells are the smaller box's: no label is better than either one.
    """
    return (probability > 127) & (claims(probability, samples, rows, (1, np.inf)) > probability)


def neighbour_maps(others: NDArray[np.float32], box: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Where the other boxes of the image lie in a window.

    Args:
        others: (n, 4) boxes in units of the window; those outside it are passed over.
        box: (4,) the object's own.
        size: cells along each side.

    Returns:
        (4, size, size) in 0..1, the deepest of each kind: how deep a cell lies in the smaller boxes and in the larger
        ones (1 from a fifth of the half sides inwards, .2 at the edge), a third of the boxes it lies in, and how deep
        in the ellipses of the smaller ones.
    """
    maps = np.zeros((MAPS, size, size), np.float32)
    cell = (np.arange(size, dtype=np.float32) + 0.5) / size
    own = (box[2:] - box[:2]).prod()
    for other in others:
        half = (other[2:] - other[:2]) / 2
        u = np.abs(cell - (other[0] + other[2]) / 2)[None, :] / half[0]
        v = np.abs(cell - (other[1] + other[3]) / 2)[:, None] / half[1]
        inside = (u < 1) & (v < 1)
        if not inside.any():
            continue
        depth = np.clip(1.2 - np.maximum(u, v), 0, 1) * inside
        smaller = 4 * half.prod() < own
        kind = 0 if smaller else 1
        maps[kind] = np.maximum(maps[kind], depth)
        maps[2] += inside / 3
        if smaller:
            maps[3] = np.maximum(maps[3], np.clip(1.2 - np.hypot(u, v), 0, 1))
    return maps


def within(rect: NDArray[Any], window: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rectangles (..., 4) in units of a window (4,)."""
    return ((rect - np.tile(window[:2], 2)) / np.tile(window[2:] - window[:2], 2)).astype(np.float32)
