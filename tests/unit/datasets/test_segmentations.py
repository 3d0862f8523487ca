import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mal.datasets.segmentations import to_mask, to_rle
from mal.errors import InputError

SQUARE = np.zeros((6, 8), bool)
SQUARE[1:4, 2:7] = True
COUNTS = coco_mask.encode(np.asfortranarray(SQUARE.astype(np.uint8)))["counts"].decode()
RUNS = [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 8]


@pytest.mark.parametrize(
    "segmentation",
    [
        [[2, 1, 7, 1, 7, 4, 2, 4]],
        [[2, 1, 4, 1, 4, 4, 2, 4], [4, 1, 7, 1, 7, 4, 4, 4]],
        {"size": [6, 8], "counts": COUNTS},
        {"size": [6, 8], "counts": RUNS},
    ],
    ids=["polygon", "two polygons", "compressed", "uncompressed"],
)
def test_every_kind_says_the_same(segmentation: object) -> None:
    rle = to_rle(segmentation, 6, 8)
    assert rle is not None
    assert np.array_equal(to_mask(rle), SQUARE)


@pytest.mark.parametrize("segmentation", [None, []])
def test_no_mask(segmentation: object) -> None:
    assert to_rle(segmentation, 6, 8) is None


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("text", "neither polygons nor RLE"),
        ({"counts": COUNTS}, "size None"),
        ({"size": [8, 6], "counts": COUNTS}, "size \\[8, 6\\] on an image of \\[6, 8\\]"),
        ({"size": [6, 8]}, "without counts"),
        ({"size": [6, 8], "counts": 7}, "without counts"),
        ({"size": [6, 8], "counts": "naïve"}, "without counts"),
        ({"size": [6, 8], "counts": COUNTS + "9"}, "broken RLE"),
        ({"size": [6, 8], "counts": COUNTS[:-1]}, "broken RLE"),
        ({"size": [6, 8], "counts": ""}, "broken RLE"),
        ({"size": [6, 8], "counts": [*RUNS, 1]}, "sum to 48"),
        ({"size": [6, 8], "counts": [49, -1]}, "sum to 48"),
        ({"size": [6, 8], "counts": [48.0]}, "sum to 48"),
        ([[1, 1, 5, 5]], "three corners"),
        ([[1, 1, 5, 5, 3]], "three corners"),
        ([3, 4], "three corners"),
        ([[1, 1, 5, 5, 3, float("nan")]], "no number"),
        ([[1, 1, 5, 5, 3, 1e12]], "far outside"),
        ([[1, 1, 5, 5, 3, "4"]], "no number"),
    ],
)
def test_damage_is_named(segmentation: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_rle(segmentation, 6, 8)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12))
def test_random_counts_never_crash(counts: str) -> None:
    """pycocotools reads beyond its buffers on such text: it must not see any."""
    try:
        rle = to_rle({"size": [6, 8], "counts": counts}, 6, 8)
    except InputError:
        return
    assert rle is not None
    assert to_mask(rle).shape == (6, 8)
