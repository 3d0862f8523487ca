"""The journal of an unfinished run: what is labelled is not labelled again, whatever happened.

    OUT.json.journal/
      run.json       which run this is: inputs, model, settings
      lock           held by the process that labels
      000000.seg     results of block 0, 000001.seg of block 1, …

A segment is a row of records, one a batch, each for the objects start..stop of its block:

    magic "MALR" · start · stop · bytes · CRC-32     5 x 32 bits, little-endian; the sum covers all but magic and itself
    entries                                          (stop - start) x ENTRY
    text                                             the entries' texts, one after the other

Records follow each other without a gap. Writing only appends, so a killed process leaves whole records
and at most one broken tail, which is cut off when the run goes on. What is written survives SIGKILL at
once; the disk is flushed at the end of each block and at least once a second, which is what a power cut loses.
"""

import errno
import fcntl
import json
import os
import struct
import time
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from mal.errors import JournalError, OutputError

LABELLED, SKIPPED = 1, 2

ENTRY = np.dtype([("kind", "u1"), ("flags", "u1"), ("score", "<f4"), ("area", "<u4"), ("length", "<u4")])
"""One object: LABELLED with its segmentation as JSON text, or SKIPPED with the reason as text; `length` bytes of it."""

_HEADER = struct.Struct("<4s4I")
_MAGIC = b"MALR"
_SYNC_SECONDS = 1.0
_OPEN_SEGMENTS = 64


class Record(NamedTuple):
    """Results of consecutive objects of one block."""

    start: int
    stop: int
    entries: NDArray[np.void]  # (stop - start,) ENTRY
    text: bytes


class Journal:
    """Journal of one output; use `open_journal`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock
        self._segments: dict[int, RawIOBase] = {}  # of the blocks in work
        self._readers: dict[int, RawIOBase] = {}
        self._synced = time.monotonic()

    def start(self, key: dict[str, Any], fresh: bool) -> None:
        """Make this journal the one of run `key`: a new one, or an unfinished one of exactly this run.

        Raises:
            JournalError: it belongs to another run; the message shows the difference.
            OutputError: it cannot be written.
        """
        file = self.folder / "run.json"
        with writing(self.folder):
            if fresh:
                for old in [file, *self.folder.glob("*.seg")]:
                    old.unlink(missing_ok=True)
            if (old_key := read_key(self.folder)) is None:
                for segment in self.folder.glob("*.seg"):
                    segment.unlink()
                with whole_file(file) as stream:
                    stream.write(json.dumps(key, indent=1).encode())
            elif old_key != key:
                raise JournalError(
                    f"{self.folder} holds an unfinished run of another kind ({_difference(old_key, key)}); "
                    "finish it as it was begun, or start over with --fresh"
                )

    def resume(self, block: int) -> int:
        """Objects of a block that are done; a broken tail is cut off."""
        path = self._path(block)
        if not path.exists():
            return 0
        done = end = 0
        for record, at in self.records(block):
            done, end = record.stop, at + len(record.text)
        with writing(path):
            if path.stat().st_size > end:
                os.truncate(path, end)
        return done

    def records(self, block: int) -> Iterator[tuple[Record, int]]:
        """Whole records of a block's segment, each with the offset of its text in the file."""
        path = self._path(block)
        if not path.exists():
            return
        data = path.read_bytes()
        at = expected = 0
        while at + _HEADER.size <= len(data):
            magic, start, stop, size, checksum = _HEADER.unpack_from(data, at)
            body, end = at + _HEADER.size, at + _HEADER.size + size
            text = body + (stop - start) * ENTRY.itemsize
            if magic != _MAGIC or start != expected or stop <= start or not text <= end <= len(data):
                return
            if _checksum(data[at:body], memoryview(data)[body:end]) != checksum:
                return
            yield Record(start, stop, np.frombuffer(data, ENTRY, stop - start, body), data[text:end]), text
            at, expected = end, stop

    def whole(self, block: int, objects: int) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """Entries of all objects of a finished block, and the offset of each one's text in its segment.

        Raises:
            JournalError: some are not there.
        """
        records = list(self.records(block))
        if (records[-1][0].stop if records else 0) < objects:
            raise JournalError(f"the journal {self.folder} lost results; start over with --fresh")
        entries = np.concatenate([record.entries for record, _ in records])
        lengths = entries["length"].astype(np.int64)
        before = np.cumsum(lengths) - lengths
        # Behind each other within a record; between two records there are a header and entries.
        firsts = [record.start for record, _ in records]
        gaps = np.array([at for _, at in records]) - before[firsts]
        return entries, before + np.repeat(gaps, [len(record.entries) for record, _ in records])

    def append(self, block: int, record: Record, last: bool = False) -> None:
        """Write a record behind the last one of its block; `last`: there will be no other.

        Raises:
            OutputError: no space, no permission; what was there before stays whole.
        """
        body = record.entries.tobytes() + record.text
        head = _HEADER.pack(_MAGIC, record.start, record.stop, len(body), 0)
        head = _HEADER.pack(_MAGIC, record.start, record.stop, len(body), _checksum(head, body))
        with writing(self.folder):
            if block not in self._segments:
                self._segments[block] = self._path(block).open("ab", buffering=0)
            rest = memoryview(head + body)
            while rest:
                rest = rest[self._segments[block].write(rest) :]
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                for segment in self._segments.values():
                    os.fsync(segment.fileno())
                self._synced = time.monotonic()
            if last:
                self._close_segment(block)

    def read(self, block: int, offset: int, length: int) -> bytes:
        """Text of one entry, by its offset in the block's segment. Keeps a few segments open."""
        file = self._readers.pop(block, None) or self._path(block).open("rb", buffering=0)
        self._readers[block] = file  # behind the others: the first in line is the longest unused
        if len(self._readers) > _OPEN_SEGMENTS:
            self._readers.pop(next(iter(self._readers))).close()
        text = os.pread(file.fileno(), length, offset)
        if len(text) != length:
            raise JournalError(f"{self._path(block)} lost what was written to it; start over with --fresh")
        return text

    def close(self) -> None:
        """Flush to the disk and let the next run have it.

        Never raises: what the disk would not take has been reported by `append`, and checksums guard the rest.
        """
        with suppress(OSError):
            self._close_segments()
        os.close(self._lock)

    def remove(self) -> None:
        """The run is done: remove the folder. `close` still has to be called."""
        with writing(self.folder):
            self._close_segments()
            lock = self.folder / "lock"
            for file in self.folder.iterdir():
                if file != lock:
                    file.unlink()
            lock.unlink()
        with suppress(OSError):  # the next run may be in it already, with a lock of its own
            self.folder.rmdir()

    def _path(self, block: int) -> Path:
        return self.folder / f"{block:06d}.seg"

    def _close_segments(self) -> None:
        while self._readers:
            self._readers.popitem()[1].close()
        while self._segments:
            self._close_segment(next(iter(self._segments)))

    def _close_segment(self, block: int) -> None:
        with self._segments.pop(block) as segment:
            os.fsync(segment.fileno())


