"""The CUDA kernel on a GPU against the judge: `make gpu`. What a CPU can tell of it: test_crf_cuda.py."""

import numpy as np
import pytest
from crf_gpu import SCENES, Gpu, scene

from mal.plugins.crf_refine import reference

pytestmark = pytest.mark.gpu

INVALID = 1
# After FEW iterations every cell is close; after more, rounding may carry a few cells over (docs/numerics.md).
FEW = 3
TOLERANCE = {"f32": 1e-4, "u16": 1e-3}
CELLS = 1e-4


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return Gpu()


@pytest.mark.parametrize("half", [False, True], ids=["f32 guide", "f16 guide"])
@pytest.mark.parametrize("name", SCENES)
def test_kernel_is_the_judges(gpu: Gpu, name: str, half: bool) -> None:
    logits, guide, inside, iterations = scene(name)
    guide = guide.astype(np.float16) if half else guide
    seen = guide.astype(np.float32)
    few = min(FEW, iterations)
    kind = "f32" if "f32" in name or logits[0].size < 48 * 48 else "u16"
    apart = np.abs(gpu.refine(logits, guide, inside, few, 0.1) - reference.crf_refine(logits, seen, inside, few, 0.1))
    assert apart.max() <= TOLERANCE[kind]
    ours = gpu.refine(logits, guide, inside, iterations, 0.1)
    differ = int(((ours > 0) != (reference.crf_refine(logits, seen, inside, iterations, 0.1) > 0)).sum())
    print(f"{name}: {differ} of {ours.size} cells differ after {iterations} iterations")
    assert differ <= max(2, CELLS * ours.size)


def test_one_inside_for_all_crops(gpu: Gpu) -> None:
    logits, guide, inside, _ = scene("whole, f32 weights")
    assert np.array_equal(
        gpu.refine(logits, guide, inside[:1], 10, 0.1), gpu.refine(logits, guide, np.repeat(inside[:1], 5, 0), 10, 0.1)
    )


def test_the_same_twice(gpu: Gpu) -> None:
    *arrays, iterations = scene("bands, several passes")
    assert np.array_equal(gpu.refine(*arrays, iterations, 0.1), gpu.refine(*arrays, iterations, 0.1))


def test_odd_values(gpu: Gpu) -> None:
    logits, guide, inside, _ = scene("odd")
    logits[0, 0, 3, 4], guide[0, 1, 9, 5], inside[0, 0, 15, 2] = np.nan, np.inf, np.nan
    expected = reference.crf_refine(logits, guide, inside, 3, 0.1)
    assert np.allclose(gpu.refine(logits, guide, inside, 3, 0.1), expected, rtol=0, atol=1e-4)


def test_arguments_out_of_range_and_an_empty_batch(gpu: Gpu) -> None:
    logits, guide, inside, _ = scene("odd")
    for steps, zeta, insides in ((-1, 0.1, inside), (1, 0.0, inside), (1, np.nan, inside), (1, 0.1, inside[:2])):
        with pytest.raises(RuntimeError, match=f"cudaError {INVALID}"):
            gpu.refine(logits, guide, insides, steps, zeta)
    wide = np.zeros((1, 1, 2, 1025), np.float32)
    with pytest.raises(RuntimeError, match=f"cudaError {INVALID}"):
        gpu.refine(wide, np.repeat(wide, 3, 1), wide, 1, 0.1)
    assert gpu.refine(logits[:0], guide[:0], inside[:1], 1, 0.1).shape == (0, 1, 17, 9)
