"""CRF refinement on GPU memory, by the kernel of cuda.cu: torch uses it. TensorRT's plugin has the same lines."""

from mal.errors import MalError, ShapeError
from mal.plugins.cuda_library import load

MOST_COLUMNS = 1024
"""Widest crop that the kernel takes."""


def refine_on_gpu(
    logits: int, guide: int, guide_half: bool, inside: int, inside_batch: int, out: int,
    shape: tuple[int, ...], iterations: int, zeta: float, stream: int,
) -> None:  # fmt: skip
    """Enqueue a refinement on the current device.

    Args:
        logits, guide, inside, out: addresses of contiguous memory of the device: (B, 1, h, w) float32, (B, 3, h, w)
            float32 or float16, (inside_batch, 1, h, w) float32, (B, 1, h, w) float32. `out` overlaps nothing.
        guide_half: guide is float16.
        inside_batch: 1 or B.
        shape: (B, 1, h, w).
        iterations, zeta: as `reference.crf_refine`.
        stream: address of the CUDA stream.

    Raises:
        ShapeError: wider than 1,024 columns.
        MissingPackageError: the library is not built, or does not load.
        MalError: CUDA refused the launch.
    """
    batch, _, height, width = shape
    if width > MOST_COLUMNS:
        raise ShapeError(f"the CUDA kernel refines crops of at most {MOST_COLUMNS} columns, got {width}")
    code = load().mal_crf_refine_cuda(
        logits, guide, guide_half, inside, inside_batch, out, batch, height, width, iterations, zeta, stream
    )
    if code:
        raise MalError(f"the CUDA kernel of CRF refinement failed on {shape}: cudaError {code}")
