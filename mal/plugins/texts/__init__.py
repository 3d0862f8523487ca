"""Columns of texts: many short ones in memory, without a Python object for each, and putting them together."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mal.errors import MissingPackageError
from mal.plugins.host_library import find_host, load_host

Bytes = NDArray[np.uint8]
Places = NDArray[np.integer]


class Texts(NamedTuple):
    """N texts."""

    at: NDArray[np.uintp]
    """(N,) addresses."""
    length: NDArray[np.int64]
    """(N,) bytes."""
    owners: tuple[object, ...]
    """What they lie in: kept as long as they are."""

    @classmethod
    def within(cls, buffer: bytes | Bytes, start: Places, stop: Places) -> Self:
        """Parts start..stop of a buffer, which must lie in it."""
        base = np.frombuffer(buffer, np.uint8).ctypes.data
        return cls(start.astype(np.uintp) + np.uintp(base), (stop - start).astype(np.int64), (buffer,))

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> Self:
        """These."""
        stop = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
        return cls.within(b"".join(texts), np.concatenate([[0], stop[:-1]])[: len(texts)], stop)

    @classmethod
    def decimals(cls, numbers: NDArray[np.unsignedinteger]) -> Self:
        """(N,) numbers below 2^32 as decimals."""
        powers = 10 ** np.arange(9, -1, -1)
        places = numbers.astype(np.int64)[:, None] // powers
        digits = (places % 10 + ord("0")).astype(np.uint8)
        stop = np.arange(1, len(numbers) + 1) * len(powers)
        return cls.within(digits, stop - np.maximum((places > 0).sum(axis=1), 1), stop)

    def take(self, which: Places | slice) -> Self:
        """Some of them, in another order perhaps."""
        return self._replace(at=self.at[which], length=self.length[which])


def join(texts: Texts) -> bytes:
    """All of the texts, one behind another."""
    whole = np.empty(int(texts.length.sum()), np.uint8)
    at, length = np.ascontiguousarray(texts.at), np.ascontiguousarray(texts.length)
    _body()(at, length, whole)
    return whole.tobytes()


def _join_one_by_one(at: NDArray[np.uintp], length: NDArray[np.int64], whole: Bytes) -> None:
    whole[:] = np.frombuffer(b"".join(map(ctypes.string_at, at.tolist(), length.tolist())), np.uint8)


def _join_compiled(at: NDArray[np.uintp], length: NDArray[np.int64], whole: Bytes) -> None:
    load_host().mal_join_host(at.ctypes.data, length.ctypes.data, len(at), whole.ctypes.data)


@cache
def _body() -> Callable[[NDArray[np.uintp], NDArray[np.int64], Bytes], None]:
    """The fastest that is there; nothing is compiled here."""
    if find_host() is None:
        return _join_one_by_one
    try:
        function = load_host().mal_join_host
    except MissingPackageError:
        return _join_one_by_one
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    function.restype = None
    return _join_compiled
