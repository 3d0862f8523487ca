"""Building and loading the kernel, and what torch makes of it."""

import platform
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from crf_bodies import find_body, smooth_scene

from mal.errors import MissingPackageError, ShapeError
from mal.plugins import host_library
from mal.plugins.crf_refine import compiled


@pytest.fixture
def kernel() -> object:
    return find_body("kernel")


@pytest.mark.usefixtures("kernel")
def test_the_cache_goes_by_content(tmp_path: Path) -> None:
    first = host_library.build_host(tmp_path, flags=("-O0",))
    written = first.stat().st_mtime_ns
    assert host_library.build_host(tmp_path, flags=("-O0",)) == first
    assert first.stat().st_mtime_ns == written
    assert host_library.build_host(tmp_path, flags=("-O0", "-g0")) != first
    assert [path.suffix for path in tmp_path.iterdir()] == [".so", ".so"]  # nothing half-made is left


@pytest.mark.usefixtures("kernel")
def test_a_shipped_kernel_comes_first_where_the_processor_can_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    scene = smooth_scene(rng, 2, 20, 30)
    native = compiled.crf_refine(*scene, 5, 0.1)
    shipped = tmp_path / host_library.SHIPPED
    host_library.build_portable(tmp_path).rename(shipped)
    monkeypatch.setattr(host_library, "_processor", lambda: "flags : sse2")
    monkeypatch.setattr(host_library, "_FOLDER", tmp_path)
    if platform.machine() == "x86_64":
        assert host_library.find_shipped() is None
    monkeypatch.setattr(host_library, "_processor", lambda: "flags : " + " ".join(host_library._V3))
    assert host_library.find_host() == shipped
    monkeypatch.setattr(host_library, "build_host", lambda: pytest.fail("built although one is shipped"))
    monkeypatch.setattr(compiled, "_host", lambda: compiled.declare(host_library.load_host.__wrapped__()))
    assert np.allclose(compiled.crf_refine(*scene, 5, 0.1), native, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("kernel")
def test_a_shipped_kernel_that_does_not_load_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / host_library.SHIPPED
    foreign.write_bytes(b"made for another C library")
    monkeypatch.setattr(host_library, "find_shipped", lambda: foreign)
    assert host_library.load_host.__wrapped__()._name == str(host_library.build_host())


def test_without_a_compiler_the_error_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackageError, match=r"g\+\+"):
        host_library.build_host(tmp_path)


@pytest.mark.usefixtures("kernel")
def test_sources_that_do_not_compile(tmp_path: Path) -> None:
    (tmp_path / "crf_refine.cuh").write_text("")
    (tmp_path / "host.cpp").write_text("this is no C++")
    with pytest.raises(MissingPackageError, match="cannot compile"):
        host_library.build_host(tmp_path / "cache", sources=(tmp_path / "host.cpp",))


@pytest.mark.usefixtures("kernel")
def test_strides_and_types_do_not_matter(rng: np.random.Generator) -> None:
    logits, guide, inside = smooth_scene(rng, 3, 20, 30)
    plain = compiled.crf_refine(logits, guide, inside, 5, 0.1)
    # Non-contiguous copies of the same numbers, one of them in float64.
    wide = np.repeat(guide, 2, axis=3)[..., ::2]
    fortran = np.asfortranarray(logits).astype(np.float64)
    assert np.array_equal(compiled.crf_refine(fortran, wide, inside[..., ::-1][..., ::-1], 5, 0.1), plain)
    with pytest.raises(ShapeError, match="guide must be floating"):
        compiled.crf_refine(logits, guide.astype(np.int32), inside, 5, 0.1)


@pytest.mark.usefixtures("kernel")
def test_threads_do_not_change_a_bit(rng: np.random.Generator) -> None:
    scene = smooth_scene(rng, 7, 33, 17)
    assert np.array_equal(
        compiled.crf_refine(*scene, 9, 0.1, threads=1), compiled.crf_refine(*scene, 9, 0.1, threads=5)
    )


@pytest.mark.usefixtures("kernel")
def test_the_gil_is_free_meanwhile(rng: np.random.Generator) -> None:
    scene = smooth_scene(rng, 8, 64, 64)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    watcher = threading.Thread(target=tick)
    watcher.start()
    begin = time.monotonic()
    compiled.crf_refine(*scene, 2000, 0.1, threads=1)
    end = time.monotonic()
    done.set()
    watcher.join()
    assert sum(begin < tick < end for tick in ticks) >= 5


def test_torch_on_a_cpu_takes_the_kernel_and_gives_no_gradient(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    from mal.plugins.crf_refine import torch_body

    tensors = [torch.from_numpy(array) for array in smooth_scene(rng, 2, 16, 16)]
    tensors[0].requires_grad_()
    refined = torch_body.crf_refine(*tensors, 3, 0.1)
    assert not refined.requires_grad
    assert torch.allclose(refined, torch_body.crf_refine_torch(*tensors, 3, 0.1), rtol=0, atol=1e-4)
    half = torch_body.crf_refine(tensors[0].detach().bfloat16(), *tensors[1:], 3, 0.1)
    assert half.dtype == torch.bfloat16
