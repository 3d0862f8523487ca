"""COCO (and LVIS) JSON into columns, in one pass of windows. Source: cocodataset.org, "Data format"."""

import gc
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from struct import pack_into
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from mal.datasets.document import Document
from mal.datasets.lvis import path_from_address
from mal.datasets.scan import Reader
from mal.datasets.table import LIMIT, MISSING, Codes, Column, ImageTable, find
from mal.errors import BoxFileError

NO_IMAGE = -1
"""`image_row` of an annotation whose image_id is missing or names no image."""
AMBIGUOUS_IMAGE = -2
"""`image_row` of an annotation whose image_id belongs to several images with different files."""


class Annotation(msgspec.Struct, gc=False):
    """An annotation as it should be; decoding fails on anything else."""

    bbox: tuple[float, float, float, float]
    image_id: int | str
    category_id: int | str = MISSING
    id: int | str = MISSING
    iscrowd: int | bool = 0


class LooseAnnotation(msgspec.Struct, gc=False):
    """Any JSON object; what its fields hold is looked at one by one."""

    bbox: Any = None
    image_id: Any = None
    category_id: Any = None
    id: Any = None
    iscrowd: Any = 0


class Image(msgspec.Struct, gc=False):
    """An image as it should be."""

    id: int | str
    file_name: str
    width: int
    height: int


class LooseImage(msgspec.Struct, gc=False):
    """Any JSON object that stands for an image; LVIS gives `coco_url` and no file name."""

    id: Any = None
    file_name: Any = None
    coco_url: Any = None
    width: Any = 0
    height: Any = 0


class _Category(msgspec.Struct, gc=False):
    id: Any = None
    name: Any = None


class Stretch(NamedTuple):
    """Where a run of annotations lies in the document."""

    start: int
    stop: int
    first: int
    """Row of its first annotation."""
    rows: int
    """How many they are."""


@dataclass
class Scan:
    """All that pass 1 keeps of a document."""

    images: ImageTable
    image_row: NDArray[np.int32]
    boxes: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    category: NDArray[np.int32]
    category_names: list[str]
    stretches: list[Stretch]
    duplicate_ids: int
    lvis: bool


_T = TypeVar("_T", bound=msgspec.Struct)

_annotations = msgspec.json.Decoder(list[Annotation])
_images = msgspec.json.Decoder(list[Image])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])


def scan_document(document: Document, detections: Document | None = None) -> Scan:
    """Read the columns of a COCO document.

    Args:
        document: images, categories and annotations.
        detections: a list in COCO's results format, to be read in place of the document's annotations; these need
            not be there.

    Raises:
        BoxFileError: broken JSON, or JSON that is not what it should be.
    """
    codes = Codes()
    annotations = _AnnotationColumns(codes)
    images = _ImageColumns(codes)
    categories: list[_Category] = []
    seen: set[str] = set()
    with _no_garbage_collection():
        if detections:
            _expect_start(detections, b"[", "a list of detections, as --images-json wants it")
            reader = Reader(detections)
            annotations.read(reader, detections.size)
            reader.finish()
        _expect_start(document, b"{", "a COCO JSON object with images and annotations")
        reader = Reader(document)
        while (key := reader.next_key()) is not None:
            if key not in ("images", "annotations", "categories"):
                reader.skip()
                continue
            if key in seen:
                raise BoxFileError(f"{document.name} has two lists called {key!r}; expected one")
            seen.add(key)
            if reader.value_starts() not in "[":  # at the end of the file the reader itself complains
                raise BoxFileError(f"{document.name}: {key!r} is not a list; expected COCO's list of objects")
            if key == "images":
                images.read(reader)
            elif key == "categories":
                for window in reader.windows(lambda text: decode_loosely(text, _Category)):
                    categories += window.elements
            elif detections:
                for _ in reader.windows(_raw_list.decode):
                    pass
            else:
                annotations.read(reader, document.size)
    for key in ("images",) if detections else ("images", "annotations"):
        if key not in seen:
            found = ", ".join(sorted(seen)) or "none of COCO's lists"
            raise BoxFileError(
                f"{document.name} has no {key!r} (found {found}); expected COCO's images and annotations"
            )
    return annotations.finish(images, categories)


