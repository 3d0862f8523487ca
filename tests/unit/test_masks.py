"""Logits to masks to run lengths; pycocotools and a float64 formula are the judges."""

import itertools
import json

import cv2
import numpy as np
import pycocotools.mask as coco
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mal import boxes
from mal.errors import MalError, ShapeError
from mal.images import MAX_PIXELS
from mal.masks import BoxMask, area, decode, encode, mask_from_logits, masks_from_logits, polygons

# pycocotools 2.0.11 does not know NumPy 2's `copy` keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TIE = 1e-4  # |logit| below this: the order of float32 sums may decide the pixel


def smooth_logits(rng: np.random.Generator, count: int, size: int = 48) -> NDArray[np.float32]:
    noise = rng.standard_normal((count, size, size)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(one, (0, 0), size / 10) * size for one in noise])


# Decision ------------------------------------------------------------------------------------------------


def judge(logits: NDArray[np.float32], box: NDArray[np.float64], expansion: float) -> NDArray[np.float64]:
    """The definition, pixel by pixel in float64: the logit at each pixel centre of the box's window."""
    rect = boxes.expand(box[None], expansion)[0]
    x0, y0, x1, y1 = boxes.pixel_window(box)
    h, w = logits.shape
    values = np.empty((y1 - y0, x1 - x0))
    for row, column in np.ndindex(values.shape):
        x = min(max((x0 + column + 0.5 - rect[0]) / (rect[2] - rect[0]) * w - 0.5, 0), w - 1)
        y = min(max((y0 + row + 0.5 - rect[1]) / (rect[3] - rect[1]) * h - 0.5, 0), h - 1)
        i, j = int(y), int(x)
        below, right = min(i + 1, h - 1), min(j + 1, w - 1)
        top = logits[i, j] * (1 - (x - j)) + logits[i, right] * (x - j)
        bottom = logits[below, j] * (1 - (x - j)) + logits[below, right] * (x - j)
        values[row, column] = top * (1 - (y - i)) + bottom * (y - i)
    return values


def test_masks_are_those_of_the_definition(rng: np.random.Generator) -> None:
    pixels = ties = 0
    for logits in smooth_logits(rng, 60):
        low, side = rng.uniform(0, 500, 2), np.exp(rng.uniform(np.log(0.2), np.log(90), 2))
        box = np.concatenate([low, low + side])
        expansion = float(rng.choice([0.0, 0.3, 1.0]))

        mask = mask_from_logits(logits, box, expansion)

        values = judge(logits, box, expansion)
        assert mask.pixels.shape == values.shape
        assert (mask.x0, mask.y0) == boxes.pixel_window(box)[:2]
        different = mask.pixels != (values > 0)
        assert not np.any(different & (np.abs(values) > TIE))
        pixels, ties = pixels + values.size, ties + int(different.sum())
    print(f"{ties} of {pixels} pixels decided by rounding")
    assert ties <= pixels * 1e-3


def test_a_window_of_several_parts_is_decided_as_one(rng: np.random.Generator) -> None:
    logits = smooth_logits(rng, 1)[0]
    box = np.array([0.0, 0.0, 900.0, 700.0])
    mask = mask_from_logits(logits, box, 0.3)
    at = rng.integers(0, (700, 900), (2000, 2))
    rows, columns = at.T
    y = np.clip((rows + 0.5 + 105) / 910 * 48 - 0.5, 0, 47)
    x = np.clip((columns + 0.5 + 135) / 1170 * 48 - 0.5, 0, 47)
    i, j = y.astype(int), x.astype(int)
    below, right, v, u = np.minimum(i + 1, 47), np.minimum(j + 1, 47), y - i, x - j
    top = logits[i, j] * (1 - u) + logits[i, right] * u
    values = top * (1 - v) + (logits[below, j] * (1 - u) + logits[below, right] * u) * v
    assert not np.any((mask.pixels[rows, columns] != (values > 0)) & (np.abs(values) > TIE))


def test_worked_by_hand() -> None:
    """Two cells over four pixels: centres fall at -0.25 (clamped to 0), 0.25, 0.75, 1.25 (clamped to 1)."""
    logits = np.array([[-1.0, 2.0]], np.float32)  # values at the centres: -1, -0.25, 1.25, 2
    mask = mask_from_logits(logits, np.array([10.0, 5.0, 14.0, 6.0]), 0.0)
    assert mask.pixels.tolist() == [[False, False, True, True]]
    assert (mask.x0, mask.y0, area(mask)) == (10, 5, 2)


