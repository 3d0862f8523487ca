"""COCO (and LVIS) JSON into columns, in one pass of windows. Source: cocodataset.org, "Data format"."""

import gc
import struct
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

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
    image_id: int
    category_id: int
    id: int
    iscrowd: int | bool = 0


class LooseAnnotation(msgspec.Struct, gc=False):
    """Any JSON object; what its fields hold is looked at one by one."""

    bbox: Any = None
    image_id: Any = None
    category_id: Any = None
    id: Any = None
    iscrowd: Any = 0


class _Image(msgspec.Struct, gc=False):
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


_annotations = msgspec.json.Decoder(list[Annotation])
_loose_annotations = msgspec.json.Decoder(list[LooseAnnotation])
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])


def scan_document(document: Document) -> Scan:
    """Read the columns of a COCO document.

    Raises:
        BoxFileError: broken JSON, or JSON that is no COCO document.
    """
    reader = _open(document)
    annotations = _AnnotationColumns()
    images: list[_Image] = []
    categories: list[_Category] = []
    seen: set[str] = set()
    with _no_garbage_collection():
        while (key := reader.next_key()) is not None:
            if key not in ("images", "annotations", "categories"):
                reader.skip()
                continue
            if key in seen:
                raise BoxFileError(f"{document.name} has two lists called {key!r}; expected one")
            seen.add(key)
            if reader.value_starts() != "[":
                raise BoxFileError(f"{document.name}: {key!r} is not a list; expected COCO's list of objects")
            if key == "annotations":
                annotations.read(reader)
            elif key == "images":
                images += _records(reader, _Image)
            else:
                categories += _records(reader, _Category)
    for key in ("images", "annotations"):
        if key not in seen:
            found = ", ".join(sorted(seen)) or "none of COCO's lists"
            raise BoxFileError(
                f"{document.name} has no {key!r} (found {found}); expected COCO's images and annotations"
            )
    return annotations.finish(images, categories)


def _open(document: Document) -> Reader:
    start = document.read(0, 4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"[":
        raise BoxFileError(
            f"{document.name} is a JSON list (COCO results?); expected an object with images and annotations: "
            "put the boxes into the annotations of a COCO file"
        )
    if start[:1] != b"{":
        raise BoxFileError(
            f"{document.name} does not start with {{ but with {start[:12].decode('latin-1')!r}; "
            "expected a COCO JSON object with images and annotations"
        )
    return Reader(document)


class _AnnotationColumns:
    """Collects the annotations' columns; before `finish`, ids stand where rows of images will stand."""

    def __init__(self) -> None:
        self._boxes = Column(np.float64, (4,))
        self._image = Column(np.int64)
        self._category = Column(np.int64)
        self._id = Column(np.int64)
        self._crowd = Column(np.bool_)
        self._codes = Codes()
        self._stretches: list[Stretch] = []

    def read(self, reader: Reader) -> None:
        for window in reader.windows(decode_annotations):
            self._stretches.append(Stretch(window.start, window.stop, len(self._boxes)))
            try:
                columns = _strict_columns(window.elements)
            except (struct.error, OverflowError, TypeError, AttributeError):
                columns = self._loose_columns(window.elements)
            for column, rows in zip(
                (self._boxes, self._image, self._category, self._id, self._crowd), columns, strict=True
            ):
                column.extend(rows)

    def finish(self, images: list[_Image], categories: list[_Category]) -> Scan:
        duplicates = _count_duplicates(self._id.take())
        table, codes = _image_table(images, self._codes)
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
            lvis=any(type(image.coco_url) is str and type(image.file_name) is not str for image in images),
        )

    def _loose_columns(self, annotations: list[LooseAnnotation] | list[Annotation]) -> tuple[NDArray[Any], ...]:
        of = self._codes.of
        return (
            np.array([_box(annotation.bbox) for annotation in annotations], np.float64).reshape(-1, 4),
            np.array([of(annotation.image_id) for annotation in annotations], np.int64),
            np.array([of(annotation.category_id) for annotation in annotations], np.int64),
            # String ids of annotations are not kept, their hash is enough to count duplicates.
            np.array([_identity(annotation.id) for annotation in annotations], np.int64),
            np.array([_is_crowd(annotation.iscrowd) for annotation in annotations], np.bool_),
        )


