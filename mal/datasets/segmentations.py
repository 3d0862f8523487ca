"""COCO `segmentation` values of every kind -> one checked kind: compressed RLE, as pycocotools takes it."""

from typing import Any

import numpy as np
from pycocotools import mask as _coco_mask

from mal import masks
from mal.errors import InputError

coco_mask: Any = _coco_mask
"""pycocotools, whose type stubs describe neither what it takes nor what it gives back."""

Rle = dict[str, Any]  # {"size": [height, width], "counts": bytes}

# Beyond this many image sides a polygon's corner is no drawing but damage (and pycocotools would allocate for it).
FAR = 10


def to_rle(segmentation: object, height: int, width: int) -> Rle | None:
    """Check a `segmentation` and bring it into compressed RLE.

    Args:
        segmentation: polygons (lists of x, y), uncompressed RLE (counts: list), compressed RLE (counts: text),
            or nothing (None, an empty list).
        height, width: the image's; an RLE of another size is refused.

    Returns:
        {"size": [height, width], "counts": bytes}; None where there is no mask at all.

    Raises:
        InputError: damaged; the message is the reason alone. pycocotools itself would read beyond its buffers.
    """
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict):
        raise InputError(f"segmentation is neither polygons nor RLE but {type(segmentation).__name__}")
    if segmentation.get("size") != [height, width]:
        raise InputError(f"RLE of size {segmentation.get('size')} on an image of {[height, width]} (height, width)")
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        return _from_runs(counts, height, width)
    if not isinstance(counts, str) or not counts.isascii():
        raise InputError("RLE without counts (text or a list of numbers)")
    rle = {"size": [height, width], "counts": counts.encode()}
    to_mask(rle)
    return rle


def to_mask(rle: Rle) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(H, W) bool of a compressed RLE.

    Raises:
        InputError: the counts are damaged; the message is the reason alone.
    """
    try:
        return masks.decode(rle["counts"], *rle["size"])
    except InputError as error:
        raise InputError(f"broken RLE: {error}") from None


def _from_polygons(polygons: list[Any], height: int, width: int) -> Rle:
    far = FAR * max(height, width)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise InputError("a polygon must be a list x, y, x, y, … of at least three corners")
        if not all(isinstance(value, int | float) and abs(value) <= far for value in polygon):
            raise InputError("a polygon has a corner that is no number, or far outside the image")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _from_runs(runs: list[Any], height: int, width: int) -> Rle:
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise InputError(f"the runs of an uncompressed RLE must be whole numbers that sum to {height * width}")
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
