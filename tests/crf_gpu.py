"""The CUDA kernel by itself: built for this GPU, called through the driver, without torch and TensorRT.

`python tests/crf_gpu.py` is the small run that compute-sanitizer watches: every array is an allocation of its own and
exactly as large as it must be, so that one element too far is seen.
"""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mal.plugins.compile import Recipe, find_nvcc
from mal.plugins.crf_refine import reference

Floats = NDArray[np.float32]
_SOURCES = Path(reference.__file__).parent
_MAJOR, _MINOR, _SHARED = 75, 76, 97  # CUdevice_attribute: compute capability; shared memory a CTA may ask for

# (batch, height, width, iterations): whole crops with f32 and with u16 weights, bands in one and in several passes.
# Which of them a crop takes is the chip's matter; on 227 KB (sm_90) they fall as the names say.
SCENES = {
    "one pixel": (1, 1, 1, 3),
    "odd": (3, 17, 9, 5),
    "no iteration": (2, 12, 12, 0),
    "whole, f32 weights": (5, 48, 48, 10),
    "whole, u16 weights": (2, 128, 128, 10),
    "bands, one pass": (1, 150, 160, 3),
    "bands, several passes": (1, 150, 160, 40),
    "as wide as can be": (1, 9, 1024, 7),
}


class Gpu:
    """The first GPU, and `mal_crf_refine_cuda` for it."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._do("cuInit", 0)
        context = ctypes.c_void_p()
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._do("cuCtxSetCurrent", context)
        self.capability = 10 * self._attribute(_MAJOR) + self._attribute(_MINOR)
        self.shared_bytes = self._attribute(_SHARED)
        self.function = ctypes.CDLL(str(self._build())).mal_crf_refine_cuda

    def refine(self, logits: Floats, guide: Floats, inside: Floats, iterations: int, zeta: float) -> Floats:
        """As `reference.crf_refine`; a guide in float16 goes to the kernel as it is."""
        half = guide.dtype == np.float16
        types = (np.float32, np.float16 if half else np.float32, np.float32)
        arrays = [np.ascontiguousarray(*pair) for pair in zip((logits, guide, inside), types, strict=True)]
        refined = np.full(logits.shape, np.nan, np.float32)
        on_gpu = [self._copy_in(array) for array in (*arrays, refined)]
        code = self.call(*on_gpu, half, len(inside), refined.shape, iterations, zeta)
        if refined.size:
            size = ctypes.c_size_t(refined.nbytes)
            self._do("cuMemcpyDtoH_v2", ctypes.c_void_p(refined.ctypes.data), on_gpu[3], size)
        for pointer in on_gpu:
            if pointer.value:
                self._do("cuMemFree_v2", pointer)
        if code:
            raise RuntimeError(f"cudaError {code}")
        return refined

    def call(self, logits, guide, inside, refined, half, insides, shape, iterations, zeta, stream=None) -> int:
        """The C function itself, on pointers of the GPU; a cudaError_t."""
        batch, _, height, width = shape
        return self.function(
            logits, guide, ctypes.c_int(half), inside, insides, refined, batch, height, width, iterations,
            ctypes.c_float(zeta), stream,
        )  # fmt: skip

    def _copy_in(self, array: NDArray[np.generic]) -> ctypes.c_void_p:
        pointer, size = ctypes.c_void_p(), ctypes.c_size_t(array.nbytes)
        if array.nbytes:
            self._do("cuMemAlloc_v2", ctypes.byref(pointer), size)
            self._do("cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(array.ctypes.data), size)
        return pointer

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._do("cuDeviceGetAttribute", ctypes.byref(value), number, 0)
        return value.value

    def _do(self, name: str, *arguments: object) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: CUresult {code}")

    def _build(self) -> Path:
        architecture = f"-arch=sm_{self.capability}"
        flags = ("-O3", "-lineinfo", "-std=c++17", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden")
        command = (find_nvcc(), architecture, *flags)
        return Recipe("mal_crf_cuda", command, (_SOURCES / "cuda.cu",), (_SOURCES / "crf_refine.cuh",)).build()


def scene(name: str) -> tuple[Floats, Floats, Floats, int]:
    """Logits, guide, inside and iterations: smoothed noise under a box with soft edges."""
    batch, height, width, iterations = SCENES[name]
    rng = np.random.default_rng(0)

    def blobs(channels: int) -> Floats:
        field = rng.normal(size=(batch, channels, height, width)).astype(np.float32)
        for _ in range(3):
            for axis in (2, 3):
                field = field + np.roll(field, 1, axis) + np.roll(field, -1, axis)
        return field / max(float(field.std()), 1e-6)

    inside = np.ones((batch, 1, height, width), np.float32)
    inside[:, :, : height // 3, : width // 3] = rng.uniform(0, 1, (height // 3, width // 3))
    return 3 * blobs(1), 0.1 * blobs(3), inside, iterations


def driver_version() -> str:
    """Of NVIDIA's driver."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()


if __name__ == "__main__":
    gpu = Gpu()
    for title in SCENES:
        *arrays, steps = scene(title)
        assert np.isfinite(gpu.refine(*arrays, steps, 0.1)).all()
        gpu.refine(arrays[0], arrays[1].astype(np.float16), arrays[2], steps, 0.1)
        print(title)
