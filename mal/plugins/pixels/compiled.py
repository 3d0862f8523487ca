"""The compiled body of `mal.plugins.pixels`: crops.cpp and masks.cpp. The GIL is released."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from mal.boxes import pixel_windows
from mal.config import Fill
from mal.crops import check_crops
from mal.errors import ShapeError
from mal.masks import BoxMask, check_windows
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
    library.mal_encode_masks_host.argtypes = [
        pointer, wide, wide, wide, pointer, pointer, pointer, double, pointer, pointer, pointer, wide
    ]  # fmt: skip
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
    logits, boxes, windows = _masks_in(logits, boxes)
    ends = np.cumsum((windows[:, 2:] - windows[:, :2]).prod(axis=1)).tolist()
    pixels = np.empty(ends[-1] if ends else 0, np.bool_)
    code = host().mal_decide_masks_host(
        logits.ctypes.data, *logits.shape, boxes.ctypes.data, windows.ctypes.data, expansion, pixels.ctypes.data
    )
    _check_code(code, f"{len(pixels)} pixels of masks")
    return [
        BoxMask(x0, y0, pixels[start:end].reshape(x1 - x0, y1 - y0).T)
        for (x0, y0, x1, y1), start, end in zip(windows.tolist(), [0, *ends], ends, strict=False)
    ]


def runs_from_logits(
    logits: NDArray[np.float32], boxes: NDArray[np.float64], expansion: float, sizes: Sequence[tuple[int, int]]
) -> tuple[list[bytes], NDArray[np.int64]]:
    """As `mal.masks.runs_from_logits`, byte for byte."""
    logits, boxes, windows = _masks_in(logits, boxes)
    images = np.array(sizes, np.int64).reshape(-1, 2)
    if len(images) != len(boxes):
        raise ShapeError(f"{len(images)} sizes of images for {len(boxes)} boxes")
    check_windows(windows, images)
    lengths, areas = np.empty((2, len(boxes)), np.int64)
    needed, room = 0, 4096 * len(boxes)
    while True:
        text = np.empty(room, np.uint8)
        needed = host().mal_encode_masks_host(
            logits.ctypes.data, *logits.shape, boxes.ctypes.data, windows.ctypes.data, images.ctypes.data, expansion,
            lengths.ctypes.data, areas.ctypes.data, text.ctypes.data, room,
        )  # fmt: skip
        _check_code(2 if needed < 0 else 0, f"run lengths of {len(boxes)} masks")
        if needed <= room:
            break
        room = needed
    whole, ends = text[:needed].tobytes(), np.cumsum(lengths).tolist()
    return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)], areas


def _masks_in(
    logits: NDArray[np.float32], boxes: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
    """Logits and boxes as the library takes them, and the masks' windows."""
    if len(logits) != len(boxes):
        raise ShapeError(f"{len(logits)} maps of logits for {len(boxes)} boxes")
    boxes = np.ascontiguousarray(boxes, np.float64)
    return np.ascontiguousarray(logits, np.float32), boxes, pixel_windows(boxes)


def _check_code(code: int, what: str) -> None:
    if code == 2:
        raise MemoryError(f"no memory for {what}")
    if code:
        raise ShapeError(f"the compiled body refused {what}")


COMPILED = Pixels("compiled", cut_into, masks_from_logits, runs_from_logits)
