"""A JSON document on disk, read by position: never more of it in memory than was asked for."""

import hashlib
import os
import weakref
from pathlib import Path
from typing import BinaryIO

from mal.datasets.packing import is_packed, unpack
from mal.errors import BoxFileError

_CHUNK = 1 << 20


class Document:
    """Bytes of one JSON document.

    Args:
        file: an open file on disk; the document reads a descriptor of its own and closes it when nobody needs it.
        name: what messages call it.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._stamp = self._state()
        self.size = self._stamp[0]

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, fewer at the document's end."""
        return os.pread(self._descriptor, min(stop, self.size) - start, start) if start < self.size else b""

    def sha256(self) -> str:
        """Hex digest of the whole document."""
        digest = hashlib.sha256()
        for start in range(0, self.size, _CHUNK):
            digest.update(self.read(start, start + _CHUNK))
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raise BoxFileError when somebody wrote into the file since it was opened."""
        if self._state() != self._stamp:
            raise self.changed()

    def changed(self) -> BoxFileError:
        """The error for a document that is no longer what was scanned."""
        return BoxFileError(f"{self.name} was changed while it was being read; run again")

    def _state(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


def open_document(path: Path) -> Document:
    """Open a JSON file; gzip and zstd are unpacked into a temporary file.

    Raises:
        BoxFileError: no such file, no permission, empty, badly packed, or in an encoding other than UTF-8.
        MissingPackageError: zstd, and its package is not installed.
    """
    try:
        with path.open("rb") as file:
            document = Document(file, str(path))
            if is_packed(document.read(0, 4)):
                with unpack(file, str(path)) as unpacked:
                    document = Document(unpacked, str(path))
    except OSError as error:
        raise BoxFileError(f"cannot read boxes {path}: {error.strerror or error}") from None
    head = document.read(0, 4)
    if not head:
        raise BoxFileError(f"{path} is empty; expected boxes, as a COCO JSON object with images and annotations")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
        raise BoxFileError(f"{path} is not UTF-8 (it looks like UTF-16 or UTF-32); JSON files must be UTF-8")
    return document
