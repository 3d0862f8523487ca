"""From boxes to crops: which objects of an image can be labelled, why the others cannot, and cutting them out.

A piece is a few consecutive objects of one image, whose crops are cut in one go. The image itself is decoded once for
all its pieces.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from mal.boxes import Boxes, as_boxes, clip, expand, usable
from mal.config import ModelConstants
from mal.errors import ImageError, ShapeError
from mal.images import Picture
from mal.plugins.pixels import pixels
from mal.runtime.device_crops import Crops, DeviceCrops
from mal.runtime.stages import Stages

Image = NDArray[np.uint8]

PIECE = 64  # objects a piece at most

OUTSIDE = "box outside the image"


class Flag(IntFlag):
    """What a reader of a mask should know."""

    CLIPPED = 1  # the box left the image by half a pixel or more; the rest of it was labelled
    EMPTY = 2  # the mask has no pixel
    NOT_FINITE = 4  # the session's score was no number (0 is written), or some of its logits were not finite

    @property
    def words(self) -> list[str]:
        """Names as they stand in the output: ["clipped", "empty"]."""
        return [flag.name.lower().replace("_", "-") for flag in Flag if flag in self and flag.name]


def check_arrays(image: object, boxes: object) -> tuple[Image, Boxes]:
    """An image and its boxes, as somebody's program gives them.

    Raises:
        ShapeError: another shape or dtype, NaN or infinity.
    """
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ShapeError(f"image must be (H, W, 3) uint8 RGB, got {pixels.shape} {pixels.dtype}")
    array = as_boxes(boxes)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ShapeError(f"box {bad[0]} is not finite: {array[bad[0]].tolist()}; expected x0, y0, x1, y1 in pixels")
    return pixels, array


class SharedImage:
    """An image that several pieces need: decoded once, by the first that asks; the others wait for it."""

    def __init__(self, load: Callable[[], Picture]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._image: Picture | None = None
        self._error: ImageError | None = None

    def get(self, stages: Stages) -> Picture:
        """The decoded image.

        Raises:
            ImageError: it cannot be read; every call says the same.
        """
        with self._lock:
            if self._image is None and self._error is None:
                try:
                    with stages.time("read"):
                        self._image = self._load()
                except ImageError as error:
                    self._error = error
            if self._image is None:
                raise ImageError(str(self._error))
            return self._image


@dataclass(slots=True)
class Piece:
    """Consecutive objects of one image, as they came."""

    origin: tuple[int, int]  # where they come from: (block, position) or (image, position); the caller's business
    image: SharedImage | None  # None: there is none, and every object has a reason
    boxes: Boxes  # (n, 4) unclipped
    reasons: list[str | None]  # (n,) why an object cannot be labelled, as far as its box tells; None: it may be
    cost: int  # bytes that decoding its image takes; 0 where another piece of this image counts them
    ends_batch: bool = False  # the batch in hand ends after it, full or not


@dataclass(slots=True)
class Prepared:
    """A piece after reading: k of its n objects get a crop."""

    origin: tuple[int, int]
    reasons: list[str | None]  # (n,) why an object has no crop; None: it has one
    flags: NDArray[np.uint8]  # (n,) Flag
    which: NDArray[np.intp]  # (k,) objects with a crop, ascending
    boxes: Boxes  # (k, 4) clipped
    picture: Picture | None  # what these are cut from; None: nothing is, or all are
    size: tuple[int, int]  # height, width of the image; (0, 0) if it was not read
    cost: int  # as `Piece.cost`
    ends_batch: bool


def shrink_of_crops(boxes: Boxes, constants: ModelConstants, width: int, height: int) -> float:
    """How many times smaller than in the image the crop is that shrinks least.

    Args:
        boxes: (n, 4) all boxes of the image that may be labelled, so that it never depends on which are done.
        constants: of the model.
        width, height: of the image, in pixels.
    """
    clipped = clip(boxes, width, height)
    rects = expand(clipped[usable(clipped)], constants.expansion)
    return float((rects[:, 2:] - rects[:, :2]).min()) / constants.size if len(rects) else 1.0


def prepare(piece: Piece, stages: Stages) -> Prepared:
    """Read the image if any object needs it, sort out what cannot be labelled."""
    count = len(piece.boxes)
    reasons = list(piece.reasons)
    prepared = Prepared(
        origin=piece.origin,
        reasons=reasons,
        flags=np.zeros(count, np.uint8),
        which=np.empty(0, np.intp),
        boxes=np.empty((0, 4)),
        picture=None,
        size=(0, 0),
        cost=piece.cost,
        ends_batch=piece.ends_batch,
    )
    candidates = np.flatnonzero([reason is None for reason in reasons])
    if piece.image is None or not len(candidates):
        return prepared
    try:
        image = piece.image.get(stages)
    except ImageError as error:
        for index in candidates:
            reasons[index] = f"image: {error}"
        return prepared
    height, width = image.height, image.width
    wanted = piece.boxes[candidates]
    clipped = clip(wanted, width, height)
    inside = usable(clipped)
    for index in candidates[~inside]:
        reasons[index] = OUTSIDE
    # Less than half a pixel is rounding in the file, no box that leaves the image.
    moved = np.abs(clipped - wanted).max(axis=1) >= 0.5
    prepared.flags[candidates[inside & moved]] = Flag.CLIPPED
    prepared.size = (height, width)
    prepared.which = candidates[inside]
    prepared.boxes = clipped[inside]
    if inside.any():
        prepared.picture = image
    return prepared


def cut_boxes(picture: Picture, boxes: Boxes, constants: ModelConstants, out: Crops) -> None:
    """Cut the crops of (k, 4) clipped boxes into (k, 3, S, S), the session's input, where that lies."""
    rects = expand(boxes, constants.expansion) / picture.shrink
    if isinstance(out, DeviceCrops):
        out.cut(picture, rects)
    else:
        pixels().cut_into(picture.pixels, rects, constants.fill, out)
