"""Pascal VOC: one XML file an image; xmin, ymin, xmax, ymax count pixels from 1 and include the last one.

Source: the PASCAL VOC 2012 development kit, "Annotation" section. In our half-open boxes: x0 = xmin - 1, x1 = xmax.
An object's `difficult`, `truncated`, `occluded` and `pose` are kept under these names.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mal.datasets.builder import Builder
from mal.datasets.document import Document
from mal.errors import BoxFileError

_KEPT = ("difficult", "truncated", "occluded", "pose")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def find_xml(path: Path) -> list[Path]:
    """The annotation files of a VOC data set: the file itself, `Annotations/*.xml`, or `*.xml`; sorted."""
    if path.is_file():
        return [path]
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    return sorted(folder.glob("*.xml"))


def build_voc(path: Path) -> tuple[Document, Path]:
    """Read a VOC data set into a COCO document.

    Args:
        path: a folder with `Annotations/` and `JPEGImages/`, a folder of XML files, or one XML file.

    Returns:
        The document, and the folder where its file names start: `JPEGImages/` or `images/` beside the annotations,
        else their own. Category ids count the names in order of appearance
        from 1.

    Raises:
        BoxFileError: every XML file is broken, is not VOC's, or declares entities. A single one among others becomes
            an annotation without bbox, with the error as `problem`, of an image called like the file: so it is listed
            as skipped, and a hundred thousand files are not held up by one.
    """
    files, numbers = find_xml(path), dict[str, int]()
    with Builder(str(path), "VOC") as builder:
        broken = [error for file in files if (error := _add(builder, file, numbers))]
        if len(broken) == len(files):
            raise broken[0]
        document = builder.finish({number: name for name, number in numbers.items()})
    return document, _folder(files[0].parent)


def _folder(annotations: Path) -> Path:
    beside = [place / name for place in (annotations, annotations.parent) for name in ("JPEGImages", "images")]
    return next((folder for folder in beside if folder.is_dir()), annotations)


def _add(builder: Builder, file: Path, numbers: dict[str, int]) -> BoxFileError | None:
    try:
        root = _parse(file)
    except BoxFileError as error:
        builder.annotation(builder.image(f"{file.stem}.jpg", None), None, None, problem=str(error))
        return error
    name = _word(root, "filename") or file.stem
    if not Path(name).suffix:
        name += ".jpg"  # some tools leave it out
    width, height = _number(root, "size/width"), _number(root, "size/height")
    size = (int(width), int(height)) if width and height else None
    image_id = builder.image(name, size)
    for found in root.iter("object"):
        category = _word(found, "name")
        number = numbers.setdefault(category, len(numbers) + 1) if category else None
        others: dict[str, Any] = {key: _flag(_word(found, key)) for key in _KEPT if _word(found, key)}
        builder.annotation(image_id, number, _bbox(found), **others)
    return None


def _parse(file: Path) -> ElementTree.Element:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BoxFileError(f"cannot read {file}: {error.strerror}") from None
    # VOC files declare nothing. Refused before parsing: entities can blow up or name other files.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
        raise BoxFileError(f"{file} declares a document type or is not UTF-8; expected a plain VOC annotation")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BoxFileError(f"{file} is broken XML: {error}") from None
    if root.tag != "annotation":
        raise BoxFileError(f"{file} is not a VOC annotation: expected <annotation>, got <{root.tag}>")
    return root


def _bbox(found: ElementTree.Element) -> list[float] | None:
    x0, y0, x1, y1 = (_number(found, f"bndbox/{side}") for side in _SIDES)
    if x0 is None or y0 is None or x1 is None or y1 is None:
        return None
    return [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]


def _word(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(element: ElementTree.Element, path: str) -> float | None:
    try:
        number = float(_word(element, path))
    except ValueError:
        return None
    return number if abs(number) < 2**31 else None  # also drops NaN and infinity


def _flag(word: str) -> int | str:
    return int(word) if word.isdecimal() else word
