"""Put keys into the JSON text of many objects at once, without touching the rest of it.

The text has been decoded before, so it is valid JSON (or what Python writes in its place), and a look at its
quotes, brackets, colons and commas tells where everything lies. All of them are found in a few passes of NumPy over
the text, and what is put together are columns: no Python object for an element or a key.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from mal.plugins.texts import Texts, join

_QUOTE, _COMMA, _COLON, _OPEN, _CLOSE = 1, 2, 3, 4, 5
_MARKS = dict(zip(b'",:{[}]', (_QUOTE, _COMMA, _COLON, _OPEN, _OPEN, _CLOSE, _CLOSE), strict=True))
_KINDS = bytes(_MARKS.get(byte, 0) for byte in range(256))
_STEPS = np.array([0, 0, 0, 0, 1, -1], np.int8)
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_SPACE = np.isin(np.arange(256), list(b" \t\r\n"))

Places = NDArray[np.intp]

_string = msgspec.json.Decoder(str)


class Values(NamedTuple):
    """What is set in N elements."""

    wanted: NDArray[np.bool_]
    """(N,) where anything is; else the element stays as it is."""
    texts: Sequence[Texts]
    """JSON texts of the values, N for each key."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[bytes] | None], keys: int) -> Self:
        """Values of so many keys, one row an element; None: it stays as it is."""
        columns = zip(*(row or (b"",) * keys for row in rows), strict=True) if rows else [()] * keys
        return cls(np.array([row is not None for row in rows], np.bool_), [Texts.of(column) for column in columns])

    def part(self, start: int, stop: int) -> Self:
        """Those of the elements start..stop."""
        rows = slice(start, stop)
        return self._replace(wanted=self.wanted[rows], texts=[some.take(rows) for some in self.texts])


class _Marks(NamedTuple):
    """The elements' own quotes, commas, colons and brackets, not those in strings, in the text's order; M of them."""

    at: Places  # (M,) place in the text
    kind: NDArray[np.uint8]  # (M,)
    depth: NDArray[np.int32]  # (M,) brackets open behind it
    element: Places  # (M,) commas between elements up to it: the element it belongs to


class _Edits(NamedTuple):
    """Replace start..stop of the text by `lead` and the element's value of the key; E of them."""

    start: Places
    stop: Places
    element: Places
    key: Places
    lead: Places  # index of the text that comes before the value


def splice(text: bytes, keys: Sequence[str], values: Values) -> bytes:
    """Set keys of JSON objects.

    Args:
        text: elements of an array with the commas between them, as they stand between its brackets; not empty.
        keys: ASCII names.
        values: of these keys, for every element. One that is no object stays as it is. A key that is there keeps its
            place and gets the new value (each time, if it is there twice); the others come last.

    Raises:
        ValueError: there are not as many elements as values.

    >>> splice(b'{"id": 7, "area" : 1.50}, null', ["area", "mal"], Values.of([(b"3", b"{}"), None], 2))
    b'{"id": 7, "area" : 3, "mal": {}}, null'
    """
    marks = _marks(text)
    count = int(marks.element[-1]) + 1 if len(marks.at) else 1
    if count != len(values.wanted):
        raise ValueError(f"{count} elements, {len(values.wanted)} values")
    edits = _edits(text, marks, keys, values.wanted)
    # With a separator, without one (the first key of an empty object), nothing (a value that is replaced).
    leads = [f', "{key}": '.encode() for key in keys] + [f'"{key}": '.encode() for key in keys] + [b""]
    kept = Texts.within(text, np.append(0, edits.stop), np.append(edits.start, len(text)))
    lead = Texts.of(leads).take(edits.lead)
    at, length = np.zeros((2, len(edits.start) + 1, 3), np.int64)
    at[:, 0], length[:, 0] = kept.at, kept.length
    at[:-1, 1], length[:-1, 1] = lead.at, lead.length
    at[:-1, 2] = np.stack([some.at for some in values.texts])[edits.key, edits.element]
    length[:-1, 2] = np.stack([some.length for some in values.texts])[edits.key, edits.element]
    owners = (kept, lead, values)
    return join(Texts(at.ravel().view(np.uintp), length.ravel(), owners))


