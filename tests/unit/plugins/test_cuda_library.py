"""The CUDA library, without a GPU: it builds and answers wrong arguments, and torch hands it the right ones."""

import ctypes
import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mal.errors import MalError, MissingPackageError, ShapeError
from mal.plugins import cuda_library
from mal.plugins.crf_refine import cuda, reference, torch_body
from mal.plugins.crf_refine.cuda import refine_on_gpu
from mal.plugins.cuda_library import build_cuda, load_cuda

OK, INVALID = 0, 1  # cudaError_t


def test_builds_and_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        library = load_cuda(build_cuda((86,)))
    except MissingPackageError as missing:
        pytest.skip(f"needs nvcc: {missing}")
    nothing = (None, None, 0, None, 1, None)
    call = library.mal_crf_refine_cuda
    assert call(*nothing, 0, 8, 8, 3, 0.1, None) == OK  # an empty batch
    assert call(*nothing, 1, 8, 8, -1, 0.1, None) == INVALID
    monkeypatch.setattr(cuda, "load", lambda: library)
    refine_on_gpu(0, 0, False, 0, 1, 0, (0, 1, 8, 8), 3, 0.1, 0)
    with pytest.raises(MalError, match="cudaError 1"):
        refine_on_gpu(0, 0, False, 0, 1, 0, (1, 1, 8, 8), 3, -1.0, 0)
    with pytest.raises(ShapeError, match="at most 1024 columns, got 1025"):
        refine_on_gpu(0, 0, False, 0, 1, 0, (1, 1, 8, 1025), 3, 0.1, 0)


def test_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_library.load.cache_clear()
    monkeypatch.setattr(cuda_library, "find_cuda", lambda: None)
    assert not cuda_library.available()
    assert torch_body.body(torch.device("cuda")) == "torch"
    with pytest.raises(MissingPackageError, match="mal plugins build"):
        refine_on_gpu(0, 0, False, 0, 1, 0, (1, 1, 8, 8), 3, 0.1, 0)


def array(address: int, shape: tuple[int, ...], half: bool = False) -> np.ndarray:
    kind = ctypes.c_uint16 if half else ctypes.c_float
    values = np.ctypeslib.as_array((kind * math.prod(shape)).from_address(address)).reshape(shape)
    return values.view(np.float16) if half else values


@pytest.mark.parametrize("insides", [1, 3])
@pytest.mark.parametrize("guide_type", [torch.float32, torch.float16])
def test_torchs_arguments(monkeypatch: pytest.MonkeyPatch, insides: int, guide_type: torch.dtype) -> None:
    """The kernel's place is taken by the judge, on the same addresses."""
    streams: list[int] = []

    def judge(logits, guide, half, inside, inside_batch, out, shape, iterations, zeta, stream) -> None:
        batch, _, height, width = shape
        streams.append(stream)
        colours = array(guide, (batch, 3, height, width), half)
        coverage = array(inside, (inside_batch, 1, height, width))
        array(out, shape)[:] = reference.crf_refine(array(logits, shape), colours, coverage, iterations, zeta)

    monkeypatch.setattr(cuda, "refine_on_gpu", judge)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch_body, "body", lambda device: "CUDA kernel")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 3, 1, 7, generator=generator).permute(1, 2, 0, 3).half()  # neither contiguous nor float32
    guide = torch.randn(3, 3, 9, 7, generator=generator).to(guide_type)
    inside = torch.rand(insides, 1, 9, 7, generator=generator)
    refined = torch_body.crf_refine(logits, guide, inside, 4, 0.5)
    expected = reference.crf_refine(logits.float().numpy(), guide.numpy(), inside.numpy(), 4, 0.5)
    assert refined.dtype == torch.float16
    assert streams == [77]
    np.testing.assert_allclose(refined.float().numpy(), expected, atol=2e-3)
