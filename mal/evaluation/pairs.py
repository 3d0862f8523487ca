"""Two COCO files -> one list of objects, matched by annotation id."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mal.boxes import clip, from_xywh
from mal.datasets.segmentations import Rle, to_rle
from mal.errors import InputError

Id = int | str


@dataclass(frozen=True)
class Pair:
    """One true object and what was predicted for it."""

    annotation_id: Id
    image: int
    """Row of the image in the truth file."""
    category: Id | None
    box: NDArray[np.float64]
    """(4,) x0, y0, x1, y1 of the truth, clipped to the image."""
    truth: Rle
    predicted: Rle | None
    """None: no mask, or one that cannot be read."""
    score: float | None
    """`mal.score` of the prediction."""


@dataclass(frozen=True)
class Pairs:
    """All objects of a truth file that count, in its order, and what did not fit."""

    objects: list[Pair]
    image_sizes: list[tuple[int, int]]
    """(height, width) of each image of the truth file."""
    missing: list[Id]
    """Objects without a predicted mask."""
    broken: list[tuple[Id, str]]
    """Objects whose predicted mask cannot be read, with the reason."""
    unmatched: list[Id]
    """Predictions whose id the truth file does not have."""


def pair_up(predicted: Path, truth: Path) -> Pairs:
    """Read both files and match their annotations by id.

    Ids are numbers or text; 7 and "7" are different ids. True crowd regions are left out, with whatever was
    predicted for them.

    Raises:
        InputError: a file that is missing, no JSON or no COCO document; ids that occur twice; truth without
            any object, or an object of it without image, box or a readable mask.
    """
    true_document, predicted_document = read_coco(truth), read_coco(predicted)
    image_row, sizes = _images(true_document, truth)
    predictions = _by_id(predicted_document, predicted)
    true_annotations = _by_id(true_document, truth)

    objects: list[Pair] = []
    missing: list[Id] = []
    broken: list[tuple[Id, str]] = []
    for annotation_id, annotation in true_annotations.items():
        if annotation.get("iscrowd"):
            continue
        where = f"{truth}: annotation {annotation_id!r}"
        row = image_row.get(annotation.get("image_id"))
        if row is None:
            raise InputError(f"{where} is on image {annotation.get('image_id')!r}, which the file does not list")
        mask = _true_mask(annotation, *sizes[row], where)
        prediction, found = predictions.get(annotation_id, {}), None
        try:
            found = to_rle(prediction.get("segmentation"), *sizes[row])
            if found is None:
                missing.append(annotation_id)
        except InputError as error:
            broken.append((annotation_id, str(error)))
        box = _box(annotation, *sizes[row], where)
        category = annotation.get("category_id")
        objects.append(Pair(annotation_id, row, category, box, mask, found, _score(prediction)))
    if not objects:
        raise InputError(
            f"{truth} has no object to judge by: it needs annotations with masks that are not crowd regions"
        )
    unmatched = [annotation_id for annotation_id in predictions if annotation_id not in true_annotations]
    return Pairs(objects, sizes, missing, broken, unmatched)


def read_coco(path: Path) -> dict[str, Any]:
    """Read a COCO document whole.

    Raises:
        InputError: missing, no JSON, or without lists `images` and `annotations` of objects.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # Python's own json writes NaN and Infinity, which orjson refuses and `mal label` copies as they came.
        try:
            document = json.loads(text)
        except ValueError:
            raise InputError(f"{path} is not JSON: {error}") from None
    if isinstance(document, list):
        raise InputError(f"{path} is a list, as COCO results are; expected a COCO document with annotation ids")
    for key in ("images", "annotations"):
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{path} has no list of objects {key!r}; expected a COCO document")
    return document


def _by_id(document: Mapping[str, Any], path: Path) -> dict[Id, dict[str, Any]]:
    found: dict[Id, dict[str, Any]] = {}
    for annotation in document["annotations"]:
        annotation_id = annotation.get("id")
        if isinstance(annotation_id, bool) or not isinstance(annotation_id, int | str):
            raise InputError(f"{path}: an annotation has the id {annotation_id!r}; expected a number or text")
        if annotation_id in found:
            raise InputError(
                f"{path}: annotation id {annotation_id!r} occurs twice; ids must be unique to match by them"
            )
        found[annotation_id] = annotation
    return found


def _images(document: Mapping[str, Any], path: Path) -> tuple[dict[Any, int], list[tuple[int, int]]]:
    rows: dict[Any, int] = {}
    sizes: list[tuple[int, int]] = []
    for image in document["images"]:
        size = (image.get("height"), image.get("width"))
        if not all(type(side) is int and side > 0 for side in size):
            raise InputError(f"{path}: image {image.get('id')!r} needs a height and a width in pixels, got {size}")
        rows[image.get("id")] = len(sizes)
        sizes.append(size)
    return rows, sizes


def _true_mask(annotation: Mapping[str, Any], height: int, width: int, where: str) -> Rle:
    try:
        mask = to_rle(annotation.get("segmentation"), height, width)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if mask is None:
        raise InputError(f"{where} has no true mask; was the file of boxes given instead of the one with masks?")
    return mask


def _box(annotation: Mapping[str, Any], height: int, width: int, where: str) -> NDArray[np.float64]:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in _numbers(box)):
        raise InputError(f"{where} has the bbox {box!r}; expected x, y, width, height")
    return clip(from_xywh(np.array([box], np.float64)), width, height)[0]


def _numbers(values: list[Any]) -> Iterator[Any]:
    return (None if isinstance(value, bool) else value for value in values)


def _score(prediction: Mapping[str, Any]) -> float | None:
    ours = prediction.get("mal")
    score = ours.get("score") if isinstance(ours, dict) else None
    return float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None
