"""Columns: what labelling needs of millions of annotations, as NumPy arrays that grow in place."""

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
    """A NumPy array to which rows are appended; it is extended in place, so there is never a second copy.

    Args:
        dtype: of the elements.
        width: shape of one row.
    """

    def __init__(self, dtype: type[np.generic], width: tuple[int, ...] = ()) -> None:
        self._rows: NDArray[Any] = np.empty((0, *width), dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, rows: NDArray[Any]) -> None:
        """Append `rows`."""
        stop = self._length + len(rows)
        if stop > len(self._rows):
            self._resize(max(stop, len(self._rows) * 9 // 8))
        self._rows[self._length : stop] = rows
        self._length = stop

    def take(self) -> NDArray[Any]:
        """The finished array; the column is empty afterwards."""
        self._resize(self._length)
        rows, self._rows, self._length = self._rows, self._rows[:0].copy(), 0
        return rows

    def _resize(self, length: int) -> None:
        self._rows.resize((length, *self._rows.shape[1:]), refcheck=False)


@dataclass
class Codes:
    """One int64 for any id that JSON can write, equal exactly when the ids are."""

    interned: dict[str | int, int] = field(default_factory=dict[str | int, int])

    def of(self, value: object) -> int:
        """Code of an id. Integers keep their value, 7.0 is 7, strings are numbered; all else is MISSING."""
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is int and -LIMIT < value < LIMIT:
            return value
        if type(value) is str or type(value) is int:
            return self.interned.setdefault(value, LIMIT + len(self.interned))
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
    if not len(table):
        return rows
    order = np.argsort(table, kind="stable")
    ordered = table[order]
    for start in range(0, len(codes), _BLOCK):
        some = codes[start : start + _BLOCK]
        place = np.minimum(np.searchsorted(ordered, some), len(table) - 1)
        known = (ordered[place] == some) & (some != MISSING)
        rows[start : start + _BLOCK][known] = order[place[known]]
    return rows


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
