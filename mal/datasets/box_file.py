"""BoxFile: the boxes of a data set as columns, and the way back into its file."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from mal import boxes as geometry
from mal.datasets.coco import AMBIGUOUS_IMAGE, NO_IMAGE, LooseAnnotation, Scan, Stretch, decode_loosely
from mal.datasets.document import Document
from mal.datasets.scan import WINDOW, repair
from mal.datasets.splice import splice
from mal.errors import BoxFileError

_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_GAP = re.compile(rb"[ \t\r\n,]*")


class BoxFile:
    """Boxes of a data set. Its N annotations are called by their row: 0 for the first one in the file.

    Only columns are in memory (< 100 B an annotation); everything else is read again from the file when needed.
    Made by `open_boxes`.

    Attributes:
        path: what was opened.
        format: "coco", "lvis", "yolo" or "voc".
        image_folder: where file names start.
        images: the images, in the file's order.
        image_row: (N,) int32 row of `images`, -1 if the annotation has no image, -2 if it has several.
        boxes: (N, 4) float64 x0, y0, x1, y1 as in the file: not clipped, perhaps without area; NaN where unreadable.
        crowd: (N,) bool, COCO's `iscrowd`.
        category: (N,) int32 index of `category_names`, -1 if unknown.
        category_names: in the file's order.
        duplicate_ids: how many annotations bear the id of an earlier one. Each is an object of its own.
    """

    def __init__(self, path: Path, format: str, image_folder: Path, document: Document, scan: Scan) -> None:
        self.path = path
        self.format = format
        self.image_folder = image_folder
        self.images = scan.images
        self.image_row = scan.image_row
        self.boxes = scan.boxes
        self.crowd = scan.crowd
        self.category = scan.category
        self.category_names = scan.category_names
        self.duplicate_ids = scan.duplicate_ids
        self._document = document
        self._stretches = scan.stretches

    def __len__(self) -> int:
        return len(self.boxes)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the document (of the COCO document made from it, for other formats). Reads it once."""
        return self._document.sha256()

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
        if not np.isfinite(self.boxes[row]).all():
            return "bbox is not four finite numbers"
        if not geometry.usable(self.boxes[row : row + 1])[0]:
            return "bbox has no area"
        return None

    def annotation_ids(self, rows: Sequence[int] | NDArray[np.integer]) -> list[int | str | None]:
        """Ids as they stand in the file, None where there is none.

        Read again from the file, so ask once for many rows: one call reads each part of the file at most once.
        """
        return self._reread(rows, "id")

    def image_ids(self, rows: Sequence[int] | NDArray[np.integer]) -> list[int | str | None]:
        """The annotations' `image_id` as it stands in the file, even where no image has it; see `annotation_ids`."""
        return self._reread(rows, "image_id")

    def write(self, stream: BinaryIO, results: Callable[[int], Mapping[str, bytes] | None]) -> None:
        """Copy the document, setting keys of its annotations; everything else is copied byte for byte.

        Args:
            stream: binary file to write to.
            results: called once for each row in the file's order; gives key -> JSON text of the value,
                None or nothing to leave the annotation as it came. What is no JSON object stays as it is.

        Raises:
            BoxFileError: the document was changed since it was opened.
        """
        document = self._document
        document.check_unchanged()
        done = 0
        for stretch in self._stretches:
            self._copy(stream, done, stretch.start)
            stream.write(b"".join(self._spliced(stretch, results)))
            done = stretch.stop
        self._copy(stream, done, document.size)

    def _copy(self, stream: BinaryIO, start: int, stop: int) -> None:
        for at in range(start, stop, WINDOW):
            stream.write(self._document.read(at, min(at + WINDOW, stop)))

    def _spliced(self, stretch: Stretch, results: Callable[[int], Mapping[str, bytes] | None]) -> list[bytes]:
        text = self._document.read(stretch.start, stretch.stop)
        pieces: list[bytes] = []
        at, gap = 0, b""
        for row, length in enumerate(self._lengths(text), stretch.first):
            # Between elements there is mostly the same text again.
            if not text.startswith(gap + b"{", at):
                gap = _gap(text, at)
            start = at + len(gap)
            at = start + length
            annotation = text[start:at]
            values = results(row)
            if values and annotation.startswith(b"{"):
                annotation = splice(annotation, values)
            pieces += (gap, annotation)
        pieces.append(text[at:])
        return pieces

    def _lengths(self, text: bytes) -> list[int]:
        try:
            raws = _raw_list.decode(b"[" + text + b"]")
        except msgspec.DecodeError:
            raws = self._decoded(text, _raw_list.decode)
        return [len(memoryview(raw)) for raw in raws]

    def _reread(self, rows: Sequence[int] | NDArray[np.integer], field: str) -> list[Any]:
        wanted = np.asarray(rows, np.int64)
        values: list[Any] = [None] * len(wanted)
        firsts = np.array([stretch.first for stretch in self._stretches], np.int64)
        which = np.searchsorted(firsts, wanted, side="right") - 1
        for index in np.unique(which):
            stretch = self._stretches[index]
            text = self._document.read(stretch.start, stretch.stop)
            annotations = self._decoded(text, lambda array: decode_loosely(array, LooseAnnotation))
            for place in np.flatnonzero(which == index):
                value = getattr(annotations[wanted[place] - stretch.first], field)
                values[place] = value if type(value) in (int, str) else None
        return values

    def _decoded(self, text: bytes, decode: Callable[[bytes], list[Any]]) -> list[Any]:
        array = b"[" + text + b"]"
        try:
            return decode(array)
        except msgspec.DecodeError:
            pass
        try:
            return decode(repair(array))
        except msgspec.DecodeError:
            raise BoxFileError(f"{self._document.name} was changed while it was being read; run again") from None


def _gap(text: bytes, at: int) -> bytes:
    """White space and the comma before the element that comes next."""
    match = _GAP.match(text, at)
    return match[0] if match else b""
