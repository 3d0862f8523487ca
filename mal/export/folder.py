"""Targets that are folders: they appear whole or not at all, and nothing that was there is lost."""

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mal.errors import OutputError, UsageError


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """A folder to fill, which becomes `path` when the block ends without an error.

    Raises:
        UsageError: `path` is a file or a folder with something in it.
        OutputError: it cannot be written.
    """
    check_new(path)
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield part
        part.chmod(0o777 & ~_umask())  # mkdtemp's folders are for their owner alone
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_new(path: Path) -> None:
    """Raise UsageError unless `path` is free for a new folder; said before the work begins."""
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"--output {path} is a folder with something in it; name a new one, or empty it first")
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {path} is a file; this target writes a folder")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
