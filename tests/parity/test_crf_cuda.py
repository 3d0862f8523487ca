"""The lines of cuda.cu, run on the CPU with a thread for each CUDA thread, against the judge.

What this cannot show: warps, memory models, speed, fp16 guides. They need a GPU.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from crf_bodies import Floats, Scene, smooth_scene

from mal.plugins.crf_refine import reference

SOURCES = Path(reference.__file__).parent
INVALID = 1
KB = 1024

# (batch, height, width, iterations, shared memory, weights in u16): what is taken through how.
CASES = {
    "one pixel": (1, 1, 1, 3, 64 * KB, False),
    "a line": (2, 1, 33, 4, 64 * KB, False),
    "a column longer than a strip": (2, 40, 1, 4, 64 * KB, False),
    "odd": (3, 17, 9, 5, 64 * KB, False),
    "whole, f32 weights": (2, 30, 21, 10, 64 * KB, False),
    "whole, u16 weights": (2, 30, 21, 3, 10 * KB, True),
    "bands, one pass": (2, 40, 21, 2, 8 * KB, True),
    "bands, several passes": (2, 40, 21, 11, 6 * KB, True),
    "bands of one row": (1, 13, 33, 5, 2600, True),
    "no iteration": (2, 12, 12, 0, 64 * KB, False),
    "no iteration in bands": (2, 60, 20, 0, 6 * KB, True),
}
# The judge gets the same rounded weights, so this is float32 against float64 alone. A few weights in a thousand lie so
# near a half that float32 rounds them the other way, by 1.5e-5; steps enlarge it (7e-4 after 10), so u16 is held
# against the judge for FEW steps, and beyond that bands against the whole crop, bit for bit.
TOLERANCE = 1e-4
FEW = 3


def judge(scene: Scene, iterations: int, fixed: bool) -> Floats:
    """The judge, with weights as cuda.cu keeps them where f32 does not fit; what that costs is measured apart."""
    exact = reference.window_weights
    with pytest.MonkeyPatch.context() as patch:
        if fixed:
            patch.setattr(
                reference, "window_weights", lambda guide, zeta: np.floor(exact(guide, zeta) * 65535 + 0.5) / 65535
            )
        return reference.crf_refine(*scene, iterations, 0.1)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory):
    """Compile cuda.cu as it is, or with a piece of its text replaced."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("the emulation needs a C++ compiler")

    def compile_emulated(right: str = "", wrong: str = "") -> ctypes.CDLL:
        folder = tmp_path_factory.mktemp("emulated")
        shutil.copy(SOURCES / "crf_refine.cuh", folder)
        text = (SOURCES / "cuda.cu").read_text()
        assert not right or text.count(right) == 1
        (folder / "cuda.cu").write_text(text.replace(right, wrong) if right else text)
        words = [compiler, "-x", "c++", "-std=c++20", "-O1", "-DMAL_EMULATED_GPU", "-I", str(Path(__file__).parent)]
        words += ["-pthread", "-shared", "-fPIC", str(folder / "cuda.cu"), "-o", str(folder / "emulated.so")]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(folder / "emulated.so"))

    return compile_emulated


@pytest.fixture(scope="module")
def emulated(build) -> ctypes.CDLL:
    return build()


def refine(library: ctypes.CDLL, scene: Scene, iterations: int, shared: int, zeta: float = 0.1) -> tuple[int, Floats]:
    logits, guide, inside = (np.ascontiguousarray(array, np.float32) for array in scene)
    out = np.full(logits.shape, np.nan, np.float32)
    batch, _, height, width = logits.shape
    library.emulate_shared_memory(shared)
    pointer = ctypes.c_void_p
    code = library.mal_crf_refine_cuda(
        pointer(logits.ctypes.data), pointer(guide.ctypes.data), 0, pointer(inside.ctypes.data), len(inside),
        pointer(out.ctypes.data), batch, height, width, iterations, ctypes.c_float(zeta), None,
    )  # fmt: skip
    return code, out


