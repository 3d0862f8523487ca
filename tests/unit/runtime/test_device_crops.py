"""Crops cut on the GPU, on memory and with a kernel of the host: what they are, and what crosses the bus."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from fake_tensorrt import HostMemory

from mal import crops as judge
from mal.config import Fill
from mal.errors import MalError, ShapeError
from mal.images import Picture
from mal.runtime.device_crops import CropCutter, DeviceCrops

SIZE = 24


class CountingMemory(HostMemory):
    """Writes down what is copied to it, and looks whether memory is freed where PyCUDA can."""

    def upload(self, block: Any, array: Any, stream: Any) -> None:
        self.events.append(f"upload {array.nbytes}")
        super().upload(block, array, stream)


def picture(rng: np.random.Generator, height: int = 40, width: int = 57) -> Picture:
    small = rng.uniform(0, 255, (height // 8 + 2, width // 8 + 2, 3))
    rough = small.repeat(8, 0).repeat(8, 1)[:height, :width]
    return Picture(rough.astype(np.uint8), width, height)


def values(crops: DeviceCrops) -> np.ndarray:
    memory = (ctypes.c_float * int(np.prod(crops.shape))).from_address(crops.block.address)
    return np.ctypeslib.as_array(memory).reshape(crops.shape)


RECTS = np.array(
    [[3.2, 5.1, 20.7, 30.4], [-14.5, -9.25, 70.5, 55.0], [30.1, 20.2, 32.3, 21.0], [50, 30, 90.5, 60.5], [0, 0, 57, 40]]
)


@pytest.mark.parametrize("fill", get_args(Fill))
def test_crops_are_those_of_the_host(crop_kernel: ctypes.CDLL, rng: np.random.Generator, fill: Fill) -> None:
    image, cutter = picture(rng), CropCutter(crop_kernel, HostMemory(0), SIZE, fill)
    crops = cutter.allocate(8)
    crops[2:7].cut(image, RECTS)
    expected = judge.to_input(judge.cut_crops(image.pixels, RECTS, SIZE, fill))
    apart = np.abs(values(crops)[2:7] - expected)
    print(f"{fill}: {np.mean(apart > 0):.4f} of the values differ, by {apart.max():.0f} at most")
    assert apart.max() <= 1
    assert np.mean(apart > 0) < 0.05
    assert np.isnan(values(crops)[[0, 1, 7]]).all()  # nothing beyond its own place


def test_a_picture_crosses_the_bus_once(crop_kernel: ctypes.CDLL, rng: np.random.Generator) -> None:
    memory = CountingMemory(0)
    cutter = CropCutter(crop_kernel, memory, SIZE, "edge")
    crops = cutter.allocate(40)
    first = picture(rng)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: crops[i : i + 5].cut(first, RECTS), range(0, 40, 5)))
    assert memory.events.count(f"upload {first.pixels.nbytes}") == 1
    assert np.array_equal(values(crops)[:5], values(crops)[35:])
    copy = crops[5:10].copy()
    assert np.array_equal(values(copy), values(crops)[5:10])
    assert copy.block.address != crops[5:10].block.address
    # The same array with the next frame in it is another picture.
    first.pixels[:] = 255 - first.pixels
    crops[:5].cut(Picture(first.pixels, first.width, first.height), RECTS)
    assert memory.events.count(f"upload {first.pixels.nbytes}") == 2
    assert np.abs(values(crops)[:5] + values(crops)[35:] - 255).max() <= 1


def test_memory_of_a_picture_goes_with_it(crop_kernel: ctypes.CDLL, rng: np.random.Generator) -> None:
    cutter = CropCutter(crop_kernel, HostMemory(0), SIZE, "edge")
    crops = cutter.allocate(5)
    for _ in range(50):
        crops.cut(picture(rng), RECTS)
    assert len(cutter._images) == 0
    assert len(cutter._done) <= 1


def test_what_is_wrong_is_said(crop_kernel: ctypes.CDLL, rng: np.random.Generator) -> None:
    crops = CropCutter(crop_kernel, HostMemory(0), SIZE, "edge").allocate(5)
    with pytest.raises(ShapeError):
        crops[:1].cut(picture(rng), np.array([[0, 0, np.nan, 1]]))
    with pytest.raises(ShapeError, match="5 rectangles for 4 crops"):
        crops[:4].cut(picture(rng), RECTS)
    broken: Any = SimpleNamespace(mal_cut_crops_cuda=lambda *_: 700)
    with pytest.raises(MalError, match="5 crops of 24 x 24: cudaError 700"):
        CropCutter(broken, HostMemory(0), SIZE, "edge").allocate(5).cut(picture(rng), RECTS)