def read_key(folder: Path) -> dict[str, Any] | None:
    """Which run a journal's folder belongs to, as its run.json says; None if there is none.

    Raises:
        JournalError: it cannot be read.
    """
    try:
        key = json.loads((folder / "run.json").read_bytes())
        if not isinstance(key, dict):
            raise ValueError("not a JSON object")
        return cast(dict[str, Any], key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise JournalError(f"{folder / 'run.json'} cannot be read ({error}); start over with --fresh") from None


def open_journal(folder: Path) -> Journal:
    """Create or open the journal's folder and lock it.

    Raises:
        OutputError: it cannot be created, or another process is labelling into the same output.
    """
    with writing(folder):
        while True:
            folder.mkdir(exist_ok=True)
            try:
                lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # its owner finished and removed the folder in between
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(lock, 20, 0).decode(errors="replace")
                os.close(lock)
                raise OutputError(
                    f"process {owner or '?'} is labelling into this output ({folder}); wait for it, or name another "
                    "with -o"
                ) from None
            try:
                same = os.fstat(lock).st_ino == (folder / "lock").stat().st_ino
            except FileNotFoundError:
                same = False
            if same:
                break
            os.close(lock)  # locked a file that its owner removed in between
        with suppress(OSError):  # who it is, is a courtesy: a full disk is somebody else's news
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
    return Journal(folder, lock)


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn errors of the system while writing to `path` into OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {error.filename or path}: {error.strerror}; what is labelled is kept: "
            "make room or give permission, then run the same command again"
        ) from None


@contextmanager
def whole_file(path: Path, part: Path | None = None) -> Generator[BinaryIO]:
    """A stream to write a file that appears whole or, after an error or a power cut, not at all.

    Args:
        path: the file.
        part: where it grows, on the same file system; None: beside it.
    """
    part = part or path.with_name(path.name + ".part")
    try:
        with part.open("wb", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, before anything that relies on it (the journal's end) happens
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems do it for no folder
                raise
        finally:
            os.close(folder)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _checksum(head: bytes, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(head[4:16]))


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}: {_short(old.get(key))} then, {_short(new.get(key))} now"
        for key in [*new, *(key for key in old if key not in new)]
        if old.get(key) != new.get(key)
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
