"""Files that belong together are written together."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mal.errors import OutputError


def write_all(files: Sequence[tuple[Path, bytes]]) -> None:
    """Write files whole: none is touched before all of them have found room on the disk.

    Raises:
        OutputError: one cannot be written. A full disk leaves none of them.
    """
    parts = [(path, path.with_name(path.name + ".part"), content) for path, content in files]
    try:
        for _, part, content in parts:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, part, _ in parts:
            os.replace(part, path)
    except OSError as error:
        # An error while writing names no file.
        raise OutputError(
            f"cannot write {error.filename2 or error.filename or files[-1][0]}: {error.strerror}"
        ) from None
    finally:
        for _, part, _ in parts:
            with suppress(OSError):  # a name that is too long was told above, and cannot be removed either
                part.unlink()