@pytest.mark.parametrize("box", [[3.6, 3.6, 4.4, 4.4], [0.0, 0.0, 0.3, 0.3], [7.0, 2.0, 7.01, 9.0]])
def test_a_box_without_a_pixel_centre_has_one_pixel(box: list[float]) -> None:
    mask = mask_from_logits(np.ones((48, 48), np.float32), np.array(box), 0.3)
    assert mask.pixels.tolist() == [[True]]


def test_zero_and_nan_are_background() -> None:
    box = np.array([0.0, 0.0, 20.0, 20.0])
    assert area(mask_from_logits(np.zeros((8, 8), np.float32), box, 0.3)) == 0
    assert area(mask_from_logits(np.full((8, 8), np.nan, np.float32), box, 0.3)) == 0


def test_batch_mates_change_nothing(rng: np.random.Generator) -> None:
    logits = smooth_logits(rng, 8)
    low = rng.uniform(0, 300, (8, 2))
    many = np.concatenate([low, low + rng.uniform(1, 200, (8, 2))], axis=1)
    together = masks_from_logits(logits, many, 0.3)
    for mask, one, box in zip(together, logits, many, strict=True):
        alone = mask_from_logits(one, box, 0.3)
        assert np.array_equal(mask.pixels, alone.pixels)


# Run lengths ---------------------------------------------------------------------------------------------


def whole(mask: BoxMask, height: int, width: int) -> NDArray[np.bool_]:
    image = np.zeros((height, width), bool)
    h, w = mask.pixels.shape
    image[mask.y0 : mask.y0 + h, mask.x0 : mask.x0 + w] = mask.pixels
    return image


def judge_counts(mask: BoxMask, height: int, width: int) -> bytes:
    return coco.encode(np.asfortranarray(whole(mask, height, width), np.uint8))["counts"]


@st.composite
def masks_in_images(draw: st.DrawFn) -> tuple[BoxMask, tuple[int, int]]:
    """Windows of every position, often as high or as wide as the image; pixels from empty to full."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    h = draw(st.one_of(st.just(height), st.integers(1, height)))
    w = draw(st.one_of(st.just(width), st.integers(1, width)))
    y0, x0 = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
    share = draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    seed = draw(st.integers(0, 2**32 - 1))
    return BoxMask(x0, y0, np.random.default_rng(seed).random((h, w)) < share), (height, width)


FULL = (BoxMask(0, 0, np.ones((7, 9), bool)), (7, 9))
EMPTY = (BoxMask(2, 3, np.zeros((2, 2), bool)), (7, 9))


@settings(max_examples=300, deadline=None)
@example([])
@example([FULL])
@example([EMPTY, FULL, EMPTY])
@given(st.lists(masks_in_images(), max_size=6))
def test_run_lengths_equal_pycocotools(cases: list[tuple[BoxMask, tuple[int, int]]]) -> None:
    counts = encode([mask for mask, _ in cases], [size for _, size in cases])
    assert counts == [judge_counts(mask, *size) for mask, size in cases]
    for count, (mask, size) in zip(counts, cases, strict=True):
        assert np.array_equal(decode(count, *size), whole(mask, *size))


SHAPES = {"one-pixel": (1, 1), "row": (1, 5), "column": (5, 1), "square": (4, 4)}


@pytest.mark.parametrize(("height", "width"), [(5, 5), (6, 5), (5, 6), (6, 6), (5, 8192), (270, 8192)])
@pytest.mark.parametrize(("h", "w"), SHAPES.values(), ids=SHAPES.keys())
def test_all_four_corners_up_to_8k(h: int, w: int, height: int, width: int) -> None:
    masks = [BoxMask(x, y, np.ones((h, w), bool)) for x, y in itertools.product((0, width - w), (0, height - h))]
    assert encode(masks, [(height, width)] * 4) == [judge_counts(mask, height, width) for mask in masks]


def test_numbers_of_every_length() -> None:
    """From one character to six: gaps that grow by the power of the compression's base."""
    height, width = 8192, 8192
    for gap in (1, 15, 16, 17, 511, 512, 16383, 16384, 524287, 524288, 16777215, 16777216):
        column, row = divmod(gap, height)
        mask = BoxMask(column, row, np.ones((1, 1), bool))
        counts = encode([mask], [(height, width)])[0]
        image = {"size": [height, width], "counts": counts}
        assert int(coco.area(image)) == 1
        assert coco.toBbox(image).tolist() == [column, row, 1, 1]
        runs = coco.frPyObjects({"size": [height, width], "counts": [gap, 1, height * width - gap - 1]}, height, width)
        assert counts == runs["counts"]


