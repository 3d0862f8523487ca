"""Put keys into one annotation's JSON text without touching the rest of it."""

from collections.abc import Mapping

import msgspec
import numpy as np

from mal.datasets.scan import repair

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ASCII = bytes(range(128)) + b"?" * 128


def splice(annotation: bytes, values: Mapping[str, bytes]) -> bytes:
    """Set keys of a JSON object given as text.

    Args:
        annotation: text of one JSON object.
        values: key to JSON text of its value. The value of a key that is there already is replaced in its place;
            the other keys come last. All else stays letter for letter.

    >>> splice(b'{"id": 7, "area" : 1.50}', {"area": b"3", "mal": b"{}"})
    b'{"id": 7, "area" : 3, "mal": {}}'
    """
    # A backslash may spell a key in another way ("\u0061rea"), so such text is parsed too.
    if b"\\" in annotation or any(b'"%b"' % key.encode() in annotation for key in values):
        annotation, values = _replace(annotation, values)
    if not values:
        return annotation
    body = annotation[:-1].rstrip()
    added = b", ".join([b'"%b": %b' % (key.encode(), value) for key, value in values.items()])
    return b"".join((body, b"" if body == b"{" else b", ", added, b"}"))


def _replace(annotation: bytes, values: Mapping[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
    """Replace the values of keys that are there; returns the new text and what is left to be added."""
    # Our keys are ASCII; other characters are masked because msgspec reads keys as UTF-8, which they may not be.
    text = repair(annotation).translate(_ASCII)
    members = _members.decode(text)
    start = _address(text)
    places = sorted((_address(members[key]) - start, key) for key in values if key in members)
    pieces, done = list[bytes](), 0
    for place, key in places:
        pieces += (annotation[done:place], values[key])
        done = place + len(memoryview(members[key]))
    pieces.append(annotation[done:])
    return b"".join(pieces), {key: value for key, value in values.items() if key not in members}


def _address(text: bytes | msgspec.Raw) -> int:
    """Where the text lies in memory; a Raw is a view into what it was decoded from."""
    return np.frombuffer(text, np.uint8).__array_interface__["data"][0]
