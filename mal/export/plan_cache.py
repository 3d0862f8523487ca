"""Engines that were built before, and what TensorRT has timed, in the user's cache folder.

plans/<key>.plan             the newest few; the key is the hash of all that decides an engine
timing-<TensorRT>-<chip>     TensorRT's own measurements of kernels: a second build on a chip is many times faster
A cache that cannot be read or written costs time and nothing else.
"""

import hashlib
import os
import re
import tempfile
from pathlib import Path

import mal
from mal.export.engine_options import EngineOptions
from mal.plugins.compile import cache_folder
from mal.runtime.machine import Gpu

KEPT = 8  # plans; a ViT-B's has 180 MB


def key(
    onnx: bytes,
    package: str,
    version: str,
    gpu: Gpu | None,
    chips: tuple[int, ...],
    options: EngineOptions,
    plugin: Path | None,
) -> str:
    """Name of an engine: two that differ in anything differ in it. The precision is in the ONNX file."""
    digest = hashlib.sha256(hashlib.sha256(onnx).digest())
    library = hashlib.sha256(plugin.read_bytes()).hexdigest() if plugin else None
    digest.update(repr((mal.__version__, package, version, gpu and gpu.name, chips, options, library)).encode())
    return digest.hexdigest()[:32]


def find(name: str) -> bytes | None:
    """An engine that was kept."""
    return read(_folder() / f"{name}.plan") or None


def keep(name: str, plan: bytes) -> None:
    """Keep an engine, and forget the oldest ones."""
    write(_folder() / f"{name}.plan", plan)
    plans = sorted(_folder().glob("*.plan"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in plans[KEPT:]:
        path.unlink(missing_ok=True)


def timing_file(package: str, version: str, gpu: Gpu) -> Path:
    """Where the timings of a TensorRT on a chip are kept."""
    chip = re.sub(r"\W+", "-", gpu.name)
    return cache_folder() / f"timing-{package}-{version}-{chip}"


def read(path: Path) -> bytes:
    """A file's content; nothing where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def write(path: Path, content: bytes) -> None:
    """Write a file whole, if it can be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            part = Path(file.name)
        try:
            part.write_bytes(content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError:
        return


def _folder() -> Path:
    return cache_folder() / "plans"
