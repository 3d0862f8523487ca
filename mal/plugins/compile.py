"""Compile sources of ours once: the library is kept in the user's cache, named by the hash of all that made it."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mal.errors import MissingPackageError

_CUDA = Path("/usr/local/cuda/bin/nvcc")  # where NVIDIA's installer puts it, often without touching PATH


@dataclass(frozen=True)
class Recipe:
    """All that makes one shared library.

    Attributes:
        name: of the library, without lib and .so.
        command: compiler and flags; neither sources nor output.
        sources: what is compiled.
        reads: further files that decide the content, such as headers.
        key: further text that does, such as the processor's name.
    """

    name: str
    command: tuple[str, ...]
    sources: tuple[Path, ...]
    reads: tuple[Path, ...] = ()
    key: str = ""

    def path(self, folder: Path | None = None) -> Path:
        """Where `build` puts it: FOLDER/lib<name>-<hash>.so; folder None is `cache_folder()`.

        Raises:
            MissingPackageError: the compiler does not run.
        """
        made_by = _hash([*self.sources, *self.reads], *self.command, _version(self.command[0]), self.key)
        return (folder or cache_folder()) / f"lib{self.name}-{made_by}.so"

    def build(self, folder: Path | None = None) -> Path:
        """Compile it, unless it is there already.

        Returns:
            `path(folder)`, complete, also when two processes build it at once.

        Raises:
            MissingPackageError: the compiler failed (its first error is quoted), or the folder cannot be written.
        """
        target = self.path(folder)
        if target.is_file():
            return target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                part = Path(scratch) / target.name
                words = [*self.command, "-shared", *map(str, self.sources), "-o", str(part)]
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise MissingPackageError(
                        f"{self.command[0]} cannot compile {self.name}: {_first_error(done.stdout + done.stderr)}"
                    )
                os.replace(part, target)
        except OSError as error:
            raise MissingPackageError(f"cannot build {self.name} in {target.parent}: {error.strerror}") from None
        return target


def cache_folder() -> Path:
    """Where compiled libraries are kept: `mal` in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mal"


def find_compiler() -> str:
    """The C++ compiler: CXX, g++ or c++.

    Raises:
        MissingPackageError: there is none.
    """
    wanted = os.environ.get("CXX")
    found = shutil.which(wanted) if wanted else shutil.which("g++") or shutil.which("c++")
    if found is None:
        raise MissingPackageError("no C++ compiler: install g++ (Debian: apt install g++) or set CXX")
    return found


def find_nvcc() -> str:
    """The CUDA compiler: NVCC, nvcc, or NVIDIA's own place for it.

    Raises:
        MissingPackageError: there is none.
    """
    wanted = os.environ.get("NVCC")
    found = shutil.which(wanted or "nvcc") or (str(_CUDA) if not wanted and _CUDA.is_file() else None)
    if found is None:
        raise MissingPackageError("no CUDA compiler: install the CUDA toolkit 12.8 or later, or set NVCC to its nvcc")
    return found


def _hash(files: Sequence[Path], *texts: str) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


@cache
def _version(compiler: str) -> str:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise MissingPackageError(f"cannot run {compiler}: {error.strerror}") from None


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "it gave no message")
