"""A JSON document on disk, read by position: never more of it in memory than was asked for."""

import gzip
import hashlib
import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import BinaryIO

from mal.errors import BoxFileError

_CHUNK = 1 << 20


class Document:
    """Bytes of one JSON document.

    Args:
        file: opened for reading, with a file descriptor; the document owns it from here.
        name: what messages call it.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file
        self._stamp = self._state()
        self.size = self._stamp[0]

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, fewer at the document's end."""
        return os.pread(self._file.fileno(), min(stop, self.size) - start, start) if start < self.size else b""

    def sha256(self) -> str:
        """Hex digest of the whole document."""
        digest = hashlib.sha256()
        for start in range(0, self.size, _CHUNK):
            digest.update(self.read(start, start + _CHUNK))
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raise BoxFileError when somebody wrote into the file since it was opened."""
        if self._state() != self._stamp:
            raise BoxFileError(f"{self.name} was changed while it was being read; run again")

    def _state(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def open_document(path: Path) -> Document:
    """Open a JSON file; gzip is unpacked into a temporary file.

    Raises:
        BoxFileError: no such file, no permission, empty, or in an encoding other than UTF-8.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise BoxFileError(f"cannot read boxes {path}: {error.strerror}") from None
    head = file.read(4)
    if head[:2] == b"\x1f\x8b":
        file = _unpack(file, path)
        head = file.read(4)
    if not head:
        raise BoxFileError(f"{path} is empty; expected a COCO JSON object with images and annotations")
    if head == b"\x28\xb5\x2f\xfd":
        raise BoxFileError(f"{path} is compressed with zstd; unpack it first: zstd -d {path.name}")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
        raise BoxFileError(f"{path} is not UTF-8 (it looks like UTF-16 or UTF-32); JSON files must be UTF-8")
    return Document(file, str(path))


def document_from(text: bytes, name: str) -> Document:
    """A document made here, for formats that are not JSON; lies in an unnamed temporary file."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  the document owns it
    file.write(text)
    file.flush()
    return Document(file, name)


def _unpack(file: BinaryIO, path: Path) -> BinaryIO:
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115  the document owns it
    try:
        file.seek(0)
        with file, gzip.GzipFile(fileobj=file) as packed:
            shutil.copyfileobj(packed, unpacked, _CHUNK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BoxFileError(f"{path} is a damaged gzip file: {error}") from None
    unpacked.flush()
    unpacked.seek(0)
    return unpacked
