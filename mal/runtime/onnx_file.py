"""Look into an ONNX file before any runtime does: metadata, and whether it points at other files.

ONNX Runtime is given bytes only after this. A model that names external data could make it read any
file; a truncated or foreign file is told apart here with a message, not deep inside a parser. Works on
the protobuf wire format (https://protobuf.dev/programming-guides/encoding), so it needs no package.
"""

from collections.abc import Iterator

from mal.errors import ModelFileError

# Where tensors can sit: message -> field number -> message. Source: onnx/onnx.proto3.
_TREE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}

_GRAPH, _METADATA, _EXTERNAL_DATA, _DATA_LOCATION = 7, 14, 13, 14


def read_metadata(content: bytes, source: str) -> dict[str, str]:
    """Metadata of an ONNX model, after checking that the file is whole and stands alone.

    Args:
        content: the file.
        source: its name, for messages.

    Raises:
        ModelFileError: empty, truncated, not ONNX, or with external data.
    """
    try:
        view = memoryview(content)
        metadata: dict[str, str] = {}
        graphs = 0
        for number, value in _fields(view):
            if number == _METADATA and isinstance(value, memoryview):
                pair = {key: bytes(text).decode() for key, text in _fields(value) if isinstance(text, memoryview)}
                metadata[pair.get(1, "")] = pair.get(2, "")
            graphs += number == _GRAPH
        external = _names_other_files(view, "model")
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{source} is not a whole ONNX file ({error}); copy or export it again") from None
    if not graphs:
        raise ModelFileError(f"{source} is not an ONNX file: it holds no graph; expected a model of `mal export`")
    if external:
        raise ModelFileError(f"{source} keeps weights in other files; expected one self-contained ONNX file")
    return metadata


def _names_other_files(message: memoryview, kind: str) -> bool:
    if kind == "tensor":
        return any(
            number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value == 1) for number, value in _fields(message)
        )
    children = _TREE[kind]
    return any(
        _names_other_files(value, children[number])
        for number, value in _fields(message)
        if number in children and isinstance(value, memoryview)
    )


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value, in file order: an int for varints, the bytes for everything else."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"bad field type {wire}")
        if at + length > len(message):
            raise ValueError("it ends too early")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("it ends too early")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("bad number")
