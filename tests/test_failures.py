"""benchmarks/failures: the rule that chooses, and the colours that tell what is wrong."""

import numpy as np
import pytest

from benchmarks.failures import BOTH, CELL, MISSED, TOO_MUCH, draw, worst
from mal.datasets.segmentations import coco_mask
from mal.evaluation.pairs import Pair


def pair(number: int, image: int, true: tuple[int, int], ours: tuple[int, int] | None, side: int = 20) -> Pair:
    """Masks of `side` rows from the first to the second column, in an image of 100 x 200."""

    def rle(columns: tuple[int, int]):
        mask = np.zeros((100, 200), np.uint8, order="F")
        mask[10 : 10 + side, slice(*columns)] = 1
        return coco_mask.encode(mask)

    box = np.array([true[0], 10, true[1], 10 + side], np.float64)
    return Pair(number, image, 1, box, rle(true), None if ours is None else rle(ours), None)


def test_the_lowest_iou_of_each_size_one_an_image() -> None:
    pairs = [
        pair(1, 0, (0, 20), (0, 10)),  # .5
        pair(2, 0, (0, 20), (0, 15)),  # .75, of the same image
        pair(3, 1, (0, 20), None),
        pair(4, 2, (0, 20), (0, 20)),  # 1
        pair(5, 0, (0, 64), (0, 32), side=16),  # 1,024 pixels: the last small one
        pair(6, 3, (0, 65), (0, 65), side=16),
        pair(7, 3, (0, 120), (60, 120), side=80),  # 9,600 pixels
    ]
    found = {size: [(each.pair.annotation_id, each.iou) for each in row] for size, row in worst(pairs, 2).items()}
    assert found == {"small": [(3, 0), (1, 0.5)], "medium": [(6, 1)], "large": [(7, 0.5)]}


@pytest.mark.parametrize("photographed", [False, True])
def test_the_colours_say_what_is_wrong(photographed: bool) -> None:
    photograph = np.full((100, 200, 3), 90, np.uint8) if photographed else None
    picture = draw(pair(1, 0, (50, 90), (70, 110), side=40), photograph).astype(int)
    assert picture.shape == (CELL, CELL, 3)
    # The box is 40 pixels of a window of 52: missed left of the middle, both right of it, too much behind the box.
    for x, colour in ((0.3, MISSED), (0.7, BOTH), (0.95, TOO_MUCH)):
        expected = np.array(colour) if photograph is None else 90 + 0.4 * (np.array(colour) - 90)
        assert np.abs(picture[CELL // 2, round(x * CELL)] - expected).max() <= 1, x
