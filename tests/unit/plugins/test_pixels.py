"""The compiled crops, masks and run lengths against those of `mal.crops` and `mal.masks`."""

import ctypes
import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mal import boxes
from mal.config import Fill
from mal.errors import MissingPackageError, ShapeError
from mal.images import read_image
from mal.plugins import host_library
from mal.plugins.pixels import NUMPY, Pixels, pixels
from mal.plugins.pixels import compiled as compiled_pixels

FILLS: tuple[Fill, ...] = ("reflect", "edge", "wrap")


@pytest.fixture(scope="module")
def compiled() -> Pixels:
    try:
        host_library.load_host()
    except MissingPackageError as error:
        pytest.skip(str(error))
    from mal.plugins.pixels.compiled import COMPILED

    return COMPILED


def assert_same_crops(
    compiled: Pixels, image: NDArray[np.uint8], rects: NDArray[np.float64], size: int, fill: Fill
) -> None:
    ours, judge = (cut(body, image, rects, size, fill) for body in (compiled, NUMPY))
    difference = np.abs(ours - judge)
    assert np.array_equal(ours, ours.astype(int))  # NaN is not
    assert difference.max(initial=0) <= 1  # Pillow rounds between its passes; docs/numerics.md


def cut(
    body: Pixels, image: NDArray[np.uint8], rects: NDArray[np.float64], size: int, fill: Fill
) -> NDArray[np.float32]:
    crops = np.full((len(rects), 3, size, size), np.nan, np.float32)
    body.cut_into(image, rects, fill, crops)
    return crops


