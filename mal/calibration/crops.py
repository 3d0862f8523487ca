"""Which crops calibrate: drawn by seed from the user's own boxes, all sizes and categories in turn.

usable boxes ─┬─ a fifth, whole pictures ─► aside     the parity gate alone sees them
              └─ the others ─┬────────────► ranges    activation ranges are measured on them
                             └────────────► trials    they tell which ranges are best and what a layer costs
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal import boxes as geometry
from mal.config import ModelConstants
from mal.crops import cut_crop
from mal.datasets import BoxFile
from mal.errors import ImageError, InputError
from mal.evaluation.metrics import LARGE, SMALL
from mal.images import decode_image

SIZES = ("small", "medium", "large")
"""By the box's area: up to 32², up to 96², above. (`mal eval` goes by the true mask; here there may be none.)"""

RANGES, TRIALS, ASIDE = 48, 24, 256
"""Crops at most. A crop is thousands of positions of every activation: 64 and 128 of them gave the same masks."""

FLAT = 2.0
"""Grey levels of deviation below which a crop is flat; JPEG noise stays below, photographs have 30 to 60."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """Rows of a box file, each set in the order drawn; no picture is both in `aside` and in another set."""

    file: BoxFile
    seed: int
    ranges: Rows
    trials: Rows
    aside: Rows

    def to_json(self) -> dict[str, Any]:
        """What repeats the draw, for the manifest: the file, the seed, and the annotation ids of each set."""
        sets = {"ranges": self.ranges, "trials": self.trials, "aside": self.aside}
        return {
            "boxes": {"name": self.file.path.name, "sha256": self.file.sha256},
            "seed": self.seed,
            "annotation_ids": {name: self.file.annotation_ids(rows) for name, rows in sets.items()},
        }


@dataclass(frozen=True)
class Crops:
    """Crops of some rows of a box file, those left out whose image cannot be read or does not hold the box."""

    rows: Rows
    pixels: NDArray[np.float32]  # (N, 3, S, S) RGB 0..255
    boxes: NDArray[np.float64]  # (N, 4) clipped to the image
    shapes: NDArray[np.int64]  # (N, 2) height and width of the image

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> NDArray[np.int64]:
        """(N,) index of `SIZES`."""
        return size_class(self.boxes)

    @property
    def texture(self) -> NDArray[np.float64]:
        """(N,) deviation of the liveliest channel, grey levels."""
        return self.pixels.std((2, 3), dtype=np.float64).max(1)

    def flat(self) -> float:
        """Share of the crops without texture, 0..1."""
        return float((self.texture < FLAT).mean())


def size_class(boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N, 4) boxes -> (N,) index of `SIZES`."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.searchsorted([SMALL, LARGE], sides.prod(1), side="left")


def draw(file: BoxFile, seed: int = 0) -> Draw:
    """Choose rows of a box file for a calibration; the same file and seed give the same rows.

    Sizes take turns, and within a size the categories do: a rare category counts as much as a frequent one.

    Raises:
        InputError: fewer than three boxes that can be labelled.
    """
    usable = np.array([row for row in file.order().tolist() if file.reason(row) is None], np.int64)
    if len(usable) < 3:
        raise InputError(f"{file.path} has {len(usable)} boxes that can be labelled; a calibration needs 3 at least")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(usable)
    # A picture is in one set only. Where there is but one, its boxes are told apart instead.
    picture = file.image_row[shuffled]
    if len(np.unique(picture)) == 1:
        picture = shuffled
    first = rng.permutation(np.unique(picture))
    counts = np.array([(picture == one).sum() for one in first])
    held = first[: int(np.searchsorted(counts.cumsum(), len(usable) / 5)) + 1]
    is_aside = np.isin(picture, held)
    if (~is_aside).sum() < 2:
        raise InputError(f"{file.path} has too few boxes to hold a fifth of its pictures aside; add some")
    used, aside = _in_turn(file, shuffled[~is_aside]), _in_turn(file, shuffled[is_aside])
    used = used[: RANGES + TRIALS]
    # Every third tries, so that both sets hold all sizes and categories.
    trial = np.arange(len(used)) % 3 == 1
    return Draw(file, seed, used[~trial], used[trial], aside[:ASIDE])


def cut(file: BoxFile, rows: Rows, constants: ModelConstants) -> Crops:
    """Cut the crops of some rows, in their order; each image is decoded once.

    Raises:
        InputError: not one crop can be cut.
    """
    kept: list[tuple[int, NDArray[np.uint8], NDArray[np.float64], tuple[int, int]]] = []
    problem = "no box lies in its image"
    for image_row in np.unique(file.image_row[rows]).tolist():
        name = file.images.file_names[image_row]
        known = int(file.images.widths[image_row]), int(file.images.heights[image_row])
        try:
            image = decode_image(file.source.read(name), *(known if min(known) > 0 else (None, None))).pixels
        except ImageError as error:
            problem = f"{name}: {error}"
            continue
        height, width = image.shape[:2]
        places = np.flatnonzero(file.image_row[rows] == image_row)
        clipped = geometry.clip(file.boxes[rows[places]], width, height)
        rects = geometry.expand(clipped, constants.expansion)
        for at in np.flatnonzero(geometry.usable(clipped)):
            crop = cut_crop(image, rects[at], constants.size, constants.fill)
            kept.append((int(places[at]), crop, clipped[at], (height, width)))
    if not kept:
        raise InputError(f"{file.path}: no crop to calibrate on; {problem}")
    kept.sort(key=lambda one: one[0])
    return Crops(
        rows[[one[0] for one in kept]],
        np.stack([one[1].transpose(2, 0, 1) for one in kept]).astype(np.float32),
        np.stack([one[2] for one in kept]),
        np.array([one[3] for one in kept]),
    )


def _in_turn(file: BoxFile, rows: Rows) -> Rows:
    """Reorder so that sizes take turns, and within each size the categories."""
    size, category = size_class(file.boxes[rows]), file.category[rows].astype(np.int64)
    order = np.argsort(_turn(size * (category.max() + 2) + category), kind="stable")
    return rows[order[np.argsort(_turn(size[order]), kind="stable")]]


def _turn(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many entries of the same group come before each one."""
    turn = np.empty(len(group), np.int64)
    for one in np.unique(group):
        where = group == one
        turn[where] = np.arange(where.sum())
    return turn
