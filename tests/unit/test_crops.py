"""Crops against the judge: Pillow's resize(box=...) of the whole filled image."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mal import boxes
from mal.config import Fill
from mal.crops import cut_crop, cut_crops, to_input
from mal.errors import ShapeError
from mal.images import read_image

FILLS: dict[Fill, str] = {"reflect": "symmetric", "edge": "edge", "wrap": "wrap"}  # by numpy.pad's names
ROUNDING = 1  # grey levels: Pillow rounds between its two passes, and their order depends on the size of its image


def photo(rng: np.random.Generator, height: int = 90, width: int = 120) -> NDArray[np.uint8]:
    """Like a photograph: smooth areas, edges, and noise on top."""
    coarse = rng.integers(0, 255, (height // 12 + 2, width // 12 + 2, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    smooth[height // 3 :, width // 2 :] = 255 - smooth[height // 3 :, width // 2 :]
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def judge(image: NDArray[np.uint8], rect: NDArray[np.float64], size: int, fill: Fill) -> NDArray[np.uint8]:
    """Pad the whole image far enough on all sides, and let Pillow do the rest."""
    height, width = image.shape[:2]
    support = np.ceil(np.max((rect[2:] - rect[:2]) / size)) + 3
    far = int(max(0, *(-rect[:2]), rect[2] - width, rect[3] - height) + support + 1)
    padded = np.pad(image, ((far, far), (far, far), (0, 0)), mode=FILLS[fill])
    return np.asarray(Image.fromarray(padded).resize((size, size), Image.Resampling.BILINEAR, box=tuple(rect + far)))


def assert_equal_to_judge(image: NDArray[np.uint8], rects: NDArray[np.float64], size: int, fill: Fill) -> None:
    crops = cut_crops(image, rects, size, fill)
    expected = np.stack([judge(image, rect, size, fill) for rect in rects])
    difference = np.abs(crops.astype(int) - expected)
    print(f"{fill} {size}: {np.count_nonzero(difference)} of {difference.size} values differ, most {difference.max()}")
    assert difference.max() <= ROUNDING
    assert np.count_nonzero(difference) <= 0.2 * difference.size


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("size", [32, 96, 192])
def test_crops_of_boxes_anywhere(rng: np.random.Generator, fill: Fill, size: int) -> None:
    image = photo(rng)
    low = rng.uniform(-10, 110, (40, 2))
    many = boxes.clip(np.concatenate([low, low + np.exp(rng.uniform(0, 5, (40, 2)))], axis=1), 120, 90)
    assert_equal_to_judge(image, boxes.expand(many[boxes.usable(many)], 0.3), size, fill)


RECTS = {
    "one-pixel-box": [50.0, 40.0, 51.3, 41.3],
    "thin": [10.0, 3.0, 110.0, 3.4],
    "whole-image": [0.0, 0.0, 120.0, 90.0],
    "on-the-grid": [10.0, 10.0, 42.0, 42.0],
    "corner": [-9.5, -9.5, 20.0, 20.0],
    "all-sides-out": [-18.0, -13.5, 138.0, 103.5],
    "wholly-outside": [200.0, 150.0, 260.0, 180.0],
    "far-outside": [-1000.5, 700.0, -900.0, 777.7],
    "ten-times-the-image": [-500.0, -400.0, 700.0, 500.0],
}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("rect", RECTS.values(), ids=RECTS.keys())
def test_awkward_rectangles(rng: np.random.Generator, rect: list[float], fill: Fill) -> None:
    assert_equal_to_judge(photo(rng), np.array([rect]), 32, fill)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_tiny_images(rng: np.random.Generator, shape: tuple[int, int], fill: Fill) -> None:
    image = rng.integers(0, 255, (*shape, 3), np.uint8)
    box = np.array([[0.0, 0.0, shape[1], shape[0]]])
    assert_equal_to_judge(image, boxes.expand(box, 0.3), 32, fill)


def test_a_rectangle_of_thousands_of_pixels(rng: np.random.Generator) -> None:
    image = np.tile(photo(rng, 300, 400), (8, 10, 1))
    assert_equal_to_judge(image, np.array([[-300.7, -200.2, 4300.4, 2600.3]]), 96, "reflect")


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(*[st.floats(-200, 200, width=32)] * 2),
    st.tuples(*[st.floats(0.01, 300)] * 2),
    st.sampled_from(list(FILLS)),
)
def test_any_rectangle(low: tuple[float, float], side: tuple[float, float], fill: Fill) -> None:
    image = photo(np.random.default_rng(1), 40, 30)
    rect = np.array([*low, low[0] + side[0], low[1] + side[1]])
    difference = np.abs(cut_crop(image, rect, 32, fill).astype(int) - judge(image, rect, 32, fill))
    assert difference.max() <= ROUNDING


@pytest.mark.shared
def test_crops_of_real_photographs(shared: Path) -> None:
    """Boxes of all sizes on photographs, those that leave the image among them."""
    rng = np.random.default_rng(2)
    for path in sorted((shared / "data/coco-val/images").iterdir())[:5]:
        image = read_image(path)
        height, width = image.shape[:2]
        low = rng.uniform(0, [width, height], (8, 2))
        many = boxes.clip(np.concatenate([low, low + np.exp(rng.uniform(1, 6.5, (8, 2)))], axis=1), width, height)
        assert_equal_to_judge(image, boxes.expand(many[boxes.usable(many)], 0.3), 192, "reflect")


def test_worked_by_hand() -> None:
    """Two columns enlarged to four: centres at 0.25, 0.75, 1.25, 1.75, that is weights 1, 3/4, 1/4, 0 of the left."""
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 100
    assert cut_crop(image, np.array([0.0, 0.0, 2.0, 1.0]), 4, "edge")[0, :, 0].tolist() == [0, 25, 75, 100]


def test_what_each_fill_reads() -> None:
    image = np.repeat(np.array([[[10], [20], [30]]], np.uint8), 3, axis=2)
    rect = np.array([-4.0, 0.0, 7.0, 11.0])
    row = {fill: cut_crop(image, rect, 11, fill)[0, :, 0].tolist() for fill in FILLS}
    assert row == {
        "reflect": [30, 30, 20, 10, 10, 20, 30, 30, 20, 10, 10],
        "edge": [10, 10, 10, 10, 10, 20, 30, 30, 30, 30, 30],
        "wrap": [30, 10, 20, 30, 10, 20, 30, 10, 20, 30, 10],
    }


def test_a_view_of_an_image_is_cut_like_its_copy(rng: np.random.Generator) -> None:
    image = photo(rng)
    rects = np.array([[-5.0, 3.0, 60.0, 70.0], [10.0, 10.0, 40.0, 40.0]])
    view = image[::-1, ::2]
    assert np.array_equal(cut_crops(view, rects, 32, "reflect"), cut_crops(view.copy(), rects, 32, "reflect"))


def test_no_rectangles_no_crops(rng: np.random.Generator) -> None:
    assert cut_crops(photo(rng), np.empty((0, 4)), 32, "edge").shape == (0, 32, 32, 3)
    assert to_input(np.empty((0, 32, 32, 3), np.uint8)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    "rect",
    [[0, 0, 0, 5], [5, 5, 2, 9], [np.nan, 0, 5, 5], [0, 0, np.inf, 5], [0, 0, 1e6, 1e6], [-1e308, 0, 1e308, 5]],
)
def test_impossible_rectangles(rng: np.random.Generator, rect: list[float]) -> None:
    with pytest.raises(ShapeError):
        cut_crop(photo(rng), np.array(rect, np.float64), 32, "reflect")


@pytest.mark.parametrize("image", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3))])
def test_no_image(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ShapeError, match=r"\(H, W, 3\) uint8"):
        cut_crop(image, np.array([0.0, 0.0, 2.0, 2.0]), 32, "reflect")


def test_the_networks_input_keeps_every_value(rng: np.random.Generator) -> None:
    crops = rng.integers(0, 255, (5, 32, 32, 3), np.uint8)
    batch = to_input(crops)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert np.array_equal(batch, crops.transpose(0, 3, 1, 2))
    again = np.empty_like(batch)
    assert to_input(crops, out=again) is again
    assert np.array_equal(again, batch)
