"""Build, find or load `libmal_cuda-<hash>.so`: all of ours that GPUs run. TensorRT's plugin has the same lines in it.

It needs nvcc to build, and a driver to run.
"""

import ctypes
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mal.errors import MissingPackageError, UsageError
from mal.plugins.compile import Recipe, find_nvcc

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120)
"""Compute capabilities x 10 that get machine code: T4, A100, RTX 30, Orin, RTX 40, H100, B200, RTX 50.
Newer chips compile the PTX of the last two when they load the library (the H100's and the B200's code is of no use to
an RTX 50, nor the reverse)."""

_FOLDER = Path(__file__).parent
SOURCES = (_FOLDER / "crf_refine" / "cuda.cu", _FOLDER / "pixels" / "crops.cu")
CROP_HEADER = _FOLDER / "deepstream" / "nvdsinfer_custom_impl_mal" / "crop.cuh"
READS = (_FOLDER / "crf_refine" / "crf_refine.cuh", CROP_HEADER)


def build_cuda(cuda_architectures: Sequence[int] | None = None, folder: Path | None = None) -> Path:
    """Compile the library, unless the cache holds it already.

    Args:
        cuda_architectures: compute capabilities x 10; None: those of `ARCHITECTURES` that this nvcc knows.
        folder: where to keep it; None: the user's cache.

    Raises:
        MissingPackageError: no nvcc, or it failed.
        UsageError: an architecture that this nvcc cannot compile for, or none.
    """
    return _recipe(cuda_architectures).build(folder)


def find_cuda() -> Path | None:
    """The library for all chips, if the cache holds it. Compiles nothing."""
    try:
        path = _recipe(None).path()
    except MissingPackageError:  # no nvcc here; a library that was built elsewhere is not looked for
        return None
    return path if path.is_file() else None


def available() -> bool:
    """Whether the library has been built and loads."""
    try:
        load()
    except MissingPackageError:
        return False
    return True


def load_cuda(path: Path) -> ctypes.CDLL:
    """Load a built library and say what its functions take."""
    library = ctypes.CDLL(str(path))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.mal_crf_refine_cuda.argtypes = [
        pointer, pointer, integer, pointer, integer, pointer, integer, integer, integer, integer, ctypes.c_float,
        pointer,
    ]  # fmt: skip
    library.mal_crf_refine_cuda.restype = ctypes.c_int
    return declare_crops(library)


def declare_crops(library: ctypes.CDLL) -> ctypes.CDLL:
    """Say what the function of crops.cu takes."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.mal_cut_crops_cuda.argtypes = [
        pointer, integer, integer, pointer, integer, integer, integer, pointer, pointer,
    ]  # fmt: skip
    library.mal_cut_crops_cuda.restype = ctypes.c_int
    return library


@cache
def load() -> ctypes.CDLL:
    """The library for all chips, as it was built before.

    Raises:
        MissingPackageError: it is not built, or does not load.
    """
    path = find_cuda()
    if path is None:
        raise MissingPackageError("the CUDA kernels are not built: run `mal plugins build`")
    try:
        return load_cuda(path)
    except OSError as error:
        raise MissingPackageError(f"cannot load {path}: {error}; remove it and run `mal plugins build`") from None


def _recipe(cuda_architectures: Sequence[int] | None) -> Recipe:
    nvcc = find_nvcc()
    command = (
        nvcc, "-O3", "-std=c++17", "-cudart", "static", "--threads", "0", *machine_code(nvcc, cuda_architectures),
        "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xlinker", "--strip-all",
    )  # fmt: skip
    if host := os.environ.get("CXX"):
        command += ("-ccbin", host)
    return Recipe("mal_cuda", command, SOURCES, READS)


def machine_code(nvcc: str, wanted: Sequence[int] | None) -> list[str]:
    """Flags of nvcc for compute capabilities x 10; None: those of `ARCHITECTURES` that it knows.

    Raises:
        UsageError: one that this nvcc cannot compile for, or none.
    """
    known = _known(nvcc)
    if wanted is None:
        chosen = [number for number in ARCHITECTURES if number in known]
    else:
        chosen = sorted(set(wanted))
        if unknown := [number for number in chosen if number not in known]:
            raise UsageError(f"{nvcc} compiles for {', '.join(map(str, known))}, not for {unknown[0]}")
    if not chosen:
        raise UsageError(f"no architecture to compile for; expected some of {', '.join(map(str, known))}")
    words: list[str] = []
    for number in chosen:
        code = f"[sm_{number},compute_{number}]" if number in chosen[-2:] else f"sm_{number}"
        words += ["-gencode", f"arch=compute_{number},code={code}"]
    return words


@cache
def _known(nvcc: str) -> tuple[int, ...]:
    done = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False)
    names = [line.strip().removeprefix("compute_") for line in done.stdout.splitlines()]
    return tuple(sorted(int(name) for name in names if name.isdigit()))
