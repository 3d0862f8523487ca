"""How tests write a file of boxes."""

import io
from collections.abc import Mapping

from mal.datasets import BoxFile
from mal.datasets.splice import Values


def written(boxes: BoxFile, values: Mapping[int, Mapping[str, bytes]] = {}) -> bytes:
    """The document with these keys set, by row; all rows have the same keys."""
    keys = list(next(iter(values.values()), ["area"]))
    stream = io.BytesIO()
    boxes.write(
        stream,
        keys,
        lambda start, stop: Values.of(
            [[values[row][key] for key in keys] if row in values else None for row in range(start, stop)], len(keys)
        ),
    )
    return stream.getvalue()