def scene_for(rng: np.random.Generator, batch: int, height: int, width: int) -> Scene:
    logits, guide, _ = smooth_scene(rng, batch, height, width)
    inside = np.ones((batch, 1, height, width), np.float32)
    inside[:, :, : height // 3, : width // 3] = rng.uniform(0, 1, (height // 3, width // 3))
    return Scene(logits, 0.1 * guide, inside)


def problem(library: ctypes.CDLL, scene: Scene, case: str) -> str:
    """What is wrong with a case; empty when nothing is."""
    _, height, width, iterations, shared, fixed = CASES[case]
    for steps in {iterations, min(iterations, FEW)}:
        code, refined = refine(library, scene, steps, shared)
        if code:
            return f"code {code}"
        if fixed:
            # Exactly what the whole crop needs with u16 weights, too little for f32.
            code, whole = refine(library, scene, steps, ((height + 2) * (width + 1) + 2) * 12)
            if code or not np.array_equal(refined, whole):
                return f"bands differ from the whole after {steps} steps"
        if not fixed or steps <= FEW:
            apart = np.abs(refined - judge(scene, steps, fixed)).max()
            if not apart <= TOLERANCE:
                return f"{apart:.1e} from the judge after {steps} steps"
    return ""


@pytest.mark.parametrize("case", CASES)
def test_kernel_is_the_judges(emulated: ctypes.CDLL, case: str, rng: np.random.Generator) -> None:
    assert problem(emulated, scene_for(rng, *CASES[case][:3]), case) == ""


def test_one_inside_for_all_crops(emulated: ctypes.CDLL, rng: np.random.Generator) -> None:
    scene = scene_for(rng, 3, 20, 20)
    scene = scene._replace(inside=scene.inside[:1])
    code, refined = refine(emulated, scene, 4, 64 * KB)
    assert code == 0
    assert np.allclose(refined, reference.crf_refine(*scene, 4, 0.1), rtol=0, atol=TOLERANCE)


def test_odd_values(emulated: ctypes.CDLL, rng: np.random.Generator) -> None:
    scene = scene_for(rng, 1, 20, 20)
    scene.logits[0, 0, 3, 4], scene.guide[0, 1, 9, 9], scene.inside[0, 0, 15, 2] = np.nan, np.inf, np.nan
    code, refined = refine(emulated, scene, 3, 64 * KB)
    assert code == 0
    assert np.allclose(refined, reference.crf_refine(*scene, 3, 0.1), rtol=0, atol=TOLERANCE)


def test_arguments_out_of_range(emulated: ctypes.CDLL, rng: np.random.Generator) -> None:
    scene = scene_for(rng, 3, 8, 8)
    assert refine(emulated, scene, -1, 64 * KB)[0] == INVALID
    assert refine(emulated, scene, 1, 64 * KB, zeta=0.0)[0] == INVALID
    assert refine(emulated, scene, 1, 64 * KB, zeta=float("nan"))[0] == INVALID
    assert refine(emulated, scene._replace(inside=scene.inside[:2]), 1, 64 * KB)[0] == INVALID
    assert refine(emulated, scene_for(rng, 1, 2, 1025), 1, 227 * KB)[0] == INVALID  # wider than a CTA
    assert refine(emulated, scene, 1, 100)[0] == INVALID  # not one row fits
    code, refined = refine(emulated, Scene(*(array[:0] for array in scene)), 1, 64 * KB)
    assert (code, refined.shape) == (0, (0, 1, 8, 8))


# Bugs planted in cuda.cu: what stands there, what a tired hand might have written.
BUGS = {
    "halo too shallow": ("max(top - steps, 0)", "max(top - steps + 1, 0)"),
    "old rows not saved": ("row < top ? saved", "row < above ? saved"),
    "saved from the wrong row": ("top + plan.band - steps;", "top + plan.band - steps + 1;"),
    "second pass starts over": ("done == 0)\n", "done >= 0)\n"),
    "last pass too long": ("min(plan.depth, task.iterations - done)", "plan.depth"),
    "no barrier before the write": (
        "                __syncthreads();\n                if (active) {",
        "                if (active) {",
    ),
    "weight of the row above lost": ("up = down;", "up = 0.0f;"),
    "wrong diagonal": ("weights[p - stride - 1].right_down", "weights[p - stride + 1].right_down"),
    "last row of a strip lost": ("if (first_row + i >= rows) break;", "if (first_row + i + 1 >= rows) break;"),
    "u16 without its scale": ("1.0f / 65535.0f", "1.0f / 65000.0f"),
    "coverage of another crop": ("crop * task.inside_step", "0 * task.inside_step"),
}


def agrees(library: ctypes.CDLL) -> bool:
    for case, (batch, height, width, *_) in CASES.items():
        scene = scene_for(np.random.default_rng(1), batch, height, width)
        for crop in range(1, batch):  # boxes that differ from crop to crop
            scene.inside[crop] = np.roll(scene.inside[crop], 3 * crop, axis=2)
        if problem(library, scene, case):
            return False
    return True


def test_the_kernel_as_it_is_agrees(emulated: ctypes.CDLL) -> None:
    assert agrees(emulated)


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(build, bug: str) -> None:
    assert not agrees(build(*BUGS[bug]))
