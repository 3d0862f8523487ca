"""Results of the labelled objects: made from a batch, found again by annotation."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from mal.boxes import Boxes
from mal.datasets.splice import Values
from mal.errors import ShapeError
from mal.masks import BoxMask, area, polygons
from mal.plugins.pixels import pixels
from mal.plugins.texts import Texts
from mal.runtime.batches import Batch
from mal.runtime.blocks import Block
from mal.runtime.journal import ENTRY, LABELLED, SKIPPED, Journal, Record
from mal.runtime.objects import Flag

Format = Literal["rle", "polygon"]

KEYS = ("segmentation", "area", "mal")
"""What an annotation gets."""

MOST_LOGIT = 1e30  # a network's are below 100; float32 ends at 3e38
_FLAGS = [orjson.dumps(Flag(value).words) for value in range(2 * max(Flag))]
_GAP = 1 << 12  # bytes of other results that are rather read than skipped


T = TypeVar("T")
Floats = NDArray[np.float32]
Form = Callable[[Floats, Boxes, float, Sequence[tuple[int, int]]], tuple[Sequence[T], NDArray[np.int64]]]
"""Logits, boxes, expansion and (height, width) of the images -> masks in some form, and their areas in pixels."""


class Outcome(NamedTuple, Generic[T]):
    """What became of one object."""

    image: int  # first number of its piece's origin
    mask: T | None  # in the form that was asked for; None: it has none
    area: int
    reason: str  # why it has none; "" if it has
    score: float
    flags: Flag


def outcomes(batch: Batch, logits: Floats, scores: Floats, expansion: float, form: Form[T]) -> Iterator[Outcome[T]]:
    """What became of the objects of a batch, in their order.

    Of logits that are not finite, infinity is object, minus infinity and NaN are background; such masks have a flag.

    Args:
        batch: B objects with a crop, and those without one between them.
        logits: (B, h, w), zero = boundary.
        scores: (B,).
        expansion: the model's.
        form: what a mask shall be.

    Raises:
        ShapeError: the session answered for another number of crops.
    """
    if not len(logits) == len(scores) == batch.crops:
        raise ShapeError(f"{len(logits)} maps of logits and {len(scores)} scores for {batch.crops} crops")
    made: Iterator[tuple[T, int, float, int]] = iter(())
    if batch.crops:
        # NaN is not below anything; beyond the limit, differences of logits overflow.
        wild = ~(np.abs(logits).max(axis=(1, 2)) <= MOST_LOGIT)
        if wild.any():
            logits = np.clip(np.nan_to_num(logits, nan=-MOST_LOGIT), -MOST_LOGIT, MOST_LOGIT)
        sizes = [span.piece.size for span in batch.spans for _ in range(span.crops)]
        masks, areas = form(logits, batch.boxes(), expansion, sizes)
        # Whatever the model hoped for an empty mask: nothing can be right about it.
        empty, odd = areas == 0, ~np.isfinite(scores)
        flags = Flag.EMPTY * empty + Flag.NOT_FINITE * (wild | (odd & ~empty))
        made = zip(masks, areas.tolist(), np.where(empty | odd, 0, scores).tolist(), flags.tolist(), strict=True)
    for span in batch.spans:
        piece = span.piece
        for index in range(span.first, span.last):
            reason = piece.reasons[index]
            if reason is None:
                mask, area, score, found = next(made)
                yield Outcome(piece.origin[0], mask, area, "", score, Flag(int(piece.flags[index]) | found))
            else:
                yield Outcome(piece.origin[0], None, 0, reason, 0.0, Flag(0))


def box_masks(
    logits: Floats, boxes: Boxes, expansion: float, sizes: Sequence[tuple[int, int]]
) -> tuple[list[BoxMask], NDArray[np.int64]]:
    """The `Form` that is looked at: pixels."""
    masks = pixels().masks_from_logits(logits, boxes, expansion)
    return masks, np.array([area(mask) for mask in masks], np.int64)


def _polygon_json(
    logits: Floats, boxes: Boxes, expansion: float, sizes: Sequence[tuple[int, int]]
) -> tuple[list[bytes], NDArray[np.int64]]:
    masks, areas = box_masks(logits, boxes, expansion, sizes)
    return [orjson.dumps(polygons(mask)) for mask in masks], areas


def _rle_json(
    logits: Floats, boxes: Boxes, expansion: float, sizes: Sequence[tuple[int, int]]
) -> tuple[list[bytes], NDArray[np.int64]]:
    runs, areas = pixels().runs_from_logits(logits, boxes, expansion, sizes)
    texts = [orjson.dumps({"size": size, "counts": counts.decode()}) for size, counts in zip(sizes, runs, strict=True)]
    return texts, areas


def record_of(batch: Batch, logits: Floats, scores: Floats, expansion: float, mask_format: Format) -> Record:
    """What the journal keeps of a batch; arguments as for `outcomes`. All of the batch belongs to one block."""
    form = _rle_json if mask_format == "rle" else _polygon_json
    rows: list[tuple[int, int, float, int, int]] = []
    written: list[bytes] = []
    for outcome in outcomes(batch, logits, scores, expansion, form):
        kind, text = (SKIPPED, outcome.reason.encode()) if outcome.mask is None else (LABELLED, outcome.mask)
        written.append(text)
        rows.append((kind, outcome.flags, outcome.score, outcome.area, len(text)))
    first = batch.spans[0]
    start = first.piece.origin[1] + first.first
    return Record(start, start + len(rows), np.array(rows, ENTRY), b"".join(written))


class Results:
    """All results of a finished journal, by annotation row: 26 bytes each in memory, the texts stay on disk."""

    def __init__(self, journal: Journal, blocks: Sequence[Block], order: NDArray[np.int64], model_id: str) -> None:
        self._journal = journal
        self._marks = _Marks(model_id)
        self._entries = np.zeros(len(order), ENTRY)
        self._offsets = np.zeros(len(order), np.int64)
        self._block = np.zeros(len(order), np.int32)
        for block in blocks:
            entries, at = journal.whole(block.index, len(block))
            rows = order[block.start : block.stop]
            self._entries[rows], self._offsets[rows], self._block[rows] = entries, at, block.index

    def __call__(self, start: int, stop: int) -> Values:
        """Values of `KEYS` for the annotations start..stop."""
        entries = self._entries[start:stop]
        marks = Texts.of(self._marks.of(entries))
        return Values(entries["kind"] == LABELLED, [self._texts(start, stop), Texts.decimals(entries["area"]), marks])

    def _texts(self, start: int, stop: int) -> Texts:
        """Texts of the annotations start..stop; neighbours in a segment are read together."""
        length = self._entries["length"][start:stop].astype(np.int64)
        first, block = self._offsets[start:stop], self._block[start:stop]
        order = np.lexsort((first, block))
        block, begin, end = block[order], first[order], (first + length)[order]
        apart = (np.diff(block) != 0) | (begin[1:] - end[:-1] > _GAP)
        edges = np.array([0, *(np.flatnonzero(apart) + 1), len(order)])
        low, high = edges[:-1], edges[1:]
        runs = [
            self._journal.read(number, at, until - at)
            for number, at, until in zip(block[low].tolist(), begin[low].tolist(), end[high - 1].tolist(), strict=True)
        ]
        # Where a place of a segment lies among what was read.
        moved = np.cumsum([0, *map(len, runs[:-1])]) - begin[low]
        places = np.empty(len(order), np.int64)
        places[order] = begin + np.repeat(moved, high - low)
        return Texts.within(b"".join(runs), places, places + length)

    def skipped(self) -> Iterator[tuple[int, str]]:
        """Annotation row and reason of what has no mask, in the file's order."""
        for row in np.flatnonzero(self._entries["kind"] == SKIPPED).tolist():
            length = int(self._entries["length"][row])
            yield row, self._journal.read(self._block.item(row), self._offsets.item(row), length).decode()

    def counts(self) -> dict[str, int]:
        """Labelled, empty and clipped objects."""
        labelled = self._entries["kind"] == LABELLED
        flags = self._entries["flags"]
        return {
            "labelled": int(labelled.sum()),
            "empty": int((labelled & (flags & Flag.EMPTY > 0)).sum()),
            "clipped": int((labelled & (flags & Flag.CLIPPED > 0)).sum()),
        }


