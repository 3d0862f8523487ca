"""Files that belong together are written together."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mal.errors import OutputError


def write_all(files: Sequence[tuple[Path, bytes]]) -> None:
    """Write files whole, all of them or none: what was there before comes back where one cannot be written.

    Raises:
        OutputError: one cannot be written.
    """
    parts = {path: path.with_name(path.name + ".part") for path, _ in files}
    replaced: dict[Path, Path | None] = {}  # written -> what was there before
    path = files[0][0]
    try:
        for path, content in files:  # none is touched before all of them have found room on the disk
            with parts[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            before = path.with_name(path.name + ".before") if path.exists() else None
            if before:
                os.replace(path, before)
            replaced[path] = before
            os.replace(part, path)
    except OSError as error:
        for done, before in reversed(replaced.items()):
            with suppress(OSError):
                if before:
                    os.replace(before, done)
                else:
                    done.unlink()
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        for left in (*parts.values(), *filter(None, replaced.values())):
            with suppress(OSError):  # gone, or a name that is too long, which was told above
                left.unlink()
