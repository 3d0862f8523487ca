"""Device memory through PyCUDA, in the context that the application has made current.

Source of the calls: PyCUDA 2026.1, its reference and sources. It knows no CUDA graphs.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pycuda  # pyright: ignore[reportMissingImports]  an extra, for applications that have it
import pycuda.driver as driver  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray

from mal.errors import DeviceError, ShapeError
from mal.runtime.device_memory import Block, DeviceArray, Floats, foreign_array

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class PyCudaMemory:
    """See `mal.runtime.device_memory.DeviceMemory`."""

    def __init__(self, index: int) -> None:
        self.name = f"pycuda {pycuda.VERSION_TEXT}"
        self._context: Any = driver.Context.get_current()
        if self._context is None or driver.Context.get_device() != driver.Device(index):
            raise DeviceError(
                f"the application uses PyCUDA, and has no current context on GPU {index}: make one before it opens "
                "the engine (import pycuda.autoprimaryctx), or do not import pycuda.driver to run through cuda-core"
            )

    @contextmanager
    def current(self) -> Generator[None]:
        """See `DeviceMemory.current`."""
        self._context.push()
        try:
            yield
        finally:
            driver.Context.pop()

    def stream(self) -> Any:
        """See `DeviceMemory.stream`."""
        return driver.Stream(_NON_BLOCKING)

    def handle(self, stream: Any) -> int:
        """See `DeviceMemory.handle`."""
        return int(stream.handle)

    def allocate(self, size: int) -> Block:
        """See `DeviceMemory.allocate`."""
        memory = driver.mem_alloc(size)
        return Block(int(memory), size, memory)

    def pinned(self, shape: tuple[int, ...]) -> Floats:
        """See `DeviceMemory.pinned`."""
        return driver.pagelocked_empty(shape, np.float32)

    def upload(self, block: Block, array: NDArray[Any], stream: Any) -> None:
        """See `DeviceMemory.upload`."""
        driver.memcpy_htod_async(block.address, array, stream)

    def copy(self, to: Block, block: Block, stream: Any) -> None:
        """See `DeviceMemory.copy`."""
        driver.memcpy_dtod_async(to.address, block.address, block.size, stream)

    def download(self, array: Floats, block: Block, stream: Any) -> None:
        """See `DeviceMemory.download`."""
        driver.memcpy_dtoh_async(array, block.address, stream)

    def wait(self, stream: Any) -> None:
        """See `DeviceMemory.wait`."""
        stream.synchronize()

    def capture(self, stream: Any, work: Callable[[], None]) -> Callable[[], None] | None:
        """See `DeviceMemory.capture`."""
        return None

    def view(self, array: object, stream: Any) -> DeviceArray:
        """See `DeviceMemory.view`: through the CUDA Array Interface."""
        told: dict[str, Any] | None = getattr(array, "__cuda_array_interface__", None)
        if told is None:
            raise ShapeError(f"with PyCUDA, arrays come by __cuda_array_interface__; {type(array).__name__} has none")
        driver.Context.synchronize()  # whichever stream made the array
        strides = told.get("strides")
        elements = None if strides is None else tuple(step // 4 for step in strides)
        return foreign_array(told["data"][0], tuple(told["shape"]), elements, told["typestr"], array)