def decode_annotations(text: bytes) -> list[Annotation] | list[LooseAnnotation]:
    """Annotations of an array's text: well-formed ones at once, else whatever each can give.

    Raises:
        msgspec.DecodeError: malformed text.
    """
    try:
        return _annotations.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return decode_loosely(text, LooseAnnotation, _loose_annotations)


def decode_loosely(text: bytes, kind: Callable[[], Any], decoder: msgspec.json.Decoder[Any]) -> list[Any]:
    """Elements of an array's text; one that is no object, or holds unreadable text, becomes an empty `kind()`.

    Raises:
        msgspec.DecodeError: malformed text.
    """
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [_one(raw, kind, decoder) for raw in _raw_list.decode(text)]


def _one(raw: msgspec.Raw, kind: Callable[[], Any], decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(b"[" + bytes(raw) + b"]")[0]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return kind()


def _records(reader: Reader, kind: type[Any]) -> list[Any]:
    decoder = msgspec.json.Decoder(list[kind])
    return [
        record
        for window in reader.windows(lambda text: decode_loosely(text, kind, decoder))
        for record in window.elements
    ]


def _strict_columns(annotations: list[Any]) -> tuple[NDArray[Any], ...]:
    """Columns of well-formed annotations; packing with `struct` is the fastest way into NumPy and checks types."""
    count = len(annotations)
    boxes = _packed(f"{4 * count}d", chain.from_iterable([annotation.bbox for annotation in annotations]), np.float64)
    boxes = boxes.reshape(-1, 4).copy()
    boxes[:, 2:] += boxes[:, :2]
    integers = f"{count}q"
    image, category, identity, crowd = (
        _packed(integers, map(attrgetter(name), annotations), np.int64)
        for name in ("image_id", "category_id", "id", "iscrowd")
    )
    if max(np.abs(image).max(initial=0), np.abs(category).max(initial=0)) >= LIMIT:
        raise OverflowError
    return boxes, image, category, identity, crowd != 0


def _packed(layout: str, values: Iterator[Any], dtype: type[np.generic]) -> NDArray[Any]:
    return np.frombuffer(struct.pack(layout, *values), dtype)


def _box(value: Any) -> tuple[float, float, float, float]:
    """COCO's x, y, width, height as corners; NaN where it is not four numbers."""
    try:
        if type(value) in (list, tuple) and len(value) == 4 and all(type(edge) in (int, float) for edge in value):
            x, y, width, height = map(float, value)
            return x, y, x + width, y + height
    except OverflowError:
        pass  # an integer beyond float
    return (np.nan, np.nan, np.nan, np.nan)


def _is_crowd(value: Any) -> bool:
    return type(value) in (int, float, bool) and value != 0


def _identity(value: Any) -> int:
    code = Codes().of(value)
    return code if code < LIMIT else hash(value) % LIMIT


def _count_duplicates(codes: NDArray[np.int64]) -> int:
    codes.sort()
    same = codes[1:] == codes[:-1]
    return int(np.count_nonzero(same & (codes[1:] != MISSING)))


def _image_table(images: list[_Image], codes: Codes) -> tuple[ImageTable, NDArray[np.int64]]:
    table = ImageTable(
        ids=[image.id if codes.of(image.id) != MISSING else "" for image in images],
        file_names=[_file_name(image) for image in images],
        widths=np.array([_pixels(image.width) for image in images], np.int32),
        heights=np.array([_pixels(image.height) for image in images], np.int32),
    )
    return table, np.array([codes.of(image.id) for image in images], np.int64)


def _file_name(image: _Image) -> str:
    if type(image.file_name) is str and image.file_name:
        return image.file_name
    return path_from_address(image.coco_url) if type(image.coco_url) is str else ""


def _pixels(value: Any) -> int:
    return int(value) if type(value) in (int, float) and 0 < value < 2**31 else 0


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