sides = st.tuples(st.floats(0.01, 400), st.floats(0.01, 400))


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    low=st.tuples(st.floats(-300, 300), st.floats(-300, 300)),
    side=sides,
    size=st.sampled_from([1, 2, 31, 32]),
    fill=st.sampled_from(FILLS),
    seed=st.integers(0, 99),
)
@example((1, 1), (0, 0), (1, 1), 32, "wrap", 0)
@example((50, 60), (0, 0), (60, 50), 32, "reflect", 0)
@example((60, 20), (-3, -40), (25, 140), 32, "edge", 0)
def test_any_crop(
    compiled: Pixels,
    shape: tuple[int, int],
    low: tuple[float, float],
    side: tuple[float, float],
    size: int,
    fill: Fill,
    seed: int,
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    rects = np.array([[*low, low[0] + side[0], low[1] + side[1]], [0, 0, shape[1], shape[0]]])
    assert_same_crops(compiled, image, rects, size, fill)


def test_crops_of_views_and_white(compiled: Pixels, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (90, 80, 3), np.uint8)
    rects = np.array([[-5.0, 3.0, 60.0, 70.0], [50.0, 60.0, 80.0, 90.0]])
    for view in (image[::-1, ::2], image[10:, :70], image.transpose(1, 0, 2), image[:, :, ::-1]):
        assert_same_crops(compiled, view, rects, 32, "reflect")
    white = np.full((3000, 20, 3), 255, np.uint8)  # a thousand weights a value, each rounded
    assert cut(compiled, white, np.array([[0.0, 0.0, 20.0, 3000.0]]), 3, "edge").min() == 255
    assert cut(compiled, image, np.empty((0, 4)), 32, "edge").shape == (0, 3, 32, 32)


def test_the_same_crops_without_avx2(
    compiled: Pixels, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("there is one body only on this processor")
    image = rng.integers(0, 256, (300, 280, 3), np.uint8)
    rects = np.array([[-5.0, 3.0, 60.0, 70.0], [-30.0, -50.0, 300.0, 340.0], [20.0, 0.0, 29.0, 300.0]])
    fast = cut(compiled, image, rects, 33, "reflect")
    library = ctypes.CDLL(str(host_library.build_host(tmp_path, ("-mno-avx2",))))
    monkeypatch.setattr(compiled_pixels, "load_host", lambda: library)
    monkeypatch.setattr(compiled_pixels, "host", compiled_pixels.host.__wrapped__)
    assert np.array_equal(fast, cut(compiled, image, rects, 33, "reflect"))


def test_what_the_crop_refuses(compiled: Pixels) -> None:
    image = np.zeros((9, 9, 3), np.uint8)
    for rect in ([0, 0, 0, 5], [np.nan, 0, 5, 5], [0, 0, np.inf, 5], [0, 0, 1e6, 1e6]):
        for body in (compiled, NUMPY):
            with pytest.raises(ShapeError):
                cut(body, image, np.array([rect], np.float64), 32, "reflect")
    for shape in ((2, 3, 8, 8), (1, 3, 8, 9), (1, 8, 8, 3)):
        with pytest.raises(ShapeError, match="crops need"):
            compiled.cut_into(image, np.array([[0.0, 0, 5, 5]]), "edge", np.empty(shape, np.float32))


@pytest.mark.shared
def test_crops_of_real_photographs(compiled: Pixels, shared: Path) -> None:
    rng = np.random.default_rng(2)
    for path in sorted((shared / "data/coco-val/images").iterdir())[:5]:
        image = read_image(path)
        height, width = image.shape[:2]
        low = rng.uniform(0, [width, height], (8, 2))
        many = boxes.clip(np.concatenate([low, low + np.exp(rng.uniform(1, 6.5, (8, 2)))], axis=1), width, height)
        assert_same_crops(compiled, image, boxes.expand(many[boxes.usable(many)], 0.3), 192, "reflect")


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    cells=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    whole_height=st.booleans(),
    bias=st.sampled_from([-9.0, 0.0, 9.0, np.nan]),
    seed=st.integers(0, 999),
)
def test_any_mask_and_its_runs(
    compiled: Pixels, shape: tuple[int, int], cells: tuple[int, int], whole_height: bool, bias: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    height, width = shape
    low = rng.uniform(0, [width, height], (6, 2))
    found = np.concatenate([low, low + rng.uniform(0.01, 1, (6, 2)) * ([width, height] - low)], axis=1)
    if whole_height:  # a run may go on at the top of the next column
        found[:, 1], found[:, 3] = 0, height
    found = found[boxes.usable(found)]
    coarse = rng.standard_normal((len(found), *cells)).astype(np.float32)
    logits = coarse.repeat(2, axis=1).repeat(2, axis=2)
    logits[:, :1] += np.float32(bias)

    ours, judge = (body.masks_from_logits(logits, found, 0.3) for body in (compiled, NUMPY))

    assert [mask[:2] for mask in ours] == [mask[:2] for mask in judge]
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(ours, judge, strict=True))
    assert_same_runs(compiled, logits, found, [shape] * len(found))


def assert_same_runs(
    compiled: Pixels, logits: NDArray[np.float32], found: NDArray[np.float64], sizes: list[tuple[int, int]]
) -> None:
    (ours, our_areas), (judge, areas) = (body.runs_from_logits(logits, found, 0.3, sizes) for body in (compiled, NUMPY))
    assert ours == judge
    assert our_areas.tolist() == areas.tolist()


def test_runs_that_need_much_room(compiled: Pixels, rng: np.random.Generator) -> None:
    noise = rng.standard_normal((3, 300, 300)).astype(np.float32)
    found = np.array([[2.0, 3.0, 302.0, 303.0]] * 3)
    assert_same_runs(compiled, noise, found, [(320, 310)] * 3)
    with pytest.raises(ShapeError, match="1 sizes of images for 3 boxes"):
        compiled.runs_from_logits(noise, found, 0.3, [(320, 310)])
    for body in (compiled, NUMPY):
        with pytest.raises(ShapeError, match="leaves its image"):
            body.runs_from_logits(noise, found, 0.3, [(300, 310)] * 3)
        runs, areas = body.runs_from_logits(noise[:0], found[:0], 0.3, [])
        assert (runs, len(areas)) == ([], 0)


def test_without_the_library_numpy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mal.plugins.pixels.find_host", lambda: None)
    assert pixels.__wrapped__() is NUMPY
