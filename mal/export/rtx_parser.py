"""Keep TensorRT-RTX's ONNX parser from killing the process.

When a node resolves to a plugin, libtensorrt_onnxparser_rtx.so opens "libtensorrt_rtx.so" by that very name. The wheel
holds libtensorrt_rtx.so.1 alone; the parser then throws where nothing catches, and the process aborts. So before a
parse, that name must lead to the library that is loaded: an empty library of that name which needs the real one does it,
without writing into anybody's package folder.

Source: reference notes on TensorRT, 1.0 (found with a debugger; TensorRT-RTX 1.7).
"""

import ctypes
import re
from pathlib import Path

from mal.errors import MissingPackageError
from mal.plugins.compile import compile_library, find_compiler

_NAME = "libtensorrt_rtx.so"
_kept: list[ctypes.CDLL] = []  # an alias must stay loaded as long as anybody may parse


def make_parser_safe(folder: Path | None = None) -> None:
    """Make the name that the parser opens resolve. Nothing happens where TensorRT-RTX is not loaded, or where it does.

    Args:
        folder: where to keep the alias; None: the user's cache.

    Raises:
        MissingPackageError: it cannot be made here; the message says what to do by hand.
    """
    library = _loaded_library()
    if library is None or _kept or library.with_name(_NAME).exists():
        return
    by_hand = f"or run: ln -s {library.name} {library.with_name(_NAME)}"
    try:
        command = [
            find_compiler(), str(library), "-Wl,--no-as-needed", f"-Wl,-soname,{_NAME}", "-x", "c++",
        ]  # fmt: skip
        alias = compile_library("mal_tensorrt_rtx_alias", command, [Path("/dev/null")], folder=folder)
    except MissingPackageError as error:
        raise MissingPackageError(f"TensorRT-RTX's parser needs an alias of its library: {error}; {by_hand}") from None
    _kept.append(ctypes.CDLL(str(alias)))
    try:
        ctypes.CDLL(_NAME)  # what the parser will do
    except OSError as error:
        raise MissingPackageError(f"TensorRT-RTX's parser would not find its library: {error}; {by_hand}") from None


def _loaded_library() -> Path | None:
    """File of TensorRT-RTX in this process."""
    pattern = re.compile(re.escape(_NAME) + r"(\.\d+)+$")
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and pattern.search(words[5]):
            return Path(words[5])
    return None
