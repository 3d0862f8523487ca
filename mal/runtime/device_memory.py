"""A GPU's memory, streams and graphs behind one small interface; never two CUDA libraries in one process.

cuda-core    the default: works in the GPU's primary context, as torch and CuPy do
PyCUDA       where the application has loaded it already: works in the context that the application has made
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mal.errors import ShapeError

Floats = NDArray[np.float32]
_DLPACK_CUDA = 2  # kDLCUDA


@dataclass(frozen=True)
class Block:
    """Memory of the GPU; it lives as long as its owner."""

    address: int
    size: int  # bytes
    owner: object


class DeviceMemory(Protocol):
    """One GPU. Streams are opaque to all but the memory they came from.

    Everything but `current` is called within it. Errors are those of the library below.
    """

    name: str
    """Library and version: "cuda-core 1.2.2"."""

    def current(self) -> AbstractContextManager[None]:
        """Make the GPU this thread's own for the block."""
        ...

    def stream(self) -> Any:
        """A stream that does not wait for the default stream."""
        ...

    def handle(self, stream: Any) -> int:
        """Address of the stream as CUDA knows it."""
        ...

    def allocate(self, size: int) -> Block:
        """So many bytes on the GPU."""
        ...

    def pinned(self, shape: tuple[int, ...]) -> Floats:
        """float32 memory of the host that the GPU reaches by itself: copies to and from it need no processor."""
        ...

    def upload(self, block: Block, array: NDArray[Any], stream: Any) -> None:
        """Copy a contiguous array to the beginning of a block, in the stream's order."""
        ...

    def copy(self, to: Block, block: Block, stream: Any) -> None:
        """Copy a whole block to the beginning of another one, in the stream's order."""
        ...

    def download(self, array: Floats, block: Block, stream: Any) -> None:
        """Copy the beginning of a block to a contiguous array, in the stream's order."""
        ...

    def wait(self, stream: Any) -> None:
        """Until all that is in the stream is done; other Python threads run meanwhile."""
        ...

    def capture(self, stream: Any, work: Callable[[], None]) -> Callable[[], None] | None:
        """Record what `work` puts into the stream as a CUDA graph.

        Returns:
            What launches the graph in the same stream; None: this library knows no graphs, `work` was not called.
        """
        ...

    def view(self, array: object, stream: Any) -> "DeviceArray":
        """A contiguous float32 array of another library, without a copy, ordered before what comes into the stream.

        Raises:
            ShapeError: not float32, not contiguous, or by no protocol that this library knows.
        """
        ...


def open_memory(index: int) -> DeviceMemory:
    """The memory of a GPU, through PyCUDA if the application uses that, else through cuda-core.

    Raises:
        MissingPackageError: cuda-core is needed and not installed.
        DeviceError: PyCUDA has no context on this GPU.
    """
    if "pycuda.driver" in sys.modules:
        from mal.runtime.pycuda_memory import PyCudaMemory

        return PyCudaMemory(index)
    from mal.runtime.cuda_core_memory import CudaCoreMemory

    return CudaCoreMemory(index)


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous float32 array on the GPU that other libraries take as it is: torch.as_tensor(it), cupy.asarray(it).

    Its values are complete: nothing has to be waited for. Protocol: CUDA Array Interface, version 3.
    """

    block: Block
    shape: tuple[int, ...]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3, "shape": self.shape, "typestr": "<f4", "data": (self.block.address, False),
            "strides": None, "stream": None,
        }  # fmt: skip


def is_device_array(array: object) -> bool:
    """Whether an array lies on a CUDA GPU, as its protocols tell."""
    where = getattr(array, "__dlpack_device__", None)
    if where is not None:
        return int(where()[0]) == _DLPACK_CUDA
    return hasattr(array, "__cuda_array_interface__")


def foreign_array(
    address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any, owner: object
) -> DeviceArray:
    """An array of another library by what its protocol tells; strides in elements, None: contiguous.

    Raises:
        ShapeError: not float32 or not contiguous.
    """
    expected, step = list[int](), 1
    for length in reversed(shape):
        expected.insert(0, step)
        step *= length
    if np.dtype(dtype) != np.float32 or (strides is not None and tuple(strides) != tuple(expected)):
        raise ShapeError(f"expected a contiguous float32 array, got {np.dtype(dtype)} {shape}, strides {strides}")
    return DeviceArray(Block(address, 4 * step, owner), shape)
