"""The compiled body of `mal.plugins.pixels`: crops.cpp and masks.cpp. The GIL is released."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from mal.boxes import pixel_window
from mal.config import Fill
from mal.crops import check_crops
from mal.errors import ShapeError
from mal.masks import BoxMask
from mal.plugins.host_library import load_host
from mal.plugins.pixels import Pixels

FILLS: tuple[Fill, ...] = ("reflect", "edge", "wrap")  # their numbers in crops.cpp and crop.cuh
assert set(FILLS) == set(get_args(Fill))


@cache
def host() -> ctypes.CDLL:
    """The library, its functions declared. Raises as `load_host`."""
    library = load_host()
    pointer, integer, wide, double = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_double
    library.mal_cut_crops_host.argtypes = [pointer, wide, wide, wide, pointer, wide, integer, integer, pointer]
    library.mal_cut_crops_host.restype = ctypes.c_int
    library.mal_decide_masks_host.argtypes = [pointer, wide, wide, wide, pointer, pointer, double, pointer]
    library.mal_decide_masks_host.restype = ctypes.c_int
    library.mal_encode_masks_host.argtypes = [pointer, wide, pointer, pointer, pointer, wide]
    library.mal_encode_masks_host.restype = wide
    return library


def cut_into(image: NDArray[np.uint8], rects: NDArray[np.float64], fill: Fill, out: NDArray[np.float32]) -> None:
    """As `mal.crops.cut_into`, within one grey level."""
    size = out.shape[-1]
    if out.shape != (len(rects), 3, size, size) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ShapeError(f"{len(rects)} crops need ({len(rects)}, 3, S, S) float32, got {out.shape} {out.dtype}")
    check_crops(image, rects, size)
    if image.strides[1:] != (3, 1) or image.strides[0] < 3 * image.shape[1]:
        image = np.ascontiguousarray(image)
    rects = np.ascontiguousarray(rects, np.float64)
    code = host().mal_cut_crops_host(
        image.ctypes.data, *image.shape[:2], image.strides[0], rects.ctypes.data, len(rects), size,
        FILLS.index(fill), out.ctypes.data,
    )  # fmt: skip
    _check_code(code, f"{len(rects)} crops of {size} x {size}")


def masks_from_logits(logits: NDArray[np.float32], boxes: NDArray[np.float64], expansion: float) -> list[BoxMask]:
    """As `mal.masks.masks_from_logits`, bit for bit."""
    if len(logits) != len(boxes):
        raise ShapeError(f"{len(logits)} maps of logits for {len(boxes)} boxes")
    logits, boxes = np.ascontiguousarray(logits, np.float32), np.ascontiguousarray(boxes, np.float64)
    windows = np.array([pixel_window(box) for box in boxes], np.int64).reshape(-1, 4)
    sides = windows[:, 2:] - windows[:, :2]
    ends = np.cumsum(sides.prod(axis=1)).tolist()
    pixels = np.empty(ends[-1] if ends else 0, np.bool_)
    code = host().mal_decide_masks_host(
        logits.ctypes.data, *logits.shape, boxes.ctypes.data, windows.ctypes.data, expansion, pixels.ctypes.data
    )
    _check_code(code, f"{len(pixels)} pixels of masks")
    return [
        BoxMask(x0, y0, pixels[start:end].reshape(x1 - x0, y1 - y0).T)
        for (x0, y0, x1, y1), start, end in zip(windows.tolist(), [0, *ends], ends, strict=False)
    ]


def encode(masks: Sequence[BoxMask], sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """As `mal.masks.encode`, byte for byte."""
    windows = np.array(
        [
            (mask.x0, mask.y0, *mask.pixels.shape[::-1], width, height)
            for mask, (height, width) in zip(masks, sizes, strict=True)
        ],
        np.int64,
    ).reshape(-1, 6)
    x0, y0, w, h, width, height = windows.T
    if np.any((x0 < 0) | (y0 < 0) | (x0 + w > width) | (y0 + h > height)):
        raise ShapeError("a mask's window leaves its image; clip the box to the image first")
    columns = [np.ascontiguousarray(mask.pixels.T, np.bool_) for mask in masks]  # alive until the call is over
    pointers = np.array([column.ctypes.data for column in columns], np.uintp)
    lengths = np.empty(len(masks), np.int64)
    room = 4096 * len(masks)
    while True:
        text = np.empty(room, np.uint8)
        needed = host().mal_encode_masks_host(
            pointers.ctypes.data, len(masks), windows.ctypes.data, lengths.ctypes.data, text.ctypes.data, room
        )
        if needed <= room:
            break
        room = needed
    whole, ends = text[:needed].tobytes(), np.cumsum(lengths).tolist()
    return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _check_code(code: int, what: str) -> None:
    if code == 2:
        raise MemoryError(f"no memory for {what}")
    if code:
        raise ShapeError(f"the compiled body refused {what}")


COMPILED = Pixels("compiled", cut_into, masks_from_logits, encode)
