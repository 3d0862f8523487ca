"""Build, find or load `libmal_host*.so`: all of ours that is compiled for the CPU. Standard library only.

libmal_host.so         beside this file, in a wheel built where a C++ compiler was; any x86-64-v3 processor
libmal_host-<hash>.so  in the user's cache, for this machine's processor
"""

import ctypes
import platform
from functools import cache
from pathlib import Path

from mal.errors import MissingPackageError
from mal.plugins.compile import Recipe, find_compiler

# No -ffast-math: NaN has a meaning here.
FLAGS = (
    "-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-fPIC", "-pthread",
)  # fmt: skip
SHIPPED = "libmal_host.so"

_FOLDER = Path(__file__).parent
SOURCES = tuple(
    _FOLDER / name for name in ("crf_refine/host.cpp", "pixels/crops.cpp", "pixels/masks.cpp", "texts/join.cpp")
)
# What -march=x86-64-v3 may use, in the words of /proc/cpuinfo (abm has lzcnt).
_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}


def build_host(folder: Path | None = None, flags: tuple[str, ...] = (), sources: tuple[Path, ...] = SOURCES) -> Path:
    """Compile the library for this machine, unless the cache holds it already.

    Args:
        folder: where to keep it; None: the user's cache.
        flags: further compiler flags.
        sources: what to compile; the headers beside them count as read.

    Raises:
        MissingPackageError: no C++ compiler, or it failed.
    """
    return _native(flags, sources).build(folder)


def build_portable(folder: Path) -> Path:
    """Compile the library that a wheel carries. Raises as `build_host`."""
    level = ("-march=x86-64-v3",) if platform.machine() == "x86_64" else ()
    return _recipe(SOURCES, level).build(folder)


def find_host() -> Path | None:
    """The library as it is already there: shipped with the package, or in the cache. Compiles nothing."""
    if shipped := find_shipped():
        return shipped
    try:
        path = _native().path()
    except MissingPackageError:
        return None
    return path if path.is_file() else None


def find_shipped() -> Path | None:
    """The library shipped with the package, if there is one that this processor can run."""
    path = _FOLDER / SHIPPED
    if not path.is_file():
        return None
    if platform.machine() == "x86_64" and not set(_processor().split()) >= _V3:
        return None
    return path


@cache
def load_host() -> ctypes.CDLL:
    """The library, shipped or built; its calls release the GIL.

    Raises:
        MissingPackageError: it is not there and cannot be built.
    """
    if shipped := find_shipped():
        try:
            return ctypes.CDLL(str(shipped))
        except OSError:  # made for a newer C library than this one: build our own
            pass
    path = build_host()
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingPackageError(f"cannot load {path}: {error}; remove it and run `mal plugins build`") from None


def _native(flags: tuple[str, ...] = (), sources: tuple[Path, ...] = SOURCES) -> Recipe:
    # -march=native on a shared home folder must not meet another machine: the processor is in the name.
    return _recipe(sources, ("-march=native", *flags), _processor())


def _recipe(sources: tuple[Path, ...], flags: tuple[str, ...], key: str = "") -> Recipe:
    headers = sorted({header for source in sources for header in source.parent.glob("*.cuh")})
    return Recipe("mal_host", (find_compiler(), *FLAGS, *flags), sources, tuple(headers), key)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
