"""Targets that are folders: they appear whole or not at all, and nothing that was there is lost."""

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mal.errors import OutputError, UsageError

_FILES = (".onnx", ".plan", ".engine", ".safetensors", ".json")


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """A folder to fill, which becomes `path` when the block ends without an error.

    Raises: as `check_new`.
    """
    check_new(path)
    part = _make_part(path)
    try:
        yield part
        part.chmod(0o777 & ~_umask())  # mkdtemp's folders are for their owner alone
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_new(path: Path) -> None:
    """Refuse what cannot become a new folder; said before the work begins.

    Raises:
        UsageError: no name, a file's name, a file, or a folder with something in it.
        OutputError: it cannot be written.
    """
    if not path.name:
        raise UsageError(f"--output {path}: name a folder that is not there yet; the manifest goes beside it")
    if path.suffix.lower() in _FILES:
        raise UsageError(f"--output {path} is a file's name; this target writes a folder, {path.with_suffix('')} say")
    try:
        full = path.is_dir() and any(path.iterdir())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    if full:
        raise UsageError(f"--output {path} is a folder with something in it; name a new one, or empty it first")
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {path} is a file; this target writes a folder")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    _make_part(path).rmdir()


def _make_part(path: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
