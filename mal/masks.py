"""Logits to masks, and masks to COCO's run lengths, inside the box only.

A mask never leaves its box, so it is kept as a window of the image (`BoxMask`), and neither the decision
nor the encoding touches the pixels outside it.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mal.boxes import pixel_window
from mal.errors import InputError, ShapeError
from mal.images import MAX_PIXELS

_DECIDED_AT_ONCE = 2**16
_ENCODED_AT_ONCE = 2**18
# Pixels in work at once: enough to share NumPy's overhead, few enough for the cache (float32 here, bool there).

Span = tuple[float, float]
"""Where a side of the crop begins in the image, and how long it is."""


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
    return _decide(logits, box, _grown(box[0], box[2], expansion), _grown(box[1], box[3], expansion))


def mask_in_crop(logits: NDArray[np.float32], box: NDArray[np.float64], crop: NDArray[np.float64]) -> BoxMask:
    """`mask_from_logits` of a crop that is not the box grown, such as nvinfer's.

    Args:
        logits, box: as there.
        crop: (4,) x0, y0, x1, y1 in image pixels: what the network saw.
    """
    x0, y0, x1, y1 = crop.tolist()
    return _decide(logits, box, (x0, x1 - x0), (y0, y1 - y0))


def _decide(logits: NDArray[np.float32], box: NDArray[np.float64], across_crop: Span, down_crop: Span) -> BoxMask:
    x0, y0, x1, y1 = pixel_window(box)
    rows, cols = logits.shape
    above, down = _samples(down_crop, y0, y1, rows)
    left, across = _samples(across_crop, x0, x1, cols)
    # Rows first; then columns on the transposed map, so that every step runs along memory and the
    # result lies column-major.
    strips = np.ascontiguousarray(_lerp(logits, above, down).T)
    decided = np.empty((x1 - x0, y1 - y0), np.bool_)
    step = max(1, _DECIDED_AT_ONCE // (y1 - y0))
    for start in range(0, x1 - x0, step):
        part = slice(start, start + step)
        np.greater(_lerp(strips, left[part], across[part]), 0, out=decided[part])
    return BoxMask(x0, y0, decided.T)


def masks_from_logits(logits: NDArray[np.float32], boxes: NDArray[np.float64], expansion: float) -> list[BoxMask]:
    """`mask_from_logits` for (B, h, w) logits and (B, 4) boxes; each mask is independent of the others."""
    return [mask_from_logits(logit, box, expansion) for logit, box in zip(logits, boxes, strict=True)]


def runs_from_logits(
    logits: NDArray[np.float32], boxes: NDArray[np.float64], expansion: float, sizes: Sequence[tuple[int, int]]
) -> tuple[list[bytes], NDArray[np.int64]]:
    """Masks as they are written: `encode` and `area` of `masks_from_logits`.

    Args:
        logits, boxes, expansion: as there.
        sizes: (height, width) of each mask's image.

    Returns:
        B times `counts`, and (B,) areas in pixels.

    Raises:
        ShapeError: a box leaves its image.
    """
    masks = masks_from_logits(logits, boxes, expansion)
    return encode(masks, sizes), np.array([area(mask) for mask in masks], np.int64)


def _grown(low: float, high: float, expansion: float) -> Span:
    """The crop's side over the box's side low..high."""
    side = (high - low) * (1 + expansion)
    return (low + high - side) / 2, side


def _samples(span: Span, start: int, stop: int, length: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Where pixel centres start..stop fall on a map of `length` cells that covers a side of the crop.

    Returns the lower cell and the weight of the next one, clamped at the map's border.
    """
    origin, side = span
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

    Raises:
        ShapeError: a window leaves its image.
    """
    counts: list[bytes] = []
    first, pixels = 0, 0
    for row, mask in enumerate(masks):
        pixels += mask.pixels.size
        if pixels >= _ENCODED_AT_ONCE or row == len(masks) - 1:
            counts += _compress(*_runs(masks[first : row + 1], sizes[first : row + 1]))
            first, pixels = row + 1, 0
    return counts


def _runs(masks: Sequence[BoxMask], sizes: Sequence[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Run lengths of N masks, one after the other, and how many each mask has (N,)."""
    x0, y0, h, w, height, width = np.array(
        [(mask.x0, mask.y0, *mask.pixels.shape, *size) for mask, size in zip(masks, sizes, strict=True)], np.int64
    ).T
    check_windows(np.stack([x0, y0, x0 + w, y0 + h], axis=1), np.stack([height, width], axis=1))
    # All windows in one row of pixels, column after column. A background pixel before the first and after
    # each column: so every run of mask pixels starts and ends, and does so within its own column.
    offset = np.concatenate([[0], np.cumsum(w * (h + 1))])
    row = np.zeros(1 + offset[-1], np.bool_)
    for mask, start, stop in zip(masks, offset[:-1].tolist(), offset[1:].tolist(), strict=True):
        lines, columns = mask.pixels.shape
        row[1 + start : 1 + stop].reshape(columns, lines + 1)[:, :lines] = mask.pixels.T
    changes = np.flatnonzero(row[1:] != row[:-1])
    starts, lengths = changes[::2], changes[1::2] - changes[::2]
    runs_of = np.diff(np.searchsorted(starts, offset))
    owner = np.repeat(np.arange(len(masks)), runs_of)

    # From positions in that row to positions in the mask's image, down its columns.
    column, line = np.divmod(starts - offset[owner], h[owner] + 1)
    starts = (x0[owner] + column) * height[owner] + y0[owner] + line
    ends = starts + lengths
    # Only a window as high as its image lets a run go on at the top of the next column.
    split = (starts[1:] == ends[:-1]) & (owner[1:] == owner[:-1])
    if split.any():
        starts, ends = starts[np.concatenate([[True], ~split])], ends[np.concatenate([~split, [True]])]
        owner = owner[np.concatenate([[True], ~split])]
        runs_of = np.bincount(owner, minlength=len(masks))

    # Background and mask take turns; the last background is left out where it has no pixel.
    last = np.cumsum(runs_of) - 1
    covered = np.where(runs_of > 0, ends[last] if len(ends) else 0, 0)
    rest = height * width - covered
    numbers = 2 * runs_of + (rest > 0)
    first = np.cumsum(numbers) - numbers
    before = np.concatenate([[0], ends[:-1]])
    before[(last - runs_of + 1)[runs_of > 0]] = 0
    at = 2 * np.arange(len(starts)) + (first - 2 * (last - runs_of + 1))[owner]
    runs = np.empty(int(numbers.sum()), np.int64)
    runs[at], runs[at + 1] = starts - before, ends - starts
    runs[(first + numbers - 1)[rest > 0]] = rest[rest > 0]
    return runs, numbers