def values_of(entries: NDArray[np.void], texts: Sequence[bytes], model_id: str) -> list[tuple[bytes, ...] | None]:
    """Values of `KEYS` as JSON text for the objects of (n,) ENTRY with their texts; None for one without a mask."""
    return [
        (text, b"%d" % area, mark) if kind == LABELLED else None
        for (kind, _, _, area, _), text, mark in zip(entries.tolist(), texts, _Marks(model_id).of(entries), strict=True)
    ]


class _Marks(dict[int, bytes]):
    """The value of `mal` for each score and flags, rounded: there are not so many."""

    def __init__(self, model_id: str) -> None:
        self._end = b', "model": %s}' % orjson.dumps(model_id)

    def of(self, entries: NDArray[np.void]) -> list[bytes]:
        """For (n,) ENTRY."""
        # A float32 times 10,000 is exact in float64: rounded as %.4f would.
        score = np.rint(entries["score"].astype(np.float64) * 1e4).astype(np.int64)
        return list(map(self.__getitem__, (score * len(_FLAGS) + entries["flags"]).tolist()))

    def __missing__(self, key: int) -> bytes:
        score, flags = divmod(key, len(_FLAGS))
        self[key] = text = b'{"score": %.4f, "flags": %s%s' % (score / 1e4, _FLAGS[flags], self._end)
        return text


def reasons_of(entries: NDArray[np.void], texts: Sequence[bytes]) -> list[str | None]:
    """Why objects have no mask; None for one that has."""
    return [
        text.decode() if kind == SKIPPED else None for kind, text in zip(entries["kind"].tolist(), texts, strict=True)
    ]


def must_have_mask(reason: str) -> bool:
    """Whether an object skipped for this reason should have had a mask (exit code 3)."""
    return reason != "crowd"  # `BoxFile.reason` of a crowd region
