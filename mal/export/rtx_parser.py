"""Keep TensorRT-RTX's ONNX parser from killing the process.

When a node resolves to a plugin, libtensorrt_onnxparser_rtx.so opens "libtensorrt_rtx.so" by that very name. The wheel
holds libtensorrt_rtx.so.1 alone; the parser then throws where nothing catches, and the process aborts. So before a
parse, that name must lead to the library that is loaded: an empty library of that name which needs the real one does
it, without writing into anybody's package folder.

Source: reference notes on TensorRT, 1.0 (found with a debugger; TensorRT-RTX 1.7).
"""

import ctypes
import re
from pathlib import Path

from mal.errors import MissingPackageError
from mal.plugins.compile import Recipe, find_compiler

_NAME = "libtensorrt_rtx.so"


def make_parser_safe(folder: Path | None = None) -> None:
    """Make the name that the parser opens lead to TensorRT-RTX; does nothing where that is not loaded.

    Args:
        folder: where to keep the alias; None: the user's cache.

    Raises:
        MissingPackageError: it cannot be made here; the message says what to do by hand.
    """
    library = _loaded_library()
    # A file of that name beside the library is found by the parser (its search path is its own folder), not by us.
    if library is None or _leads_to(library) or library.with_name(_NAME).exists():
        return
    flags = ["-nostdlib", "-Wl,--no-as-needed", f"-Wl,-soname,{_NAME}", str(library), "-x", "c++"]
    try:
        command = (find_compiler(), *flags)
        alias = Recipe("mal_tensorrt_rtx_alias", command, (Path("/dev/null"),)).build(folder)
        ctypes.CDLL(str(alias))  # never closed, so the name stays known
        problem = "" if _leads_to(library) else f"{_NAME} leads to another library than {library}"
    except (MissingPackageError, OSError) as error:
        problem = str(error)
    if problem:
        raise MissingPackageError(
            f"TensorRT-RTX's parser needs its library by the name {_NAME}, and has no alias of it: {problem}; run: "
            f"ln -s {library.name} {library.with_name(_NAME)}"
        )


def _leads_to(library: Path) -> bool:
    """Whether opening the name, as the parser does, gives this library."""
    try:
        named = ctypes.CDLL(_NAME)
        return _address(named) == _address(ctypes.CDLL(str(library)))
    except (OSError, AttributeError):  # nothing of that name, or something else
        return False


def _address(library: ctypes.CDLL) -> int | None:
    return ctypes.cast(library.getPluginRegistry, ctypes.c_void_p).value


def _loaded_library() -> Path | None:
    """File of TensorRT-RTX in this process."""
    pattern = re.compile(re.escape(_NAME) + r"(\.\d+)+$")
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and pattern.search(words[5]):
            return Path(words[5])
    return None
