"""TensorRT as a Python package: import one of the three, keep what it says, lend it our plugin.

tensorrt 10.9 and later, 11.x ──┐
                                ├─► one code; what a TensorRT can do is asked with hasattr, its version never is
tensorrt_rtx 1.x ───────────────┘
"""

import ctypes
import importlib
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from mal.errors import EngineError, MissingPackageError, UsageError
from mal.plugins.crf_refine.names import DOMAIN, NAME, VERSION

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
"""Import name of each TensorRT, and the extra of this package that brings it."""

# What TensorRT adds to every error on a machine without a GPU, and the parser's frame around a node.
_NOISE = ("catchCudaError", "--- Begin node", "--- End node", "While parsing node")
_KEPT = 200  # messages


def load_tensorrt(package: str) -> ModuleType:
    """Import a TensorRT.

    Raises:
        MissingPackageError: it is not installed, or a library of it is missing.
        UsageError: it is none.
    """
    if package not in EXTRAS:
        raise UsageError(f"unknown TensorRT {package!r}; expected {' or '.join(EXTRAS)}")
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:  # OSError: installed, and a library of it is missing
        raise MissingPackageError(
            f'cannot load {package} ({first_line(error)}): pip install "mask-auto-labeler[{EXTRAS[package]}]"'
        ) from None


@cache
def logger_of(trt: Any) -> Any:
    """One logger for each TensorRT, never freed: TensorRT keeps a pointer to the first it was given.

    `errors` are the messages that count, the last 200; `quote()` puts those that say something in a line.
    """

    class Log(trt.ILogger):
        """Keeps errors, to quote them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
                del self.errors[:-_KEPT]

        def quote(self) -> str:
            lines = [first_line(text) for text in self.errors if not any(word in text for word in _NOISE)]
            return "; ".join(dict.fromkeys(lines[:3])) or "it gave no reason"

    return Log()


# Registered plugins: package -> handle, and how many builds and sessions use it.
_lent: dict[str, tuple[Any, int]] = {}


@contextmanager
def plugin_registered(trt: Any, library: Path | None) -> Generator[None]:
    """Have our plugin in TensorRT's registry for a while; None: make sure that nobody else's is there.

    Raises:
        EngineError: a plugin of our name that we have not put there, or TensorRT refuses the library.
        MissingPackageError: the library does not load.
    """
    package = str(trt.__name__)
    registry = trt.get_plugin_registry()
    handle, users = _lent.get(package, (None, 0))
    if not users and _has_ours(registry):
        raise EngineError(f"another library in this process has registered {DOMAIN}::{NAME}; use a fresh process")
    if library is None:
        yield
        return
    if not users:
        _pin(library)
        handle = registry.load_library(str(library))
        if handle is None:
            raise EngineError(f"{package} cannot load the plugin {library}: {logger_of(trt).quote()}")
    _lent[package] = (handle, users + 1)
    try:
        yield
    finally:
        handle, users = _lent[package]
        _lent[package] = (handle, users - 1)
        if users == 1:
            registry.deregister_library(handle)


def _has_ours(registry: Any) -> bool:
    names = {(made.name, made.plugin_version, made.plugin_namespace) for made in registry.all_creators}
    return (NAME, VERSION, DOMAIN) in names


@cache
def _pin(library: Path) -> ctypes.CDLL:
    """Keep the library's code in memory: TensorRT closes it while an object of it may still wait for its end."""
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise MissingPackageError(f"cannot load the plugin {library}: {error}; run `mal plugins build`") from None


def first_line(text: object) -> str:
    """What an error or a message says first."""
    return (str(text).strip().splitlines() or [""])[0]
