"""Copy-paste: another labelled object in front of this one, or behind it.

A box does not say who owns a pixel where objects overlap, and labels made from boxes give most such pixels to
everyone. A pasted object is the exception: the labels say exactly whose pixels are whose.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from mal.train.labels import UNKNOWN, Labels
from mal.train.samples import Samples

SIDE = (0.22, 1.0)  # side of the pasted box, in units of the window
PLACE = (-0.1, 1.1)  # its centre
STRETCH = 0.3  # of each side, e ** +-STRETCH
LEAST_LEFT, LEAST_EXTENT = 0.4, 0.9  # of the covered object's area, and of its rows and columns


class Occluders:
    """Objects to paste: the better labelled half of the labelled ones."""

    def __init__(self, samples: Samples, labels: Labels) -> None:
        self.samples, self.labels = samples, labels
        good = labels.trust[labels.trust > 0]
        self.rows = np.flatnonzero(labels.trust >= np.median(good)) if len(good) else np.zeros(0, np.int64)

    def over(
        self,
        crop: NDArray[np.uint8],
        target: NDArray[np.float32],
        known: NDArray[np.float32],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Paste one object into a labelled view.

        Args:
            crop: (S, S, 3) RGB.
            target, known: (h, w) 0..1: share of object times known, and known.

        Returns:
            The three, changed: cells of the pasted object are known background. And (n, 4) its box, in units of the
            view. Unchanged and no box where nothing of it would be seen, or where it hides so much that the box would
            not be the box of what is left.
        """
        unchanged = crop, target, known, np.zeros((0, 4), np.float32)
        if not len(self.rows):
            return unchanged
        row, size = int(rng.choice(self.rows)), len(crop)
        move = self._move(size, rng)
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        label = self.labels.maps[row]
        cover = _warp(np.where(label == UNKNOWN, 0, label)[:, flip], move, size).astype(np.float32) / 255
        if rng.random() < 0.5:  # behind: hidden by the object and by what may be the object
            free = cv2.resize(known - target, (size, size), interpolation=cv2.INTER_LINEAR)
            cover = cover * np.clip(free, 0, 1)
        cells = cv2.resize(cover, target.shape[::-1], interpolation=cv2.INTER_AREA)
        left = target * (1 - cells)
        if cells.max() < 0.5 or left.sum() < LEAST_LEFT * target.sum():
            return unchanged
        for axis in (0, 1):
            before, after = ((part > 0.5).any(axis).sum() for part in (target, left))
            if after < LEAST_EXTENT * before:
                return unchanged
        soft = cv2.GaussianBlur(cover, (0, 0), 1.0)[..., None]  # no edge of one pixel that would give it away
        front = _warp(self.samples.pixels[row][:, flip], move, size)
        pasted = (crop + soft * (front.astype(np.float32) - crop)).astype(np.uint8)
        corners = (
            move @ np.column_stack([self.samples.box.reshape(2, 2), [1, 1]]).T
        )  # the box is central: a flip keeps it
        return pasted, left, np.maximum(known, cells > 0.5), (corners.T.reshape(1, 4) / size).astype(np.float32)

    def _move(self, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """(2, 3) from units of the cached crop to pixels of the view."""
        box = self.samples.box
        side = np.exp(rng.uniform(*np.log(SIDE)) + rng.uniform(-STRETCH, STRETCH, 2))
        scale = size * side / (box[2:] - box[:2])
        return np.column_stack([np.diag(scale), size * rng.uniform(*PLACE, 2) - scale / 2])


def _warp(image: NDArray[np.uint8], move: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    move = move.copy()
    move[:, :2] /= len(image)
    move[:, 2] += np.diag(move) / 2 - 0.5  # OpenCV counts from pixel centres
    return cv2.warpAffine(np.ascontiguousarray(image), move, (size, size), flags=cv2.INTER_LINEAR).astype(np.uint8)
