"""Crops cut on the GPU: an image crosses the bus once, its crops never do.

picture (host) ─► CropCutter: copied once ─► kernel (plugins/pixels/crops.cu) ─► DeviceCrops, the engine's input
"""

import ctypes
import math
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.config import Fill
from mal.crops import check_crops
from mal.errors import ShapeError
from mal.images import Picture
from mal.plugins.pixels.cuda import cut_crops_on_gpu
from mal.runtime.device_memory import Block, DeviceMemory


class CropCutter:
    """Cuts crops on one GPU, for any number of threads at once.

    Args:
        library: with the kernel (`mal.plugins.cuda_library`, or an engine's plugin).
        memory: of the GPU.
        size: S, side of the crops.
        fill: what is read outside the image.
    """

    def __init__(self, library: ctypes.CDLL, memory: DeviceMemory, size: int, fill: Fill) -> None:
        self._library = library
        self.memory = memory
        self._size = size
        self._fill: Fill = fill
        self._own = threading.local()  # a stream for each thread: none waits for another's crops
        self._lock = threading.Lock()
        # By the picture, not by its pixels: a caller may put the next frame into the same array.
        self._images: weakref.WeakKeyDictionary[Picture, Block] = weakref.WeakKeyDictionary()
        self._done: deque[Block] = deque()

    def allocate(self, count: int) -> "DeviceCrops":
        """Uninitialised room for so many crops."""
        shape = (count, 3, self._size, self._size)
        with self.memory.current():
            return DeviceCrops(self, self.memory.allocate(4 * 3 * count * self._size**2), shape)

    def cut(self, picture: Picture, rects: NDArray[np.float64], out: "DeviceCrops") -> None:
        """Cut rectangles of a picture; they are complete when this returns.

        Args:
            picture: of the host; copied to the GPU once, for all calls as long as it lives.
            rects: (n, 4) float64 x0, y0, x1, y1 in pixels of `picture.pixels`.
            out: room for n crops; whole numbers come there, within one grey level of those cut on the host.

        Raises:
            ShapeError: as `mal.crops.cut_crops`, or room for another number of crops.
            MalError: CUDA refused.
        """
        check_crops(picture.pixels, rects, self._size)
        if len(rects) != len(out):
            raise ShapeError(f"{len(rects)} rectangles for {len(out)} crops")
        with self.memory.current():
            stream = self._stream()
            image = self._on_device(picture, stream)
            cut_crops_on_gpu(
                self._library, image.address, picture.pixels.shape[:2], rects, self._size, self._fill,
                out.block.address, self.memory.handle(stream),
            )  # fmt: skip
            self.memory.wait(stream)

    def copy(self, crops: "DeviceCrops") -> "DeviceCrops":
        """See `DeviceCrops.copy`."""
        room = self.allocate(len(crops))
        with self.memory.current():
            stream = self._stream()
            self.memory.copy(room.block, crops.block, stream)
            self.memory.wait(stream)
        return room

    def _stream(self) -> Any:
        if not hasattr(self._own, "stream"):
            self._own.stream = self.memory.stream()
        return self._own.stream

    def _on_device(self, picture: Picture, stream: Any) -> Block:
        with self._lock:
            self._done.clear()  # here, not where the last reference went: PyCUDA frees memory in its own context only
            image = self._images.get(picture)
            if image is None:
                pixels = np.ascontiguousarray(picture.pixels)
                image = self._images[picture] = self.memory.allocate(pixels.nbytes)
                weakref.finalize(picture, self._done.append, image).atexit = False
                self.memory.upload(image, pixels, stream)
                self.memory.wait(stream)
            return image


@dataclass(frozen=True)
class DeviceCrops:
    """Crops (B, 3, S, S) float32 on the GPU, contiguous; a slice of them is the same memory."""

    cutter: CropCutter
    block: Block
    shape: tuple[int, int, int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> "DeviceCrops":
        first, last, _ = part.indices(len(self))
        each = 4 * math.prod(self.shape[1:])
        block = Block(self.block.address + first * each, (last - first) * each, self.block.owner)
        return DeviceCrops(self.cutter, block, (last - first, *self.shape[1:]))

    def cut(self, picture: Picture, rects: NDArray[np.float64]) -> None:
        """Fill them: see `CropCutter.cut`."""
        self.cutter.cut(picture, rects, self)

    def copy(self) -> "DeviceCrops":
        """The same crops in memory of their own."""
        return self.cutter.copy(self)


Crops = NDArray[np.float32] | DeviceCrops
"""The input of a session, (B, 3, S, S) float32: on the host, or on its GPU."""
