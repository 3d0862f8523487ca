"""Put keys into one annotation's JSON text without touching the rest of it."""

from collections.abc import Mapping
from functools import lru_cache

import msgspec
import numpy as np

from mal.datasets.scan import repair

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ASCII = bytes(range(128)) + b"?" * 128
_SPACE = b" \t\r\n"

Edit = tuple[int, int, bytes]
"""Replace the bytes from start to stop by others."""


def splice(annotation: bytes, values: Mapping[str, bytes]) -> bytes:
    """Set keys of a JSON object given as text.

    Args:
        annotation: text of one JSON object.
        values: key to JSON text of its value. The value of a key that is there already is replaced in its place;
            the other keys come last. All else stays letter for letter.

    >>> splice(b'{"id": 7, "area" : 1.50}', {"area": b"3", "mal": b"{}"})
    b'{"id": 7, "area" : 3, "mal": {}}'
    """
    edits = _edits_by_text(annotation, values)
    if edits is None:
        edits = _edits_by_address(annotation, values)
    pieces, done = list[bytes](), 0
    for start, stop, value in sorted(edits.values()):
        pieces += (annotation[done:start], value)
        done = stop
    rest = annotation[done:-1].rstrip()
    pieces.append(rest)
    separator = b"" if rest == b"{" and not done else b", "
    for key, value in values.items():
        if key not in edits:
            pieces += (separator, _quoted(key), b": ", value)
            separator = b", "
    pieces.append(b"}")
    return b"".join(pieces)


def _edits_by_text(annotation: bytes, values: Mapping[str, bytes]) -> dict[str, Edit] | None:
    """Edits of the keys that are there, found as text; None where that is not safe.

    It is safe if the key stands in the text once: then this is the place, provided the object has the key at all (and
    not only an object within it).
    """
    edits: dict[str, Edit] = {}
    if b"\\" in annotation:  # it may spell a key in another way: "\u0061rea"
        return None
    members: Mapping[str, msgspec.Raw] | None = None
    for key, value in values.items():
        quoted = _quoted(key)
        at = annotation.find(quoted)
        if at < 0:
            continue
        if members is None:
            try:
                members = _members.decode(annotation)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return None
        if key in members:
            if annotation.find(quoted, at + 1) >= 0:
                return None
            start = annotation.index(b":", at + len(quoted)) + 1
            while annotation[start] in _SPACE:
                start += 1
            edits[key] = start, start + len(memoryview(members[key])), value
    return edits


def _edits_by_address(annotation: bytes, values: Mapping[str, bytes]) -> dict[str, Edit]:
    """Edits of the keys that are there, whatever the text holds; slow."""
    # Our keys are ASCII; other characters are masked because msgspec reads keys as UTF-8, which they may not be.
    text = repair(annotation).translate(_ASCII)
    members = _members.decode(text)
    edits: dict[str, Edit] = {}
    for key, value in values.items():
        if key in members:
            start = _address(members[key]) - _address(text)
            edits[key] = start, start + len(memoryview(members[key])), value
    return edits


def _address(text: bytes | msgspec.Raw) -> int:
    """Where the text lies in memory; a Raw is a view into what it was decoded from."""
    return np.frombuffer(text, np.uint8).__array_interface__["data"][0]


@lru_cache
def _quoted(key: str) -> bytes:
    return f'"{key}"'.encode()
