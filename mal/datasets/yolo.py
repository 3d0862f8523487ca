"""YOLO label files: one text file an image, `class cx cy width height`, all fractions of the image.

Source: Ultralytics, "Object detection datasets" and "Instance segmentation datasets" (docs). Read here:
    class cx cy w h               a box
    class cx cy w h confidence    a detection; the confidence is kept as `confidence`
    class x1 y1 x2 y2 x3 y3 ...   a polygon (three points or more); its box counts, the polygon is left out
A line that is none of these becomes an annotation without bbox, with the line as `label`: it is listed as skipped.
Category ids are the class numbers.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image

from mal.datasets.builder import Builder
from mal.datasets.document import Document
from mal.errors import BoxFileError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_SPLITS = ("train", "val", "test")
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the image by a quarter


class _Pair(NamedTuple):
    image: Path
    label: Path


def find_yaml(folder: Path) -> Path | None:
    """The data set's YAML in a folder, by its usual names."""
    candidates = (folder / "data.yaml", folder / "dataset.yaml")
    return next((file for file in candidates if file.is_file()), None)


def build_yolo(path: Path, images: Path | None) -> tuple[Document, Path]:
    """Read a YOLO data set into a COCO document.

    Args:
        path: its YAML (`path`, `train`, `val`, `test`, `names`), or a folder that has one, or a folder with
            `images/` and `labels/`.
        images: image folder instead of the data set's own; labels stay where the data set has them. Of a YAML's
            `images/train`, it holds `images/train/`, `train/` or the images themselves.

    Returns:
        The document, and the folder where its file names start.

    Raises:
        BoxFileError: unreadable YAML, no label files.
    """
    file = path if path.is_file() else find_yaml(path)
    settings = _read_yaml(file) if file else {}
    if file and any(split in settings for split in _SPLITS):
        root = file.parent / str(settings.get("path") or ".")
        root = root if root.is_dir() else file.parent
        folder = images or root
        move = partial(_moved, root, images) if images else None
        pairs = [pair for place in _places(settings, root, bool(images)) for pair in _pairs_of(place, move)]
    else:
        root = path if path.is_dir() else path.parent
        folder = images or root / "images"
        pairs = list(_pairs(folder, root / "labels"))
    if not pairs:
        raise BoxFileError(
            f"{path} has no YOLO labels; expected labels/*.txt beside images/, or a YAML with train, val or test"
        )
    names = _names(settings, root)
    with Builder(str(path), "YOLO") as builder:
        for pair in pairs:
            _add(builder, pair, folder, names)
        return builder.finish(dict(sorted(names.items()))), folder


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise BoxFileError(f"{file} cannot be read as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(settings, dict):
        raise BoxFileError(f"{file} is not a YOLO data set: expected keys such as train, val and names")
    return {str(key): value for key, value in settings.items()}


def _names(settings: dict[str, Any], root: Path) -> dict[int, str]:
    names = settings.get("names")
    if isinstance(names, dict):
        return {int(number): str(name) for number, name in names.items() if str(number).isdecimal()}
    if not isinstance(names, list):
        lists = (root / "classes.txt", root / "labels" / "classes.txt", root / "obj.names")
        file = next((file for file in lists if file.is_file()), None)
        names = _text(file).split("\n") if file else []
        names = [name.strip() for name in names if name.strip()]
    return {number: str(name) for number, name in enumerate(names)}


def _places(settings: dict[str, Any], root: Path, elsewhere: bool) -> Iterator[Path]:
    """Folders of images, or text files that list images, of all splits. If images are elsewhere, labels are enough."""
    for split in _SPLITS:
        entries = settings.get(split) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            place = root / str(entry)
            # Roboflow writes ../train/images and means train/images; Ultralytics reads it that way too.
            if not place.exists() and str(entry).startswith("../"):
                place = root / str(entry)[3:]
            if not place.exists() and not (elsewhere and _label_of(place).is_dir()):
                raise BoxFileError(f"{split}: {entry} of the YOLO data set is not there: no {place}")
            yield place


def _pairs_of(place: Path, move: Callable[[Path], Path] | None) -> Iterator[_Pair]:
    if not place.is_file():
        yield from _pairs(move(place) if move else place, _label_of(place))
        return
    for line in _text(place).splitlines():
        if line.strip():
            image = place.parent / line.strip()
            label = _label_of(image).with_suffix(".txt")
            if label.is_file():
                yield _Pair(move(image) if move else image, label)


def _moved(root: Path, images: Path, path: Path) -> Path:
    """Where a folder or image of the data set is if its images are in `images`."""
    parts = Path(os.path.relpath(path, root)).parts
    inner = parts[len(parts) - parts[::-1].index("images") :] if "images" in parts else parts
    places = [images.joinpath(*parts), images.joinpath(*inner), images / path.name, images]
    return next((place for place in places if place.exists()), images.joinpath(*inner))


def _label_of(path: Path) -> Path:
    """The path with its last `images` folder called `labels`."""
    parts = list(path.parts)
    for index in reversed(range(len(parts))):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def _pairs(images: Path, labels: Path) -> Iterator[_Pair]:
    """Each label file with its image; an image that is not there is called .jpg, and labelling will miss it."""
    found: dict[Path, Path] = {}
    for file in sorted(images.rglob("*"), reverse=True):
        if file.suffix.lower() in SUFFIXES:
            found[file.relative_to(images).with_suffix("")] = file
    for label in sorted(labels.rglob("*.txt")):
        if label.name != "classes.txt":
            name = label.relative_to(labels).with_suffix("")
            yield _Pair(found.get(name, images / f"{name}.jpg"), label)


def _add(builder: Builder, pair: _Pair, folder: Path, names: dict[int, str]) -> None:
    size = _image_size(pair.image)
    image_id = builder.image(Path(os.path.relpath(pair.image, folder)).as_posix(), size)
    for line in _text(pair.label).splitlines():
        if not line.strip():
            continue
        numbers = _numbers(line)
        category = int(numbers[0]) if numbers and numbers[0] >= 0 and numbers[0].is_integer() else None
        if category is not None:
            names.setdefault(category, f"class {category}")
        box = _box(numbers[1:], *size) if size and numbers else None
        others: dict[str, Any] = {} if box else {"label": line.strip()}
        if len(numbers) == 6:
            others["confidence"] = numbers[5]
        builder.annotation(image_id, category, box, **others)


def _numbers(line: str) -> list[float]:
    """The line's numbers; empty if one is none, or not finite."""
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _box(numbers: list[float], width: int, height: int) -> list[float] | None:
    """COCO's x, y, width, height in pixels.

    >>> _box([0.5, 0.5, 0.25, 0.5], 100, 200)
    [37.5, 50.0, 25.0, 100.0]
    """
    if len(numbers) in (4, 5):
        x, y, w, h = numbers[:4]
        left, top, right, bottom = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    elif len(numbers) >= 6 and len(numbers) % 2 == 0:
        left, top, right, bottom = min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
    else:
        return None
    return [left * width, top * height, (right - left) * width, (bottom - top) * height]


def _image_size(path: Path) -> tuple[int, int] | None:
    """Upright width and height from the header (the fractions refer to the upright image); None if unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bomb or odd EXIF: whoever decodes the image will say so
            with Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # Pillow raises almost anything on a broken file
        return None
    return (height, width) if turned else (width, height)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise BoxFileError(f"cannot read {file}: {error.strerror}") from None
