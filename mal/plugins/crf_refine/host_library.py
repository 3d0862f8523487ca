"""Build or find the compiled CPU body `libmal_crf_host*.so` from host.cpp. Standard library only.

libmal_crf_host.so         beside this file, in a wheel built where a C++ compiler was; any x86-64-v3 processor
libmal_crf_host-<hash>.so  in the user's cache, for this machine's processor
"""

import platform
from pathlib import Path

from mal.errors import MissingPackageError
from mal.plugins.compile import Recipe, find_compiler

# No -ffast-math: NaN has a meaning here.
FLAGS = (
    "-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-fPIC", "-pthread",
)  # fmt: skip
SHIPPED = "libmal_crf_host.so"

_FOLDER = Path(__file__).parent
# What -march=x86-64-v3 may use, in the words of /proc/cpuinfo (abm has lzcnt).
_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}


def build_host(folder: Path | None = None, flags: tuple[str, ...] = (), source: Path | None = None) -> Path:
    """Compile the CPU kernel for this machine, unless the cache holds it already.

    Args:
        folder: where to keep it; None: the user's cache.
        flags: further compiler flags.
        source: folder with other sources; None: this package's.

    Raises:
        MissingPackageError: no C++ compiler, or it failed.
    """
    # -march=native on a shared home folder must not meet another machine: the processor is in the name.
    return _recipe(source or _FOLDER, ("-march=native", *flags), _processor()).build(folder)


def build_portable(folder: Path) -> Path:
    """Compile the CPU kernel that a wheel carries. Raises as `build_host`."""
    level = ("-march=x86-64-v3",) if platform.machine() == "x86_64" else ()
    return _recipe(_FOLDER, level).build(folder)


def find_host() -> Path | None:
    """The kernel as it is already there: shipped with the package, or in the cache. Compiles nothing."""
    if shipped := find_shipped():
        return shipped
    try:
        path = _recipe(_FOLDER, ("-march=native",), _processor()).path()
    except MissingPackageError:
        return None
    return path if path.is_file() else None


def find_shipped() -> Path | None:
    """The kernel shipped with the package, if there is one that this processor can run."""
    path = _FOLDER / SHIPPED
    if not path.is_file():
        return None
    if platform.machine() == "x86_64" and not set(_processor().split()) >= _V3:
        return None
    return path


def _recipe(source: Path, flags: tuple[str, ...], key: str = "") -> Recipe:
    command = (find_compiler(), *FLAGS, *flags)
    return Recipe("mal_crf_host", command, (source / "host.cpp",), (source / "crf_refine.cuh",), key)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
