"""Box geometry: worked cases and what must hold for every box."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mal import boxes
from mal.errors import ShapeError

WIDTH, HEIGHT = 640, 480


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(boxes).failed == 0


def test_coco_boxes_become_corners() -> None:
    assert boxes.from_xywh(np.array([[10.0, 20.0, 5.0, 6.0]])).tolist() == [[10, 20, 15, 26]]


@pytest.mark.parametrize("wrong", [[1, 2, 3, 4], [[1, 2, 3]], [["a", 1, 2, 3]], [[1, 2, 3, 4], [1]], [[[1, 2, 3, 4]]]])
def test_what_is_no_boxes(wrong: object) -> None:
    with pytest.raises(ShapeError):
        boxes.as_boxes(wrong)


def test_no_boxes_are_fine() -> None:
    assert boxes.as_boxes([]).shape == (0, 4)
    assert boxes.expand(boxes.clip(boxes.as_boxes([]), 5, 5), 0.3).shape == (0, 4)


def test_partly_and_wholly_outside() -> None:
    outside = np.array([[-5.0, -5.0, 10.0, 10.0], [700.0, 0.0, 800.0, 10.0], [-9.0, -9.0, -1.0, -1.0]])
    clipped = boxes.clip(outside, WIDTH, HEIGHT)
    assert clipped[0].tolist() == [0, 0, 10, 10]
    assert boxes.usable(clipped).tolist() == [True, False, False]


def test_unusable_numbers() -> None:
    rows = np.array([[np.nan, 0, 5, 5], [5, 5, 5, 9], [9, 9, 2, 12], [0, 0, 0, 0], [1, 1, 2, 2]])
    assert boxes.usable(boxes.clip(rows, WIDTH, HEIGHT)).tolist() == [False, False, False, False, True]


edges = st.floats(-50, 700, width=64)


@st.composite
def clipped_boxes(draw: st.DrawFn) -> NDArray[np.float64]:
    low = np.array([draw(edges), draw(edges)])
    side = np.array([draw(st.floats(1e-9, 700)), draw(st.floats(1e-9, 700))])
    return boxes.clip(np.concatenate([low, low + side])[None], WIDTH, HEIGHT)[0]


@settings(deadline=None)
@given(clipped_boxes())
def test_the_window_holds_exactly_the_pixel_centres(box: NDArray[np.float64]) -> None:
    if not boxes.usable(box[None])[0]:
        return
    x0, y0, x1, y1 = boxes.pixel_window(box)
    assert 0 <= x0 < x1 <= WIDTH
    assert 0 <= y0 < y1 <= HEIGHT
    columns, rows = np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5
    inside_x, inside_y = (columns >= box[0]) & (columns < box[2]), (rows >= box[1]) & (rows < box[3])
    if inside_x.any() and inside_y.any():
        assert np.array_equal(np.flatnonzero(inside_x), np.arange(x0, x1))
        assert np.array_equal(np.flatnonzero(inside_y), np.arange(y0, y1))
    else:
        assert (x1 - x0, y1 - y0) == (1, 1)
        assert x0 <= (box[0] + box[2]) / 2 <= x1
        assert y0 <= (box[1] + box[3]) / 2 <= y1


def test_a_sliver_at_the_far_edge_stays_in_the_image() -> None:
    box = np.array([WIDTH - 1e-6, HEIGHT - 1e-6, WIDTH, HEIGHT])
    assert boxes.pixel_window(box) == (WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT)


@settings(deadline=None)
@given(clipped_boxes(), st.floats(0, 2))
def test_the_box_is_the_centre_of_its_crop(box: NDArray[np.float64], expansion: float) -> None:
    rect = boxes.expand(box[None], expansion)[0]
    assert rect[2:] - rect[:2] == pytest.approx((box[2:] - box[:2]) * (1 + expansion), abs=1e-9)
    assert (rect[:2] + rect[2:]) / 2 == pytest.approx((box[:2] + box[2:]) / 2, abs=1e-9)
