"""BoxFile: the boxes of a data set as columns, and the way back into its file."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from mal import boxes as geometry
from mal.datasets.coco import AMBIGUOUS_IMAGE, NO_IMAGE, LooseAnnotation, Scan, Stretch, decode_loosely
from mal.datasets.document import Document
from mal.datasets.scan import WINDOW, repair
from mal.datasets.splice import Values, splice
from mal.sources import ImageSource

_T = TypeVar("_T")
_RUN = 1 << 15  # annotations whose results are asked for at once, at least

Results = Callable[[int, int], Values]
"""Values of the keys to be written, for rows start..stop."""


class _Outlined(msgspec.Struct, gc=False):
    """What `segmentations` reads of an annotation."""

    segmentation: Any = None


class BoxFile:
    """Boxes of a data set. Its N annotations are called by their row: 0 for the first one in the file.

    Only columns are in memory (< 100 B an annotation); everything else is read again from the file when needed.
    Made by `open_boxes`.

    Attributes:
        path: what was opened.
        format: "coco", "lvis", "detections", "yolo" or "voc".
        source: where the images are.
        images: the images, in the file's order.
        image_row: (N,) int32 row of `images`, -1 if the annotation has no image, -2 if it has several.
        boxes: (N, 4) float64 x0, y0, x1, y1 as in the file: not clipped, perhaps without area; NaN where unreadable.
        crowd: (N,) bool, COCO's `iscrowd`.
        category: (N,) int32 index of `category_names`, -1 if unknown.
        category_names: in the file's order.
        duplicate_ids: how many annotations bear the id of an earlier one. Each is an object of its own.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        source: ImageSource,
        document: Document,
        scan: Scan,
        images_document: Document | None = None,
    ) -> None:
        self.path = path
        self.format = format
        self.source = source
        self.images = scan.images
        self.image_row = scan.image_row
        self.boxes = scan.boxes
        self.crowd = scan.crowd
        self.category = scan.category
        self.category_names = scan.category_names
        self.duplicate_ids = scan.duplicate_ids
        self._document = document
        self._images_document = images_document
        self._stretches = scan.stretches

    def __len__(self) -> int:
        return len(self.boxes)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the document (of the COCO document made from it, for other formats). Reads it once.

        For a list of detections: of its digest and that of the file of its images.
        """
        if self._images_document is None:
            return self._document.sha256()
        both = self._document.sha256() + self._images_document.sha256()
        return hashlib.sha256(both.encode()).hexdigest()

    def order(self) -> NDArray[np.int64]:
        """(N,) rows grouped by image in the images' order, in the file's order within; those without an image last."""
        key = np.where(self.image_row < 0, np.int32(len(self.images)), self.image_row)
        return np.argsort(key, kind="stable")

    def reason(self, row: int) -> str | None:
        """Why this annotation can't be labelled, as far as its file tells; None if it can."""
        image_row = int(self.image_row[row])
        if self.crowd[row]:
            return "crowd"
        if image_row == AMBIGUOUS_IMAGE:
            return "its image_id belongs to several images with different files"
        if image_row == NO_IMAGE:
            return "no image has its image_id"
        if not self.images.file_names[image_row]:
            return "its image has no file_name"
        return reason_of_box(self.boxes[row], False)

    def annotation_ids(self, rows: Sequence[int] | NDArray[np.integer]) -> list[int | str | None]:
        """Ids as they stand in the file, None where there is none.

        A detection without one is called by its place in the list, from 1, as COCO's tools number them.
        Read again from the file, so ask once for many rows: one call reads each part of the file at most once.
        """
        ids = [_as_id(annotation.id) for annotation in self._reread(rows, LooseAnnotation)]
        if self.format == "detections":
            return [int(row) + 1 if found is None else found for row, found in zip(rows, ids, strict=True)]
        return ids

    def image_ids(self, rows: Sequence[int] | NDArray[np.integer]) -> list[int | str | None]:
        """The annotations' `image_id` as it stands in the file, even where no image has it; see `annotation_ids`."""
        return [_as_id(annotation.image_id) for annotation in self._reread(rows, LooseAnnotation)]

    def segmentations(self, rows: Sequence[int] | NDArray[np.integer]) -> list[Any]:
        """The annotations' `segmentation` as JSON values, unchecked; None where there is none. See `annotation_ids`."""
        return [annotation.segmentation for annotation in self._reread(rows, _Outlined)]

    def write(self, stream: BinaryIO, keys: Sequence[str], results: Results) -> None:
        """Copy the document, setting keys of its annotations; everything else is copied byte for byte.

        Args:
            stream: binary file to write to.
            keys: names of the keys, ASCII.
            results: called with rows start, stop, in the file's order, some thousands at a time; gives the values
                in the order of `keys`. What is no JSON object stays as it is.

        Raises:
            BoxFileError: the document was changed since it was opened.
        """
        document = self._document
        document.check_unchanged()
        done = 0
        for run in _runs(self._stretches):
            first, count = run[0].first, sum(stretch.rows for stretch in run)
            values = results(first, first + count)
            for start, stop, row, rows in run:
                self._copy(stream, done, start)
                try:
                    stream.write(splice(document.read(start, stop), keys, values.part(row - first, row - first + rows)))
                except (ValueError, IndexError):  # it was valid JSON when it was scanned
                    raise document.changed() from None
                done = stop
        self._copy(stream, done, document.size)

    def _copy(self, stream: BinaryIO, start: int, stop: int) -> None:
        for at in range(start, stop, WINDOW):
            stream.write(self._document.read(at, min(at + WINDOW, stop)))

    def _reread(self, rows: Sequence[int] | NDArray[np.integer], kind: type[_T]) -> list[_T]:
        wanted = np.asarray(rows, np.int64)
        found: dict[int, _T] = {}
        firsts = np.array([stretch.first for stretch in self._stretches], np.int64)
        which = np.searchsorted(firsts, wanted, side="right") - 1
        for index in np.unique(which):
            stretch = self._stretches[index]
            text = self._document.read(stretch.start, stretch.stop)
            annotations = self._decoded(text, lambda array: decode_loosely(array, kind))
            for place in np.flatnonzero(which == index):
                found[int(place)] = annotations[wanted[place] - stretch.first]
        return [found[place] for place in range(len(wanted))]

    def _decoded(self, text: bytes, decode: Callable[[bytes], list[Any]]) -> list[Any]:
        array = b"[" + text + b"]"
        try:
            return decode(array)
        except msgspec.DecodeError:
            pass
        try:
            return decode(repair(array))
        except msgspec.DecodeError:
            raise self._document.changed() from None


def _as_id(value: object) -> int | str | None:
    return value if type(value) in (int, str) else None  # pyright: ignore[reportReturnType]  a bool is no id


def reason_of_box(box: NDArray[np.float64], crowd: bool) -> str | None:
    """Why an annotation with this box (4,) can't be labelled in any image; None if it can."""
    if crowd:
        return "crowd"
    if not np.isfinite(box).all():
        return "bbox is not four finite numbers"
    return None if geometry.usable(box[None])[0] else "bbox has no area"


def _runs(stretches: Iterable[Stretch]) -> Iterator[list[Stretch]]:
    """Neighbouring stretches, some thousands of rows together: their results lie all over the journal."""
    run: list[Stretch] = []
    rows = 0
    for stretch in stretches:
        run.append(stretch)
        rows += stretch.rows
        if rows >= _RUN:
            yield run
            run, rows = [], 0
    if run:
        yield run
