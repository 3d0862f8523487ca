"""Cut a stream of prepared pieces into batches: by the order of the objects alone.

A batch ends with its last crop; objects without a crop travel with the batch that is open when they
come. So the n-th batch holds the same objects whatever the pieces, the workers or the time, and a run
that goes on after any batch cuts the following ones as it would have without the break.

A batch is given out when it begins: crops can be cut to their place while it fills.
"""

from dataclasses import dataclass, field

import numpy as np

from mal.boxes import Boxes
from mal.images import Picture
from mal.runtime.device_crops import Crops
from mal.runtime.objects import Prepared


@dataclass(slots=True)
class Span:
    """Objects first..last of a piece, and their crops crop_first..crop_last, which come at `at` in the batch."""

    piece: Prepared
    first: int
    last: int
    crop_first: int
    crop_last: int
    at: int

    @property
    def crops(self) -> int:
        """How many."""
        return self.crop_last - self.crop_first

    @property
    def ends_piece(self) -> bool:
        """No crop of its piece comes after these."""
        return self.crop_last == len(self.piece.which)

    def take_picture(self) -> Picture | None:
        """What its crops are cut from, None if there are none. Asked in turn; the last one leaves the piece without."""
        picture = self.piece.picture if self.crops else None
        if self.ends_piece:
            self.piece.picture = None
        return picture

    def place(self, buffer: Crops) -> Crops:
        """The part of the batch's input (N, 3, S, S) that is theirs."""
        return buffer[self.at : self.at + self.crops]

    def boxes(self) -> Boxes:
        """(crops, 4) clipped boxes of its objects with a crop."""
        return self.piece.boxes[self.crop_first : self.crop_last]


@dataclass(slots=True)
class Batch:
    """Consecutive objects, at most N of them with a crop."""

    spans: list[Span] = field(default_factory=list[Span])
    crops: int = 0  # how many objects have one

    full: bool = False  # nothing more will come

    def boxes(self) -> Boxes:
        """(crops, 4) clipped boxes of the objects with a crop."""
        return np.concatenate([span.boxes() for span in self.spans])


class BatchCutter:
    """Takes pieces in order, puts them into batches of `size` crops."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._batch = Batch()

    @property
    def open(self) -> bool:
        """Whether a batch is begun and not full."""
        return bool(self._batch.spans)

    def add(self, piece: Prepared) -> list[Batch]:
        """The batches that begin with this piece; those before them are full."""
        begun: list[Batch] = []
        first = crop = 0
        while len(piece.which) - crop >= (room := self._size - self._batch.crops):
            last = int(piece.which[crop + room - 1]) + 1
            begun += self._take(Span(piece, first, last, crop, crop + room, self._batch.crops))
            self.end()
            first, crop = last, crop + room
        if first < len(piece.reasons) or not piece.reasons:  # an image without objects waits for its turn, too
            begun += self._take(Span(piece, first, len(piece.reasons), crop, len(piece.which), self._batch.crops))
        if piece.ends_batch:
            self.end()
        return begun

    def end(self) -> None:
        """Nothing more comes to the open batch, if there is one."""
        if self.open:
            self._batch.full = True
            self._batch = Batch()

    def _take(self, span: Span) -> list[Batch]:
        begun = [] if self.open else [self._batch]
        self._batch.spans.append(span)
        self._batch.crops += span.crops
        return begun
