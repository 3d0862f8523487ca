"""Logits to masks, and masks to COCO's run lengths, inside the box only.

A mask never leaves its box, so it is kept as a window of the image (`BoxMask`), and neither the decision
nor the encoding touches the pixels outside it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mal.boxes import pixel_window
from mal.errors import InputError
from mal.images import MAX_PIXELS


class BoxMask(NamedTuple):
    """A mask inside its box's pixel window; everything outside is background."""

    x0: int
    """Left column of the window in the image."""
    y0: int
    """Top row of the window in the image."""
    pixels: NDArray[np.bool_]
    """(h, w) bool, at least one pixel. Column-major where it comes from here: the order of run lengths."""


def mask_from_logits(logits: NDArray[np.float32], box: NDArray[np.float64], expansion: float) -> BoxMask:
    """Decide each pixel of one box: bilinear sample of the logits > 0.

    Args:
        logits: (h, w) float32 over the crop, zero = boundary.
        box: (4,) clipped box in image pixels.
        expansion: the model's; the crop is `boxes.expand(box, expansion)`.

    Returns:
        The pixels of `boxes.pixel_window(box)`. NaN logits count as background.

    Source: design, fixed arithmetic ("decision"): half-pixel convention, sampled at pixel centres.
    """
    x0, y0, x1, y1 = pixel_window(box)
    rows, cols = logits.shape
    above, down = _samples(box[1], box[3], y0, y1, rows, expansion)
    left, across = _samples(box[0], box[2], x0, x1, cols, expansion)
    # Rows first; then columns on the transposed map, so that every step runs along memory and the
    # result lies column-major.
    strips = np.ascontiguousarray(_lerp(logits, above, down).T)
    return BoxMask(x0, y0, (_lerp(strips, left, across) > 0).T)


def masks_from_logits(logits: NDArray[np.float32], boxes: NDArray[np.float64], expansion: float) -> list[BoxMask]:
    """`mask_from_logits` for (B, h, w) logits and (B, 4) boxes; each mask is independent of the others."""
    return [mask_from_logits(logit, box, expansion) for logit, box in zip(logits, boxes, strict=True)]


def _samples(
    low: float, high: float, start: int, stop: int, length: int, expansion: float
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Where pixel centres start..stop fall on a map of `length` cells that covers the grown side low..high.

    Returns the lower cell and the weight of the next one, clamped at the map's border.
    """
    side = (high - low) * (1 + expansion)
    origin = (low + high - side) / 2
    at = (np.arange(start, stop) + (0.5 - origin)) * (length / side) - 0.5
    at = np.clip(at, 0, length - 1)
    cell = np.minimum(at.astype(np.intp), max(length - 2, 0))
    return cell, (at - cell).astype(np.float32)


def _lerp(values: NDArray[np.float32], cell: NDArray[np.intp], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolate along axis 0: (n, m) at (k,) cells -> (k, m)."""
    following = values[np.minimum(cell + 1, len(values) - 1)]
    base = values[cell]
    following -= base
    following *= weight[:, None]
    following += base
    return following


def area(mask: BoxMask) -> int:
    """Pixels of the mask."""
    return int(np.count_nonzero(mask.pixels))


def encode(masks: Sequence[BoxMask], sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """COCO's compressed run lengths of masks, byte for byte as `pycocotools.mask.encode` writes them.

    Args:
        masks: N masks.
        sizes: (height, width) of each mask's image.

    Returns:
        N times `counts`, ASCII. The first run is background, runs go down the columns of the whole image.
    """
    return [_compress(_runs(mask, *size)) for mask, size in zip(masks, sizes, strict=True)]


def _runs(mask: BoxMask, height: int, width: int) -> NDArray[np.int64]:
    h, w = mask.pixels.shape
    padded = np.zeros((w, h + 1), bool)
    padded[:, :h] = mask.pixels.T
    flat = padded.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        edges = np.concatenate([[0], edges])
    column, row = np.divmod(edges, h + 1)
    edges = (mask.x0 + column) * height + mask.y0 + row
    starts, ends = edges[::2], edges[1::2]
    split = np.flatnonzero(starts[1:] == ends[:-1])
    starts, ends = np.delete(starts, split + 1), np.delete(ends, split)
    edges = np.stack([starts, ends], axis=1).ravel()
    total = height * width
    if len(edges) and edges[-1] == total:
        edges = edges[:-1]
    return np.diff(edges, prepend=0, append=total)


def _compress(runs: NDArray[np.int64]) -> bytes:
    out = bytearray()
    for at, run in enumerate(runs.tolist()):
        value = run - (runs[at - 2].item() if at > 2 else 0)
        more = True
        while more:
            low = value & 0x1F
            value >>= 5
            more = value != -1 if low & 0x10 else value != 0
            out.append(low + (0x20 if more else 0) + 48)
    return bytes(out)


def decode(counts: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Mask of the whole image, (height, width) bool, from COCO's compressed run lengths.

    Raises:
        InputError: a character out of range, a cut number, a negative run, runs that do not fill the
            image, or an image above `images.MAX_PIXELS`.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise InputError(f"run lengths of a {width} x {height} image; expected 1 to {MAX_PIXELS} pixels")
    chars = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if chars.size and (chars.min() < 0 or chars.max() > 63):
        raise InputError("run lengths contain a character that COCO's compression does not use")
    last = np.flatnonzero(chars < 32)
    if not last.size or last[-1] != chars.size - 1:
        raise InputError("run lengths end within a number")
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 8:
        raise InputError("run lengths contain a number of more than 40 bits")
    place = np.arange(chars.size) - np.repeat(first, lengths)
    values = np.add.reduceat((chars & 31) << (5 * place), first)
    values -= np.where(chars[last] & 16, np.int64(1) << (5 * lengths), 0)
    # From the fourth run on each number is the difference to the run two before.
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    if runs.min() < 0:
        raise InputError("run lengths contain a negative run")
    if (total := int(runs.sum())) != height * width:
        raise InputError(f"run lengths fill {total} pixels, the image has {width} x {height}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T


def polygons(mask: BoxMask) -> list[list[float]]:
    """The mask's outlines as COCO polygons: x, y, x, y, ... in image pixels, one list a part.

    Vertices lie on pixel corners, so a mask without holes survives exactly. COCO's polygons cannot say
    holes: these are lost, as is an island inside a hole, which the filled hole swallows. Parts that
    touch at a corner are one polygon. An empty mask gives [].
    """
    # On a grid of half pixels the contour's points tell on which side of its pixel an edge lies:
    # half pixel 2i is the left half of pixel i, whose edge is i; 2i + 1 the right half, edge i + 1.
    halves = np.repeat(np.repeat(mask.pixels.view(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(halves, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found: list[list[float]] = []
    for contour in contours:
        corners = (contour.reshape(-1, 2).astype(np.int64) + 1) // 2
        corners = _drop_straight(corners[np.any(corners != np.roll(corners, 1, axis=0), axis=1)])
        found.append((corners + np.array([mask.x0, mask.y0])).astype(np.float64).ravel().tolist())
    return found


def _drop_straight(corners: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop vertices in the middle of a straight edge, (n, 2) -> (m, 2)."""
    before, after = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
    return corners[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