def test_more_masks_than_one_batch(rng: np.random.Generator) -> None:
    masks = [BoxMask(int(x), int(y), rng.random((200, 150)) < 0.5) for x, y in rng.integers(0, 50, (40, 2))]
    sizes = [(256, 300)] * 40
    assert encode(masks, sizes) == [judge_counts(mask, 256, 300) for mask in masks]


def test_a_window_outside_its_image_is_refused() -> None:
    for x, y in [(-1, 0), (0, -1), (8, 0), (0, 8)]:
        with pytest.raises(ShapeError, match="leaves its image"):
            encode([BoxMask(x, y, np.ones((3, 3), bool))], [(10, 10)])


def test_counts_are_plain_json_text(rng: np.random.Generator) -> None:
    counts = encode([BoxMask(0, 0, rng.random((90, 90)) < 0.5)], [(100, 100)])[0]
    assert json.loads(json.dumps(counts.decode("ascii"))).encode() == counts


# Decoding what others wrote ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (b"", "empty"),
        (b"P", "within a number"),
        (b"0 ", "character"),
        ("é".encode(), "character"),
        (b"\xff", "character"),
        (b"4", "fill 4 pixels"),
        (b"0d0", "fill 20 pixels"),
        (b"O1", "negative"),
        (b"oooooooooo0", "bits"),
        (b"PPPPPPPPPPPP0", "bits"),
    ],
)
def test_bad_run_lengths_are_refused(counts: bytes, reason: str) -> None:
    with pytest.raises(MalError, match=reason) as caught:
        decode(counts, 3, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (MAX_PIXELS, 2), (2**40, 2**40)])
def test_impossible_sizes_are_refused_before_memory_is(size: tuple[int, int]) -> None:
    with pytest.raises(MalError, match="expected 1 to"):
        decode(b"0", *size)


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(st.binary(max_size=12), st.binary(max_size=12).map(lambda text: bytes(48 + byte % 64 for byte in text)))
)
def test_any_bytes_decode_as_by_pycocotools_or_are_refused(counts: bytes) -> None:
    try:
        mask = decode(counts, 5, 7)
    except MalError:
        return
    assert np.array_equal(mask, coco.decode({"size": [5, 7], "counts": counts}))


@settings(max_examples=200, deadline=None)
@given(masks_in_images(), st.data())
def test_a_changed_character_never_passes_unseen(case: tuple[BoxMask, tuple[int, int]], data: st.DataObject) -> None:
    mask, size = case
    counts = bytearray(encode([mask], [size])[0])
    counts[data.draw(st.integers(0, len(counts) - 1))] = data.draw(st.integers(48, 111))
    try:
        decoded = decode(bytes(counts), *size)
    except MalError:
        return
    assert np.array_equal(decoded, coco.decode({"size": list(size), "counts": bytes(counts)}))


# Polygons ------------------------------------------------------------------------------------------------


def filled(image: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with its holes filled: what polygons can say."""
    around = np.pad(image, 1)
    _, labels = cv2.connectedComponents((~around).astype(np.uint8), connectivity=4)
    return (labels != labels[0, 0])[1:-1, 1:-1]


@settings(max_examples=300, deadline=None)
@given(masks_in_images())
def test_polygons_survive_pycocotools_but_for_holes(case: tuple[BoxMask, tuple[int, int]]) -> None:
    mask, size = case
    outlines = polygons(mask)
    assert bool(outlines) == bool(mask.pixels.any())
    assert all(len(outline) >= 6 and len(outline) % 2 == 0 for outline in outlines)
    if outlines:
        back = coco.decode(coco.merge(coco.frPyObjects(outlines, *size)))
        assert np.array_equal(back, filled(whole(mask, *size)))


def test_one_pixel_is_a_square_and_parts_are_apart() -> None:
    mask = BoxMask(10, 20, np.array([[True, False, True]]))
    assert sorted(tuple(sorted(zip(part[::2], part[1::2], strict=True))) for part in polygons(mask)) == [
        ((10, 20), (10, 21), (11, 20), (11, 21)),
        ((12, 20), (12, 21), (13, 20), (13, 21)),
    ]


def test_a_hole_is_lost() -> None:
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert len(polygons(BoxMask(0, 0, ring))) == 1
    assert len(polygons(BoxMask(0, 0, ring))[0]) == 8
