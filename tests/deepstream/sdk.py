"""What the tests of the DeepStream plugin compile with: our minimal headers of its API, or the SDK's own."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mal.errors import MissingPackageError
from mal.plugins.compile import Recipe, find_compiler

HERE = Path(__file__).parent
PLUGIN = HERE.parents[1] / "mal" / "plugins" / "deepstream" / "nvdsinfer_custom_impl_mal"
CORE = [PLUGIN / f"{name}.cpp" for name in ("geometry", "outlines", "probe")]
FAKE = HERE / "fake_deepstream.cpp"
FLAGS = ["-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fPIC"]


def headers() -> Path:
    """DeepStream's headers: those of DEEPSTREAM_ROOT, else ours."""
    root = os.environ.get("DEEPSTREAM_ROOT")
    return Path(root) / "sources" / "includes" if root else HERE / "headers"


def gstreamer(what: str = "--cflags") -> list[str]:
    """Compiler flags for GStreamer and GLib, or a skip with its reason."""
    if not shutil.which("pkg-config"):
        pytest.skip("needs pkg-config: apt install pkg-config libgstreamer1.0-dev")
    done = subprocess.run(["pkg-config", what, "gstreamer-1.0"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("needs GStreamer's headers: apt install libgstreamer1.0-dev")
    return done.stdout.split()


def includes() -> list[str]:
    return [f"-I{PLUGIN}", f"-I{HERE}", "-isystem", str(headers()), *gstreamer()]


def compiler() -> str:
    try:
        return find_compiler()
    except MissingPackageError as error:
        pytest.skip(str(error))


def build_program(target: Path, sources: list[Path], *flags: str) -> Path:
    """Compile and link an executable."""
    command = [compiler(), *FLAGS, *flags, *includes(), *map(str, sources), *gstreamer("--libs"), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def build_library(name: str, sources: list[Path]) -> ctypes.CDLL:
    """Compile a library into the user's cache and load it."""
    reads = [*PLUGIN.glob("*.h"), *HERE.glob("*.h"), *headers().glob("*.h")]
    command = (compiler(), *FLAGS, *includes(), "-Wl,--no-as-needed", *gstreamer("--libs"))
    return ctypes.CDLL(str(Recipe(name, command, tuple(sources), tuple(sorted(reads))).build()))