def check_windows(windows: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """Raise ShapeError unless (N, 4) windows of masks x0, y0, x1, y1 lie in images of (N, 2) height, width."""
    if np.any((windows[:, :2] < 0) | (windows[:, 2:] > sizes[:, ::-1])):
        raise ShapeError("a mask's window leaves its image; clip the box to the image first")


def _compress(runs: NDArray[np.int64], numbers: NDArray[np.int64]) -> list[bytes]:
    """COCO's ASCII form of run lengths: five bits a character, the least first; from the fourth number of a
    mask on, the difference to the number two before.

    Args:
        runs: run lengths of N masks, one after the other.
        numbers: (N,) how many each mask has, at least 1.
    """
    stop = np.cumsum(numbers)
    place = np.arange(len(runs)) - np.repeat(stop - numbers, numbers)
    values = runs.copy()
    values[2:] -= np.where(place[2:] > 2, runs[:-2], 0)
    # A character more for each five bits that the sign and the number need.
    magnitude = values ^ (values >> 63)
    lengths = np.ones(len(values), np.int64)
    limit = 16
    while (longer := magnitude >= limit).any():
        lengths += longer
        limit <<= 5
    end = np.cumsum(lengths)
    chars = np.empty(int(end[-1]), np.uint8)
    for index in range(int(lengths.max())):
        rows = np.flatnonzero(lengths > index) if index else slice(None)
        more = np.where(lengths[rows] > index + 1, 32, 0)
        chars[end[rows] - lengths[rows] + index] = ((values[rows] >> (5 * index)) & 31) + more + 48
    text = chars.tobytes()
    bounds = [0, *end[stop - 1].tolist()]
    return [text[low:high] for low, high in itertools.pairwise(bounds)]


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
        raise InputError("run lengths are empty or end within a number")
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:
        raise InputError("run lengths contain a number of more than 35 bits")
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
