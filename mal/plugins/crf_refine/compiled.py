"""The compiled CPU body, and `mal plugins build`.

host.cpp                      g++    libmal_host-<hash>.so            this machine's CPU (../host_library.py)
cuda.cu                       nvcc   libmal_cuda-<hash>.so            GPUs, in torch (../cuda_library.py)
cuda.cu, tensorrt_plugin.cu   nvcc   libmal_crf_tensorrt-<hash>.so    GPUs, in TensorRT (tensorrt_library.py)
"""

import ctypes
import os
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mal.errors import MissingPackageError, ShapeError
from mal.plugins.crf_refine.contract import check
from mal.plugins.host_library import build_host, load_host

Floats = NDArray[np.float32]


def crf_refine(
    logits: Floats, guide: Floats, inside: Floats, iterations: int, zeta: float, threads: int | None = None
) -> Floats:
    """CRF refinement on the CPU, by the compiled kernel; the GIL is released.

    Args:
        logits, guide, inside, iterations, zeta: as `reference.crf_refine`; any strides, any floating dtype,
            computed in float32.
        threads: at most so many crops at once; None: every processor this process may use.

    Returns:
        (B, 1, h, w) float32.

    Raises:
        ShapeError: shapes that do not belong together, no floating numbers, or an attribute out of range.
        MissingPackageError: the kernel is not built and cannot be built here.
    """
    check(logits.shape, guide.shape, inside.shape, iterations, zeta)
    arrays = [_as_float32(name, array) for name, array in (("logits", logits), ("guide", guide), ("inside", inside))]
    refined = np.empty(logits.shape, np.float32)
    batch, _, height, width = logits.shape
    code = _host().mal_crf_refine_host(
        *(array.ctypes.data for array in (*arrays, refined)),
        batch, len(inside), height, width, iterations, zeta, threads or len(os.sched_getaffinity(0)),
    )  # fmt: skip
    if code == 2:
        raise MemoryError(f"no memory to refine crops of {height} x {width}")
    if code:
        raise ShapeError(f"the kernel refused logits {logits.shape}, inside {inside.shape}")
    return refined


def build_all() -> list[str]:
    """Build what this machine can have; one line for each library."""
    from mal.plugins.crf_refine.tensorrt_library import build_plugin
    from mal.plugins.cuda_library import build_cuda

    lines: list[str] = []
    for name, build in (("cpu", build_host), ("cuda", build_cuda), ("tensorrt", build_plugin)):
        try:
            lines.append(f"{name:8}  {build()}")
        except MissingPackageError as error:
            lines.append(f"{name:8}  not built: {error}")
    return lines


def available() -> bool:
    """Whether the CPU kernel is there: shipped, built before, or built now where there is a compiler."""
    try:
        _host()
    except MissingPackageError:
        return False
    return True


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Say what the kernel's function takes."""
    pointer, integer, wide = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    library.mal_crf_refine_host.argtypes = [
        pointer, pointer, pointer, pointer, wide, wide, integer, integer, integer, ctypes.c_float, integer,
    ]  # fmt: skip
    library.mal_crf_refine_host.restype = ctypes.c_int
    return library


@cache
def _host() -> ctypes.CDLL:
    return declare(load_host())


def _as_float32(name: str, array: NDArray[np.generic]) -> Floats:
    if not np.issubdtype(array.dtype, np.floating):
        raise ShapeError(f"{name} must be floating-point numbers, got {array.dtype}")
    return np.ascontiguousarray(array, np.float32)
