"""THE definition of a crop; training, calibration and the runtime all use it.

A crop is a rectangle of exact float edges, `boxes.expand(clipped box, expansion)`, resampled to
`size` x `size` pixels (the aspect is not kept) by Pillow's anti-aliased bilinear filter. It may leave
the image; what is read there is the fill:

    reflect   mirrored at the image's edge, which is repeated   b a | a b c | c b a
    edge      the nearest pixel                                 a a | a b c | c c c
    wrap      the opposite side                                 b c | a b c | a b

Each holds at any distance. The judge is Pillow's `resize((size, size), BILINEAR, box=rectangle)` of the
filled image; here only the pixels under the filter are handed to Pillow. That may differ from the judge by one
grey level: Pillow rounds between its two passes, and runs that pass first that is cheaper for the image it got.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mal.config import Fill
from mal.errors import ShapeError

Pixels = NDArray[np.uint8]

MAX_EDGE = 2**24
MAX_PATCH = 2**30
"""Limits of a rectangle: its edges, and the pixels under it. Those of clipped boxes stay far below."""

_BORDERS = {"reflect": cv2.BORDER_REFLECT, "edge": cv2.BORDER_REPLICATE}


def cut_crop(image: Pixels, rect: NDArray[np.float64], size: int, fill: Fill) -> Pixels:
    """Cut one crop.

    Args:
        image: (H, W, 3) uint8 RGB.
        rect: (4,) x0, y0, x1, y1 in image pixels; may leave the image.
        size: S, side of the crop in pixels.
        fill: what is read outside the image.

    Returns:
        (S, S, 3) uint8 RGB, read-only.

    Raises:
        ShapeError: no image, or a rectangle without an area, not finite or absurdly large.
    """
    check_crops(image, rect[None], size)
    x0, y0, x1, y1 = (float(edge) for edge in rect)
    left, right = _reach(x0, x1, size)
    top, bottom = _reach(y0, y1, size)
    patch = _patch(image, left, top, right, bottom, fill)
    box = (x0 - left, y0 - top, x1 - left, y1 - top)
    return np.asarray(Image.fromarray(patch).resize((size, size), Image.Resampling.BILINEAR, box=box))


def cut_crops(image: Pixels, rects: NDArray[np.float64], size: int, fill: Fill) -> Pixels:
    """Cut (N, 4) rectangles of one image: (N, S, S, 3) uint8. As `cut_crop`."""
    crops = np.empty((len(rects), size, size, 3), np.uint8)
    for row, rect in enumerate(rects):
        crops[row] = cut_crop(image, rect, size, fill)
    return crops


def cut_into(image: Pixels, rects: NDArray[np.float64], fill: Fill, out: NDArray[np.float32]) -> None:
    """Cut (N, 4) rectangles of one image as the network takes them: `to_input` of `cut_crops`, into (N, 3, S, S)."""
    to_input(cut_crops(image, rects, out.shape[-1], fill), out)


def to_input(crops: Pixels, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Crops as the network takes them.

    Args:
        crops: (N, S, S, 3) uint8 RGB.
        out: (N, 3, S, S) float32 to write into; fresh memory costs more than the conversion.

    Returns:
        (N, 3, S, S) float32 RGB, 0..255; `out` where given.
    """
    planes = crops.transpose(0, 3, 1, 2)
    if out is None:
        out = np.empty(planes.shape, np.float32)
    np.copyto(out, planes)
    return out


def check_crops(image: Pixels, rects: NDArray[np.float64], size: int) -> None:
    """Raise ShapeError for what `cut_crops` does not take; arguments as there."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ShapeError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    low, high = rects[:, :2], rects[:, 2:]
    fine = np.all((low > -MAX_EDGE) & (low < high) & (high < MAX_EDGE), axis=1)
    if not fine.all():
        wrong = rects[~fine][0].tolist()
        raise ShapeError(f"a crop needs x0 < x1 and y0 < y1 within {MAX_EDGE} pixels, got {wrong}")
    sides = high - low
    reach = sides + 2 * np.maximum(1, sides / size) + 4  # a little more than the pixels of `_reach`
    fine = reach.prod(axis=1) <= MAX_PATCH
    if not fine.all():
        wrong = rects[~fine][0].tolist()
        raise ShapeError(f"rectangle {wrong} covers more than {MAX_PATCH} pixels; clip its box first")


def _reach(low: float, high: float, size: int) -> tuple[int, int]:
    """Whole pixels under the filter: half a triangle of one output pixel's width, or of one image pixel's."""
    support = max(1.0, (high - low) / size)
    # One more pixel each side: Pillow computes the edges in float32, and must not meet the patch's border.
    return math.floor(low - support) - 1, math.ceil(high + support) + 1


def _patch(image: Pixels, left: int, top: int, right: int, bottom: int, fill: Fill) -> Pixels:
    """Pixels left..right, top..bottom of the filled image."""
    height, width = image.shape[:2]
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        return image[top:bottom, left:right]
    inner = image[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    borders = (max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0))
    if fill != "wrap" and max(borders[:2]) <= inner.shape[0] and max(borders[2:]) <= inner.shape[1]:
        # The usual case, five times as fast: what is mirrored or repeated lies in the patch itself.
        return np.asarray(cv2.copyMakeBorder(inner, *borders, _BORDERS[fill]), np.uint8)
    rows, columns = _source(top, bottom, height, fill), _source(left, right, width, fill)
    return image[rows[:, None], columns]


def _source(start: int, stop: int, length: int, fill: Fill) -> NDArray[np.intp]:
    """Image rows (or columns) that rows start..stop of the filled image are read from."""
    index = np.arange(start, stop)
    if fill == "edge":
        return np.clip(index, 0, length - 1)
    if fill == "wrap":
        return index % length
    index %= 2 * length
    return np.minimum(index, 2 * length - 1 - index)
