"""Columns: what labelling needs of millions of annotations, as NumPy arrays that grow in place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 1 << 62
"""Integer ids below it (in size) are their own code; all others get codes from here upwards."""
MISSING = -(1 << 63)
"""Code of "no id": absent, null, true, a list, NaN ..."""

_BLOCK = 1 << 20  # rows per step where a temporary array would otherwise be as long as the column


class Column:
    """A NumPy array to which rows are appended.

    Memory is reserved ahead and costs nothing until rows are written there; the end is given back by `take`.

    Args:
        dtype: of the elements.
        width: shape of one row.
    """

    def __init__(self, dtype: type[np.generic], width: tuple[int, ...] = ()) -> None:
        self._rows: NDArray[Any] = np.empty((0, *width), dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, count: int, expected: int) -> NDArray[Any]:
        """`count` new rows to be filled in; `expected`: how many the column is likely to have in the end."""
        stop = self._length + count
        if stop > len(self._rows):
            rows = np.empty((max(stop, expected, len(self._rows) * 9 // 8), *self._rows.shape[1:]), self._rows.dtype)
            rows[: self._length] = self._rows[: self._length]
            self._rows = rows
        new = self._rows[self._length : stop]
        self._length = stop
        return new

    def take(self) -> NDArray[Any]:
        """The finished array; the column is empty afterwards."""
        rows = self._rows
        rows.resize((self._length, *rows.shape[1:]), refcheck=False)
        self._rows, self._length = rows[:0].copy(), 0
        return rows


class _Numbers(dict[str | int, int]):
    """Numbers its keys from LIMIT, in the order in which they are first asked for."""

    def __missing__(self, key: str | int) -> int:
        self[key] = number = LIMIT + len(self)
        return number


@dataclass
class Codes:
    """One int64 for any id that JSON can write, equal exactly when the ids are."""

    interned: _Numbers = field(default_factory=_Numbers)

    def of(self, value: object) -> int:
        """Code of an id. Integers keep their value, 7.0 is 7, strings are numbered; all else is MISSING."""
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is int and -LIMIT < value < LIMIT:
            return value
        if type(value) is str or (type(value) is int and value != MISSING):
            return self.interned[value]
        return MISSING


def find(codes: NDArray[np.int64], table: NDArray[np.int64]) -> NDArray[np.int32]:
    """Row of each code in a table.

    Args:
        codes: (N,) int64.
        table: (K,) int64; of equal codes the first one is found.

    Returns:
        (N,) int32 rows of the table, -1 where the code is not there or is MISSING.
    """
    rows = np.full(len(codes), -1, np.int32)
    if not len(table) or table.max() == MISSING:  # no id in it
        return rows
    low, high = int(table.min()), int(table.max())
    # Ids are mostly numbers not far apart (COCO: 582,000 for 118,000 images), then a look-up beats a search tenfold.
    look_up = _index(table, low, high) if high - low < max(1 << 20, 16 * len(table)) else _search(table)
    for start in range(0, len(codes), _BLOCK):
        rows[start : start + _BLOCK] = look_up(codes[start : start + _BLOCK])
    return rows


_LookUp = Callable[[NDArray[np.int64]], NDArray[np.int32]]


def _index(table: NDArray[np.int64], low: int, high: int) -> _LookUp:
    index = np.full(high - low + 3, -1, np.int32)  # one place more on each side, for codes that lie outside
    index[table[::-1] - (low - 1)] = np.arange(len(table), dtype=np.int32)[::-1]
    return lambda codes: index[np.clip(codes, low - 1, high + 1) - (low - 1)]


def _search(table: NDArray[np.int64]) -> _LookUp:
    order = np.argsort(table, kind="stable").astype(np.int32)
    ordered = table[order]

    def look_up(codes: NDArray[np.int64]) -> NDArray[np.int32]:
        place = np.minimum(np.searchsorted(ordered, codes), len(table) - 1)
        known = (ordered[place] == codes) & (codes != MISSING)
        return np.where(known, order[place], np.int32(-1))

    return look_up


@dataclass
class ImageTable:
    """The images of a file of boxes, in its order."""

    ids: list[int | str]
    """As they stand in the file; an image without a usable id has ''."""
    file_names: list[str]
    """Path relative to the image folder; '' where the file names none."""
    widths: NDArray[np.int32]
    """(K,) pixels; 0 where the file does not say."""
    heights: NDArray[np.int32]
    """(K,) pixels; 0 where the file does not say."""

    def __len__(self) -> int:
        return len(self.ids)
