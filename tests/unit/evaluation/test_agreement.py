import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mal.evaluation.agreement import boundary_iou, compare, floors, tight_window


def boundary_of_whole_image(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The definition of the paper, word for word: pad by one pixel of background, erode d times by 3 x 3."""
    distance = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask & (eroded == 0)


def blob(rng: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    noise = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), rng.uniform(2, 20))
    return noise > np.quantile(noise, rng.uniform(0.2, 0.95))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 300), (240, 320), (480, 640)])
def test_window_gives_the_same_boundary_as_the_whole_image(height: int, width: int, rng: np.random.Generator) -> None:
    for _ in range(5):
        a, b = blob(rng, height, width), blob(rng, height, width)
        a[: height // 3] = False  # so that the window is smaller than the image
        b[: height // 3] = False
        bands = boundary_of_whole_image(a), boundary_of_whole_image(b)
        both = (bands[0] | bands[1]).sum()

        assert boundary_iou(a, b) == pytest.approx((bands[0] & bands[1]).sum() / both if both else 0, abs=1e-12)


def test_boundary_of_a_shifted_square() -> None:
    """100 x 100 image: band of round(2.83) = 3 pixels. A 20 x 20 square has 400 - 14 * 14 = 204 pixels in it."""
    a, b = np.zeros((2, 100, 100), bool)
    a[40:60, 40:60] = True
    b[40:60, 70:90] = True
    assert boundary_iou(a, a) == 1
    assert boundary_iou(a, b) == 0
    b[:] = False
    b[43:57, 43:57] = True  # what is left of the square: its whole band lies outside the other's
    assert boundary_iou(a, b) == 0
    b[42:58, 42:58] = True  # 16 x 16: its band is the ring of 256 - 100 pixels, of which 256 - 196 are common
    assert boundary_iou(a, b) == pytest.approx(60 / (204 + 156 - 60))


def test_nothing_has_no_boundary() -> None:
    nothing = np.zeros((5, 5), bool)
    assert boundary_iou(nothing, nothing) == 0
    assert tight_window(nothing) is None
    assert compare(None, ~nothing, np.array([0.0, 0, 5, 5])) == (0, 1, pytest.approx(21 / 25))


def test_floors_of_a_filled_box() -> None:
    truth = np.zeros((50, 60), bool)
    truth[10:30, 20:50] = True
    box, ellipse = floors(truth, np.array([20.0, 10.0, 50.0, 30.0]))
    assert box == 1
    assert ellipse == pytest.approx(np.pi / 4, abs=0.01)


def test_floors_count_the_truth_outside_the_box() -> None:
    truth = np.zeros((10, 10), bool)
    truth[0:2, 0:8] = True
    assert floors(truth, np.array([0.0, 0.0, 4.0, 2.0]))[0] == 8 / 16


def test_box_without_area_has_floors_of_zero() -> None:
    assert floors(np.ones((10, 10), bool), np.array([3.0, 3.0, 3.0, 9.0])) == (0, 0)
    assert floors(np.ones((10, 10), bool), np.array([10.0, 3.0, 10.0, 9.0])) == (0, 0)