def _marks(text: bytes) -> _Marks:
    if b"\\" in text:
        text = _ESCAPE.sub(b"__", text)  # an escaped quote ends no string
    kinds = np.frombuffer(text.translate(_KINDS), np.uint8)
    at = np.flatnonzero(kinds != 0)
    kind = kinds[at]
    quote = kind == _QUOTE
    outside = np.cumsum(quote, dtype=np.int32) & 1 == 0
    kept = np.flatnonzero(quote | outside)
    at, kind = at[kept], kind[kept]
    depth = np.cumsum(_STEPS[kind], dtype=np.int32)
    shallow = np.flatnonzero(depth <= 1)  # most are the commas of polygons
    at, kind, depth = at[shallow], kind[shallow], depth[shallow]
    element = np.cumsum((depth == 0) & (kind == _COMMA), dtype=np.intp)
    return _Marks(at, kind, depth, element)


def _edits(text: bytes, marks: _Marks, keys: Sequence[str], wanted: NDArray[np.bool_]) -> _Edits:
    array = np.frombuffer(text, np.uint8)
    at, kind, depth, element = marks
    quotes = np.flatnonzero(kind == _QUOTE)
    opening = quotes[:-1:2]
    # Nothing is kept within a string: its end is the next mark, and behind a key comes a colon.
    named = opening[(kind[np.minimum(opening + 2, len(kind) - 1)] == _COLON) & (depth[opening] == 1)]
    ends = np.flatnonzero(((kind == _COMMA) & (depth == 1)) | ((kind == _CLOSE) & (depth == 0)))
    closing = np.flatnonzero((kind == _CLOSE) & (depth == 0) & (array[at] == ord("}")))
    closing = closing[wanted[element[closing]]]
    missing = np.zeros((len(wanted), len(keys)), np.bool_)
    missing[element[closing]] = True
    found: list[_Edits] = []
    for number, key in enumerate(keys):
        here = _called(key, text, array, at, named)
        here = here[wanted[element[here]]]
        missing[element[here], number] = False
        start = _forward(array, at[here + 2] + 1)
        stop = _backward(array, at[ends[np.searchsorted(ends, here)]])
        found.append(_columns(start, stop, element[here], number, 2 * len(keys)))
    behind = _backward(array, at[closing])
    bare = array[behind - 1] == ord("{")
    # First of its object's new keys: only that one may stand behind the opening brace.
    first = missing[element[closing]].argmax(axis=1)
    for number in range(len(keys)):
        new = missing[element[closing], number]
        lead = np.where(bare & (first == number), number + len(keys), number)[new]
        found.append(_columns(behind[new], behind[new], element[closing][new], number, lead))
    edits = _Edits(*(np.concatenate(columns) for columns in zip(*found, strict=True)))
    order = np.argsort(edits.start, kind="stable")
    return _Edits(*(column[order] for column in edits))


def _columns(start: Places, stop: Places, element: Places, key: int, lead: int | Places) -> _Edits:
    shape = len(start)
    return _Edits(start, stop, element, np.full(shape, key, np.intp), np.full(shape, lead, np.intp))


def _called(key: str, text: bytes, array: NDArray[np.uint8], at: Places, named: Places) -> Places:
    """Those of the keys at the marks `named` that are `key`."""
    name = np.frombuffer(key.encode(), np.uint8)
    start, stop = at[named] + 1, at[named + 1]
    likely = np.flatnonzero(stop - start == len(name))
    same = (array[start[likely][:, None] + np.arange(len(name))] == name).all(axis=1)
    places = named[likely[same]]
    if b"\\" in text:  # a key may be spelled with escapes: "\u0061rea"
        slashes = np.flatnonzero(array == ord("\\"))
        spelled = np.searchsorted(slashes, start) < np.searchsorted(slashes, stop)
        others = [place for place in named[spelled].tolist() if _spells(text[at[place] : at[place + 1] + 1], key)]
        places = np.union1d(places, np.array(others, np.intp))
    return places


def _spells(quoted: bytes, key: str) -> bool:
    try:
        return _string.decode(quoted) == key
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _forward(array: NDArray[np.uint8], places: Places) -> Places:
    """The places, moved on over white space."""
    while (space := _SPACE[array[places]]).any():
        places = places + space
    return places


def _backward(array: NDArray[np.uint8], places: Places) -> Places:
    """The places, moved back over the white space before them."""
    while (space := _SPACE[array[places - 1]]).any():
        places = places - space
    return places
