"""A JSON document on disk, read by position: never more of it in memory than was asked for."""

import gzip
import hashlib
import os
import shutil
import tempfile
import weakref
import zlib
from pathlib import Path
from typing import BinaryIO

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
    """Open a JSON file; gzip is unpacked into a temporary file.

    Raises:
        BoxFileError: no such file, no permission, empty, or in an encoding other than UTF-8.
    """
    try:
        with path.open("rb") as file:
            document = Document(file, str(path))
            if document.read(0, 2) == b"\x1f\x8b":
                document = _unpack(file, document.name)
    except OSError as error:
        raise BoxFileError(f"cannot read boxes {path}: {error.strerror or error}") from None
    head = document.read(0, 4)
    if not head:
        raise BoxFileError(f"{path} is empty; expected a COCO JSON object with images and annotations")
    if head == b"\x28\xb5\x2f\xfd":
        raise BoxFileError(f"{path} is compressed with zstd; unpack it first: zstd -d {path.name}")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
        raise BoxFileError(f"{path} is not UTF-8 (it looks like UTF-16 or UTF-32); JSON files must be UTF-8")
    return document


def _unpack(file: BinaryIO, name: str) -> Document:
    with tempfile.TemporaryFile() as unpacked:
        try:
            with gzip.GzipFile(fileobj=file) as packed:
                shutil.copyfileobj(packed, unpacked, _CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BoxFileError(f"{name} is a damaged gzip file: {error}") from None
        unpacked.flush()
        return Document(unpacked, name)
