"""Put keys into one annotation's JSON text without touching the rest of it."""

from collections.abc import Mapping

import msgspec

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def splice(annotation: bytes, values: Mapping[str, bytes]) -> bytes:
    """Set keys of a JSON object given as text.

    Args:
        annotation: text of one JSON object.
        values: key to JSON text of its value. A key that is there already keeps its place and gets the new
            value; the others come last. All other values stay letter for letter.

    >>> splice(b'{"id": 7, "area": 1.50}', {"area": b"3", "mal": b"{}"})
    b'{"id": 7, "area": 3, "mal": {}}'
    """
    if not values:
        return annotation
    # A backslash may spell a key in another way ("\u0061rea"), so such text is parsed too.
    if b"\\" not in annotation and not any(b'"%b"' % key.encode() in annotation for key in values):
        body = annotation[:-1].rstrip()
        added = b", ".join(b'"%b": %b' % (key.encode(), value) for key, value in values.items())
        return b"%b%b%b}" % (body, b"" if body == b"{" else b", ", added)
    members = {key: bytes(value) for key, value in _members.decode(annotation).items()}
    members.update(values)
    return b"{%b}" % b", ".join(b"%b: %b" % (msgspec.json.encode(key), value) for key, value in members.items())