def _expect_start(document: Document, bracket: bytes, expected: str) -> None:
    start = document.read(0, 4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == bracket:
        return
    if start[:1] == b"[":
        raise BoxFileError(
            f"{document.name} is a JSON list (detections?); expected {expected}: "
            "`mal label --images-json` names the COCO file of its images"
        )
    raise BoxFileError(
        f"{document.name} does not start with {bracket.decode()} but with {start[:12].decode('latin-1')!r}; "
        f"expected {expected}"
    )


class _AnnotationColumns:
    """Collects the annotations' columns; before `finish`, codes of ids stand where rows will stand."""

    def __init__(self, codes: Codes) -> None:
        self._boxes = Column(np.float64, (4,))
        self._image = Column(np.int64)
        self._category = Column(np.int64)
        self._id = Column(np.int64)
        self._crowd = Column(np.bool_)
        self._codes = codes
        self._stretches: list[Stretch] = []

    def read(self, reader: Reader, size: int) -> None:
        columns = (self._boxes, self._image, self._category, self._id, self._crowd)
        for start, stop, annotations in reader.windows(decode_annotations):
            first, count = len(self._boxes), len(annotations)
            self._stretches.append(Stretch(start, stop, first, count))
            # As many as fill the rest of the document at the density of this window.
            expected = first + int(count * (size - start) / (stop - start) * 1.02) + 1
            rows = tuple(column.append(count, expected) for column in columns)
            if not (isinstance(annotations[0], Annotation) and self._fill(rows, annotations)):
                self._fill_loosely(rows, annotations)

    def _fill(self, rows: tuple[NDArray[Any], ...], annotations: list[Annotation]) -> bool:
        """Fill rows of the columns from well-formed annotations; False if an id does not fit its column.

        `struct` is the fastest way from Python's numbers into an array.
        """
        boxes, image, category, identity, crowd = rows
        count = len(annotations)
        try:
            edges = chain.from_iterable([annotation.bbox for annotation in annotations])
            pack_into(f"{4 * count}d", boxes.data, 0, *edges)
            pack_into(f"{count}?", crowd.data, 0, *[annotation.iscrowd for annotation in annotations])
            number = self._codes.interned.__getitem__
            _fill_ids(image, [annotation.image_id for annotation in annotations], number)
            _fill_ids(category, [annotation.category_id for annotation in annotations], number)
            _fill_ids(identity, [annotation.id for annotation in annotations], _digest_of_text)
        except struct.error:
            return False
        with np.errstate(over="ignore"):  # 1e308 + 1e308: infinite, found by whoever asks for a usable box
            boxes[:, 2:] += boxes[:, :2]
        return True

    def _fill_loosely(self, rows: tuple[NDArray[Any], ...], annotations: list[Any]) -> None:
        boxes, image, category, identity, crowd = rows
        of = self._codes.of
        boxes[:] = [corners(annotation.bbox) for annotation in annotations]
        image[:] = [of(annotation.image_id) for annotation in annotations]
        category[:] = [of(annotation.category_id) for annotation in annotations]
        # String ids of annotations are not kept: a hash is enough to count duplicates.
        identity[:] = [_digest(annotation.id) for annotation in annotations]
        crowd[:] = [is_crowd(annotation.iscrowd) for annotation in annotations]

    def finish(self, images: "_ImageColumns", categories: list[_Category]) -> Scan:
        duplicates = _count_duplicates(self._id.take())
        table, codes = images.finish()
        image_row = find(self._image.take(), codes)
        ambiguous = _ambiguous(table, codes)
        if ambiguous.any():
            image_row[ambiguous[image_row] & (image_row >= 0)] = AMBIGUOUS_IMAGE
        category_codes = np.array([self._codes.of(category.id) for category in categories], np.int64)
        return Scan(
            images=table,
            image_row=image_row,
            boxes=self._boxes.take(),
            crowd=self._crowd.take(),
            category=find(self._category.take(), category_codes),
            category_names=[str(category.name) for category in categories],
            stretches=self._stretches,
            duplicate_ids=duplicates,
            lvis=images.addresses,
        )


class _ImageColumns:
    """Collects the images; `addresses` tells whether some had an address in place of a file name."""

    def __init__(self, codes: Codes) -> None:
        self.addresses = False
        self._table = ImageTable([], [], np.empty(0, np.int32), np.empty(0, np.int32))
        self._widths: list[int] = []
        self._heights: list[int] = []
        self._codes = codes

    def read(self, reader: Reader) -> None:
        for window in reader.windows(decode_images):
            images = window.elements
            if not isinstance(images[0], Image):
                images = [self._repaired(image) for image in images]
            self._table.ids += [image.id for image in images]
            self._table.file_names += [image.file_name for image in images]
            self._widths += [image.width for image in images]
            self._heights += [image.height for image in images]

    def finish(self) -> tuple[ImageTable, NDArray[np.int64]]:
        """The table, and the code of each image's id."""
        self._table.widths = _pixels(self._widths)
        self._table.heights = _pixels(self._heights)
        return self._table, np.array([self._codes.of(image_id) for image_id in self._table.ids], np.int64)

    def _repaired(self, image: LooseImage) -> Image:
        name = image.file_name
        if not (type(name) is str and name) and type(image.coco_url) is str:
            name = path_from_address(image.coco_url)
            self.addresses = True
        return Image(
            id=image.id if self._codes.of(image.id) != MISSING else "",
            file_name=name if type(name) is str else "",
            width=int(image.width) if type(image.width) is int else 0,
            height=int(image.height) if type(image.height) is int else 0,
        )


def decode_annotations(text: bytes) -> list[Any]:
    """Annotations of an array's text: `Annotation` if all are well-formed, else `LooseAnnotation`.

    Raises:
        msgspec.DecodeError: malformed text.
    """
    try:
        return _annotations.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return decode_loosely(text, LooseAnnotation)


def decode_images(text: bytes) -> list[Any]:
    """Images of an array's text: `Image` if all are well-formed, else `LooseImage`; raises as `decode_annotations`."""
    try:
        return _images.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return decode_loosely(text, LooseImage)


def decode_loosely(text: bytes, kind: type[_T]) -> list[_T]:
    """Elements of an array's text; one that is no object, or holds unreadable text, becomes an empty `kind()`.

    Raises:
        msgspec.DecodeError: malformed text.
    """
    try:
        return msgspec.json.decode(text, type=list[kind])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [_one(raw, kind) for raw in _raw_list.decode(text)]


def _one(raw: msgspec.Raw, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        members = _members.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return kind()
    return kind(**{field: _value(members[field]) for field in kind.__struct_fields__ if field in members})


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # a number beyond float, or text that is no UTF-8


def _fill_ids(column: NDArray[np.int64], ids: list[int | str], code: Callable[[str], int]) -> None:
    """Codes of ids that are all integers or all strings; struct.error where they are not, or do not fit."""
    try:
        pack_into(f"{len(ids)}q", column.data, 0, *ids)
    except struct.error:
        if set(map(type, ids)) != {str}:
            raise
        column[:] = np.fromiter(map(cast("Callable[[Any], int]", code), ids), np.int64, len(ids))
    else:
        if column.max() >= LIMIT or (column.min() <= -LIMIT and (column[column <= -LIMIT] != MISSING).any()):
            raise struct.error


def corners(bbox: Any) -> tuple[float, float, float, float]:
    """COCO's x, y, width, height as corners; NaN where it is not four numbers."""
    try:
        if type(bbox) in (list, tuple) and len(bbox) == 4 and all(type(number) in (int, float) for number in bbox):
            x, y, width, height = map(float, bbox)
            return x, y, x + width, y + height
    except OverflowError:
        pass  # an integer beyond float
    return (np.nan, np.nan, np.nan, np.nan)


def is_crowd(value: Any) -> bool:
    """Whether an `iscrowd` of this value marks a crowd region."""
    return type(value) in (int, float, bool) and value != 0


def _digest(value: Any) -> int:
    """A number for an annotation's id: integers their own, strings a hash, MISSING for what is no id."""
    if type(value) is str:
        return _digest_of_text(value)
    code = Codes().of(value)
    return code if code < LIMIT else hash(value) % LIMIT


def _digest_of_text(text: str) -> int:
    return hash(text) % LIMIT


def _count_duplicates(codes: NDArray[np.int64]) -> int:
    codes.sort()
    same = codes[1:] == codes[:-1]
    return int(np.count_nonzero(same & (codes[1:] != MISSING)))


def _pixels(values: list[int]) -> NDArray[np.int32]:
    """A side of images, 0 where it makes no sense."""
    return np.array([value if 0 < value < 2**31 else 0 for value in values], np.int32)


def _ambiguous(table: ImageTable, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(K,) bool: the first image of its id, and a later one with this id has another file."""
    ambiguous = np.zeros(len(table), np.bool_)
    first = find(codes, codes)
    for row in np.flatnonzero(first != np.arange(len(table))):
        if first[row] >= 0 and table.file_names[row] != table.file_names[first[row]]:
            ambiguous[first[row]] = True
    return ambiguous


@contextmanager
def _no_garbage_collection() -> Generator[None]:
    """Decoding makes many short-lived objects and no cycles; the collector would only walk them (-10 % of the time)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
