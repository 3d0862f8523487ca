"""What the tests of the DeepStream plugin compile with: our minimal headers of its API, or the SDK's own."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mal.errors import MissingPackageError
from mal.plugins.compile import cache_folder, find_compiler

HERE = Path(__file__).parent
PLUGIN = HERE.parents[1] / "mal" / "plugins" / "deepstream" / "nvdsinfer_custom_impl_mal"
CORE = [PLUGIN / f"{name}.cpp" for name in ("geometry", "outlines", "probe")]
FAKE = HERE / "fake_deepstream.cpp"
FLAGS = ["-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fPIC"]
SANITIZERS = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


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


def build_program(name: str, sources: list[Path], *flags: str) -> Path:
    """Compile and link, once for the same content and flags: each object and the result stay in the user's cache.

    Args:
        name: of the program or library.
        sources: C++ files.
        flags: further ones, of the compiler and the linker; -shared makes a library.
    """
    compile_flags = [flag for flag in flags if flag != "-shared"]
    objects = [_object(source, compile_flags) for source in sources]
    # --no-as-needed: a library of ours leaves what it needs of GLib to the one who loads it.
    return _make(name, objects, [*flags, "-Wl,--no-as-needed", *map(str, objects), *gstreamer("--libs")])


def build_library(name: str, sources: list[Path]) -> ctypes.CDLL:
    """A library of these sources, loaded."""
    return ctypes.CDLL(str(build_program(f"{name}.so", sources, "-shared")))


def _object(source: Path, flags: list[str]) -> Path:
    reads = [source, *PLUGIN.glob("*.*h"), *HERE.glob("*.h"), *headers().glob("*.h")]
    return _make(f"{source.stem}.o", sorted(reads), [*FLAGS, *flags, *includes(), "-c", str(source)])


def _make(name: str, reads: list[Path], words: list[str]) -> Path:
    """Run the compiler, unless these words have been run on these contents already."""
    key = hashlib.sha256("\0".join([compiler(), *words]).encode())
    for path in reads:
        key.update(path.read_bytes())
    target = cache_folder() / "tests" / f"{key.hexdigest()[:16]}-{name}"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}")
        done = subprocess.run([compiler(), *words, "-o", str(part)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        part.replace(target)
    return target
