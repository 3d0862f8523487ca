"""Our crop for nvdspreprocess, its lines on the CPU, against mal.crops; NV12 against the formula of its standard."""

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sdk import HERE, PLUGIN, build_library

from mal.crops import cut_crop

FILLS = {"reflect": 0, "edge": 1, "wrap": 2}
SIZE = 24


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return build_library("mal_test_crop", [PLUGIN / "frame.cpp", HERE / "crop_on_cpu.cpp"])


def cut(library, planes: np.ndarray, width: int, height: int, rect, fill: str, colour: int) -> np.ndarray:
    out = np.empty((3, SIZE, SIZE), np.float32)
    edges = (ctypes.c_double * 4)(*rect)
    known = library.crop_on_cpu(
        ctypes.c_void_p(planes.ctypes.data), width, height, planes.shape[1], colour, edges, SIZE, FILLS[fill],
        ctypes.c_void_p(out.ctypes.data),
    )  # fmt: skip
    assert known
    return out.transpose(1, 2, 0)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), width=st.integers(4, 90), height=st.integers(4, 90), x=st.floats(-60, 60),
    y=st.floats(-60, 60), w=st.floats(1, 150), h=st.floats(1, 150), fill=st.sampled_from(sorted(FILLS)),
)  # fmt: skip
def test_a_crop_is_that_of_mal_crops(library, seed, width, height, x, y, w, h, fill) -> None:
    picture = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    rgba = np.dstack([picture, np.zeros((height, width), np.uint8)]).reshape(height, 4 * width).copy()
    rect = np.array([x, y, x + w, y + h])
    ours = cut(library, rgba, width, height, rect, fill, 19)
    judged = cut_crop(picture, rect, SIZE, fill).astype(float)
    # Pillow rounds after each of its two passes; half a level each, and the border pixels of float edges.
    assert np.abs(ours - judged).max() <= 1.5


@pytest.mark.parametrize(("colour", "red", "blue", "full"), [
    (6, 0.299, 0.114, False), (7, 0.299, 0.114, True), (33, 0.2126, 0.0722, False), (34, 0.2126, 0.0722, True),
])  # fmt: skip
def test_nv12_is_read_by_its_standard(library, rng, colour, red, blue, full) -> None:
    rgb = rng.uniform(20, 235, (1, 1, 3))
    weights = np.array([red, 1 - red - blue, blue])
    luma = (rgb @ weights).item()
    u, v = (rgb[0, 0, 2] - luma) / (2 - 2 * blue), (rgb[0, 0, 0] - luma) / (2 - 2 * red)
    if not full:
        luma, u, v = 16 + luma * 219 / 255, u * 224 / 255, v * 224 / 255
    side = 16
    planes = np.empty((side + side // 2, side), np.uint8)
    planes[:side] = round(luma)
    planes[side:, ::2], planes[side:, 1::2] = round(128 + u), round(128 + v)
    ours = cut(library, planes, side, side, (2, 2, 14, 14), "edge", colour)
    assert np.abs(ours - np.clip(rgb, 0, 255)).max() < 3


def test_other_formats_are_refused(library) -> None:
    assert not library.crop_on_cpu(ctypes.c_void_p(1), 4, 4, 16, 99, (ctypes.c_double * 4)(0, 0, 1, 1), SIZE, 0, None)
