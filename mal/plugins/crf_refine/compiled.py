"""The compiled bodies: built for this machine, kept in the user's cache by the hash of their sources.

host.cpp  g++    libmal_crf_host-<hash>.so    CPU
cuda.cu   nvcc   libmal_crf_cuda-<hash>.so    GPUs
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mal.errors import MissingPackageError, ShapeError
from mal.plugins.crf_refine.contract import check

_FOLDER = Path(__file__).parent
_HOST_SOURCES = ("host.cpp", "crf_refine.cuh")
# No -ffast-math: NaN has a meaning here.
HOST_FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-pthread",
)  # fmt: skip

Floats = NDArray[np.float32]


class Built(NamedTuple):
    """What became of one body."""

    name: str
    path: Path | None
    problem: str  # empty when built


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


def build_host(folder: Path | None = None, flags: tuple[str, ...] = (), source: Path | None = None) -> Path:
    """Compile the CPU kernel, unless the cache holds it already.

    Args:
        folder: where to keep it; None: `cache_folder()`.
        flags: further compiler flags.
        source: folder with other sources; None: this package's.

    Raises:
        MissingPackageError: no C++ compiler, or it failed.
    """
    source = source or _FOLDER
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        raise MissingPackageError(
            "the CRF kernel needs a C++ compiler: install g++ (Debian: apt install g++) or set CXX"
        )
    words = [*HOST_FLAGS, *flags]
    # The processor is part of the key: -march=native on a shared home folder must not meet another machine.
    key = _hash([*(source / name for name in _HOST_SOURCES)], " ".join([compiler, *words]), _processor())
    target = (folder or cache_folder()) / f"libmal_crf_host-{key}.so"
    if not target.is_file():
        _compile([compiler, *words, "-shared", "-fPIC", str(source / "host.cpp")], target)
    return target


def build_all() -> list[str]:
    """Build what this machine can have; one line for each body."""
    lines: list[str] = []
    try:
        lines.append(f"cpu   {build_host()}")
    except MissingPackageError as error:
        lines.append(f"cpu   not built: {error}")
    return lines


def available() -> bool:
    """Whether the CPU kernel is there; builds it the first time, where there is a compiler."""
    try:
        _host()
    except MissingPackageError:
        return False
    return True


def cache_folder() -> Path:
    """Where compiled bodies are kept: `mal` in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mal"


def load_host(path: Path) -> ctypes.CDLL:
    """Load a built CPU kernel and say what its function takes."""
    library = ctypes.CDLL(str(path))  # a CDLL call releases the GIL
    pointer, integer, wide = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    library.mal_crf_refine_host.argtypes = [
        pointer, pointer, pointer, pointer, wide, wide, integer, integer, integer, ctypes.c_float, integer,
    ]  # fmt: skip
    library.mal_crf_refine_host.restype = ctypes.c_int
    return library


@cache
def _host() -> ctypes.CDLL:
    path = build_host()
    try:
        return load_host(path)
    except OSError as error:
        raise MissingPackageError(f"cannot load {path}: {error}; remove it and run `mal plugins build`") from None


def _as_float32(name: str, array: NDArray[np.generic]) -> Floats:
    if not np.issubdtype(array.dtype, np.floating):
        raise ShapeError(f"{name} must be floating-point numbers, got {array.dtype}")
    return np.ascontiguousarray(array, np.float32)


def _compile(command: list[str], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            part = Path(folder) / target.name
            done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True, check=False)
            if done.returncode:
                problem = (done.stderr.strip().splitlines() or ["no message"])[0]
                raise MissingPackageError(f"{command[0]} cannot compile the CRF kernel: {problem}")
            os.replace(part, target)  # whole or not at all, also when two processes build at once
    except OSError as error:
        raise MissingPackageError(f"cannot build the CRF kernel in {target.parent}: {error.strerror}") from None


def _hash(files: list[Path], *texts: str) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
