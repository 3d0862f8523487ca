"""Build the TensorRT plugin `libmal_crf_tensorrt-<hash>.so` from tensorrt_plugin.cu and all that GPUs run of ours.

It needs nvcc and TensorRT's headers, no TensorRT library and no GPU. One file serves TensorRT 10.9 to 11 and RTX.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from mal.errors import MissingPackageError
from mal.plugins.compile import Recipe, find_nvcc
from mal.plugins.crf_refine.names import DOMAIN, ITERATIONS, NAME, VERSION, ZETA
from mal.plugins.cuda_library import READS, SOURCES, machine_code

_FOLDER = Path(__file__).parent
_SOURCES = (_FOLDER / "tensorrt_plugin.cu", *SOURCES)
_EXPORTS = _FOLDER / "tensorrt_plugin.map"
_READS = (*READS, _EXPORTS)
# The header that came last among those we include (TensorRT 10.9).
_HEADER = "NvInferPluginBase.h"


def build_plugin(cuda_architectures: Sequence[int] | None = None, folder: Path | None = None) -> Path:
    """Compile the plugin, unless the cache holds it already. About a minute for all chips.

    Args:
        cuda_architectures: compute capabilities x 10, such as (86, 90); None: those of `ARCHITECTURES` that this
            nvcc knows. For building engines any one will do: no kernel runs then.
        folder: where to keep it; None: the user's cache.

    Raises:
        MissingPackageError: no nvcc, no TensorRT headers, or they do not work; the message says how to get them.
        UsageError: an architecture that this nvcc cannot compile for, or none.
    """
    return _recipe(cuda_architectures).build(folder)


def find_plugin() -> Path | None:
    """The plugin for all chips, if the cache holds it. Compiles nothing.

    Raises:
        MissingPackageError: it could not be built here either; the message says what is missing.
    """
    path = _recipe(None).path()
    return path if path.is_file() else None


def _recipe(cuda_architectures: Sequence[int] | None) -> Recipe:
    nvcc = find_nvcc()
    headers = find_headers()
    names = {"DOMAIN": DOMAIN, "NAME": NAME, "VERSION": VERSION, "ITERATIONS": ITERATIONS, "ZETA": ZETA}
    command = (
        nvcc, "-O3", "-std=c++17", "-cudart", "static", "--threads", "0",
        *machine_code(nvcc, cuda_architectures),
        "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-deprecated-declarations",
        # Stripped: nvcc's symbols carry the names of its scratch files, and a manifest names the library by its hash.
        "-Xlinker", f"--version-script={_EXPORTS},--no-undefined,--strip-all",
        *(f'-DMAL_{key}="{text}"' for key, text in names.items()),
        "-isystem", str(headers),
    )  # fmt: skip
    if host := os.environ.get("CXX"):
        command += ("-ccbin", host)
    return Recipe("mal_crf_tensorrt", command, _SOURCES, (*_READS, headers / "NvInferVersion.h"))


def find_headers() -> Path:
    """Folder of TensorRT's headers: TENSORRT_ROOT (alone, if it is set), the system's, or kernel-lens's.

    Raises:
        MissingPackageError: there are none, or only such of TensorRT before 10.9.
    """
    root = os.environ.get("TENSORRT_ROOT")
    places = [Path(root) / "include"] if root else [Path("/usr/include") / _triplet(), Path("/usr/include")]
    if not root and (bundled := importlib.util.find_spec("kernel_lens")) and bundled.submodule_search_locations:
        places.append(Path(bundled.submodule_search_locations[0]) / "include" / "tensorrt")
    for place in places:
        if (place / _HEADER).is_file():
            return place
    listed = ", ".join(map(str, places))
    raise MissingPackageError(
        f"no headers of TensorRT 10.9 or later in {listed}: set TENSORRT_ROOT to an unpacked TensorRT, "
        'or pip install "mask-auto-labeler[tensorrt-rtx]"'
    )


def header_version(headers: Path) -> str:
    """Version of TensorRT that headers belong to, such as 10.14.1."""
    found: dict[str, str] = {}
    for line in (headers / "NvInferVersion.h").read_text().splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == "#define":
            found[words[1]] = words[2]
    # Two macros deep in some releases: NV_TENSORRT_MAJOR is TRT_MAJOR_ENTERPRISE is 10.
    parts = [found.get(f"NV_TENSORRT_{part}", "?") for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(found.get(part, part) for part in parts)


def _triplet() -> str:
    return f"{os.uname().machine}-linux-gnu"
