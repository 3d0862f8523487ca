"""Device memory through cuda-core, in the GPU's primary context.

Source of the calls: cuda-core 1.2 and cuda-bindings 13, their API references.
"""

import ctypes
import importlib
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.errors import MissingPackageError
from mal.runtime.device_memory import Block, DeviceArray, Floats, foreign_array

try:
    # By name: what these packages hold depends on the CUDA they find, which no type checker follows.
    core: Any = importlib.import_module("cuda.core")
    utils: Any = importlib.import_module("cuda.core.utils")
    driver: Any = importlib.import_module("cuda.bindings.driver")
except ImportError as _error:
    raise MissingPackageError(
        'engines need cuda-core for the memory of the GPU: pip install "mask-auto-labeler[tensorrt]"'
    ) from _error


class CudaCoreMemory:
    """See `mal.runtime.device_memory.DeviceMemory`."""

    def __init__(self, index: int) -> None:
        self.name = f"cuda-core {core.__version__}"
        self._device = core.Device(index)
        self._device.set_current()
        self._host = core.LegacyPinnedMemoryResource()
        self._allocations = self.stream()

    @contextmanager
    def current(self) -> Generator[None]:
        """See `DeviceMemory.current`."""
        self._device.set_current()
        yield

    def stream(self) -> Any:
        """See `DeviceMemory.stream`."""
        return self._device.create_stream(options=core.StreamOptions(nonblocking=True))

    def handle(self, stream: Any) -> int:
        """See `DeviceMemory.handle`."""
        return int(stream.handle)

    def allocate(self, size: int) -> Block:
        """See `DeviceMemory.allocate`."""
        buffer = self._device.allocate(size, stream=self._allocations)
        self._allocations.sync()  # from here on any stream may use it
        return Block(int(buffer.handle), size, buffer)

    def pinned(self, shape: tuple[int, ...]) -> Floats:
        """See `DeviceMemory.pinned`."""
        count = math.prod(shape)
        buffer = self._host.allocate(4 * count)
        memory: Any = (ctypes.c_float * count).from_address(int(buffer.handle))
        memory.owner = buffer  # the array keeps `memory`, and so the buffer
        return np.ctypeslib.as_array(memory).reshape(shape)

    def upload(self, block: Block, array: NDArray[Any], stream: Any) -> None:
        """See `DeviceMemory.upload`."""
        _check(driver.cuMemcpyHtoDAsync(block.address, array.ctypes.data, array.nbytes, stream.handle))

    def copy(self, to: Block, block: Block, stream: Any) -> None:
        """See `DeviceMemory.copy`."""
        _check(driver.cuMemcpyDtoDAsync(to.address, block.address, block.size, stream.handle))

    def download(self, array: Floats, block: Block, stream: Any) -> None:
        """See `DeviceMemory.download`."""
        _check(driver.cuMemcpyDtoHAsync(array.ctypes.data, block.address, array.nbytes, stream.handle))

    def wait(self, stream: Any) -> None:
        """See `DeviceMemory.wait`."""
        stream.sync()

    def capture(self, stream: Any, work: Callable[[], None]) -> Callable[[], None] | None:
        """See `DeviceMemory.capture`."""
        builder = stream.create_graph_builder().begin_building("thread_local")
        try:
            work()
        finally:
            builder.end_building()
        graph = builder.complete()
        return lambda: graph.launch(stream)

    def view(self, array: object, stream: Any) -> DeviceArray:
        """See `DeviceMemory.view`: through DLPack or the CUDA Array Interface."""
        view: Any = utils.StridedMemoryView.from_any_interface(array, stream_ptr=int(stream.handle))
        return foreign_array(view.ptr, view.shape, view.strides, view.dtype, view)


def _check(result: tuple[Any, ...]) -> None:
    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA: {result[0].name}")
