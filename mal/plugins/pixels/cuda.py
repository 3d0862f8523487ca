"""Crops on GPU memory, by the kernel of crops.cu."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from mal.config import Fill
from mal.errors import MalError
from mal.plugins.pixels.compiled import FILLS


def cut_crops_on_gpu(
    library: ctypes.CDLL, image: int, size_of_image: tuple[int, int], rects: NDArray[np.float64], size: int, fill: Fill,
    crops: int, stream: int,
) -> None:  # fmt: skip
    """Enqueue `mal.crops.cut_crops` on the current device, for the network's input.

    Args:
        library: with the kernel, declared: `mal.plugins.cuda_library`.
        image: address of contiguous (h, w, 3) uint8 RGB on the device.
        size_of_image: h, w.
        rects: (n, 4) float64 x0, y0, x1, y1 in pixels of the image, checked by `mal.crops.check_crops`.
        size: S, side of the crops.
        fill: what is read outside the image.
        crops: address of room for (n, 3, S, S) float32 on the device; whole numbers 0..255 come there, within one
            grey level of those of the host.
        stream: address of the CUDA stream.

    Raises:
        MalError: CUDA refused the launch.
    """
    rects = np.ascontiguousarray(rects, np.float64)
    code = library.mal_cut_crops_cuda(
        image, *size_of_image, rects.ctypes.data, len(rects), size, FILLS.index(fill), crops, stream
    )
    if code:
        raise MalError(f"the CUDA kernel of crops failed on {len(rects)} crops of {size} x {size}: cudaError {code}")
