"""Cut a stream of prepared pieces into batches: by the order of the objects alone.

A batch ends with its last crop; objects without a crop travel with the batch that is open when they
come. So the n-th batch holds the same objects whatever the pieces, the workers or the time, and a run
that goes on after any batch cuts the following ones as it would have without the break.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mal.crops import to_input
from mal.runtime.objects import Prepared


@dataclass(slots=True)
class Span:
    """Objects first..last of a piece, and their crops crop_first..crop_last."""

    piece: Prepared
    first: int
    last: int
    crop_first: int
    crop_last: int


@dataclass(slots=True)
class Batch:
    """Consecutive objects, at most N of them with a crop."""

    spans: list[Span] = field(default_factory=list[Span])
    crops: int = 0  # how many objects have one

    def to_input(self, buffer: NDArray[np.float32]) -> NDArray[np.float32]:
        """(crops, 3, S, S) float32, what the session takes: the first part of `buffer`, which has room for N crops."""
        at = 0
        for span in self.spans:
            some = span.piece.crops[span.crop_first : span.crop_last]
            to_input(some, out=buffer[at : at + len(some)])
            at += len(some)
        return buffer[:at]

    def boxes(self) -> NDArray[np.float64]:
        """(crops, 4) clipped boxes of the objects with a crop."""
        return np.concatenate([span.piece.boxes[span.crop_first : span.crop_last] for span in self.spans])


class BatchCutter:
    """Takes pieces in order, gives batches of `size` crops."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._batch = Batch()

    @property
    def open(self) -> bool:
        """Whether something is left."""
        return bool(self._batch.spans)

    def add(self, piece: Prepared) -> Iterator[Batch]:
        """The batches that this piece completes."""
        first = crop = 0
        while len(piece.which) - crop >= (room := self._size - self._batch.crops):
            last = int(piece.which[crop + room - 1]) + 1
            yield self._close(Span(piece, first, last, crop, crop + room))
            first, crop = last, crop + room
        if first < len(piece.reasons) or not piece.reasons:  # an image without objects waits for its turn, too
            self._take(Span(piece, first, len(piece.reasons), crop, len(piece.which)))
        if piece.ends_batch:
            yield from self.rest()

    def rest(self) -> Iterator[Batch]:
        """What is left, if anything."""
        if self.open:
            yield self._close()

    def _take(self, span: Span) -> None:
        self._batch.spans.append(span)
        self._batch.crops += span.crop_last - span.crop_first

    def _close(self, span: Span | None = None) -> Batch:
        if span:
            self._take(span)
        batch, self._batch = self._batch, Batch()
        return batch
