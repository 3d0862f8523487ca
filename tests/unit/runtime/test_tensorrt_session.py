"""Engines: what is checked before one runs, in which order and in which words; and the session, on a fake TensorRT."""

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import HostMemory, make_tensorrt
from tensorrt_parts import SIZE, constants, tiny_model

from mal.crops import cut_crops, to_input
from mal.errors import DeviceError, EngineError, MalError, MissingPackageError, ModelFileError, ShapeError, UsageError
from mal.export import engine_from_onnx, plan_cache, rebuild
from mal.export.engine_from_onnx import build_engine
from mal.export.engine_options import EngineOptions, Profile
from mal.export.manifest import dump, make_manifest
from mal.export.rebuild import rebuild_engine
from mal.images import Picture
from mal.runtime import tensorrt_package, tensorrt_session
from mal.runtime.device_crops import DeviceCrops
from mal.runtime.device_memory import DeviceArray
from mal.runtime.labeler import MaskLabeler
from mal.runtime.machine import Gpu
from mal.runtime.plan_file import manifest_path
from mal.runtime.session import open_session

H200, RTX4090, T4 = Gpu(0, "NVIDIA H200", 90), Gpu(0, "RTX 4090", 89), Gpu(0, "Tesla T4", 75)


class Bench:
    """A machine with one GPU and a TensorRT, both fake, and an engine for it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan = folder / "m.plan"
        self.memory = HostMemory(0)
        self._patch = monkeypatch
        monkeypatch.setattr(plan_cache, "cache_folder", lambda: folder / "cache")
        monkeypatch.setattr(tensorrt_package, "_pin", lambda library: library)
        monkeypatch.setattr(tensorrt_session, "open_memory", lambda index: self.memory)
        monkeypatch.setattr(tensorrt_session, "_crop_kernel", lambda plugin: None)  # no GPU would run it
        self.install(make_tensorrt())
        self.see(H200)
        self.write(tiny_model(refine=0).SerializeToString())

    def install(self, trt: Any) -> None:
        self.trt = trt
        self._patch.setitem(sys.modules, trt.__name__, trt)
        tensorrt_package._lent.pop(trt.__name__, None)

    def see(self, *gpus: Gpu) -> None:
        for module in (engine_from_onnx, rebuild, tensorrt_session):
            self._patch.setattr(module, "gpus", lambda: gpus)

    def write(self, onnx: bytes, plugin: Path | None = None, **options: Any) -> None:
        """Export without the gate."""
        engine = build_engine(
            onnx, package=self.trt.__name__, options=EngineOptions(**{"profile": Profile(1, 4, 8), **options}),
            plugin=plugin,
        )  # fmt: skip
        self.plan.with_suffix(".onnx").write_bytes(onnx)
        self.plan.write_bytes(engine.plan)
        about = make_manifest(
            engine.plan, constants(0), target="tensorrt", precision="fp32", source=self.plan, parity={}
        )
        manifest_path(self.plan).write_bytes(dump(about | {"engine": engine.to_json("m.onnx")}))

    def edit(self, **engine: Any) -> None:
        manifest = json.loads(manifest_path(self.plan).read_text())
        manifest["engine"] |= engine
        manifest_path(self.plan).write_text(json.dumps(manifest))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def crops(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (count, 3, SIZE, SIZE)).astype(np.float32)


def expected(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), 3, SIZE // 4, 4, SIZE // 4, 4).mean((1, 3, 5)) / 64 - 2


def no_manifest(bench: Bench) -> None:
    manifest_path(bench.plan).unlink()


def foreign_manifest(bench: Bench) -> None:
    manifest_path(bench.plan).write_text('{"format": "other"}')


def files_elsewhere(bench: Bench) -> None:
    bench.edit(plugin="../libmal.so", plugin_sha256="0" * 64)


def tampered(bench: Bench) -> None:
    bench.plan.write_bytes(bench.plan.read_bytes()[:-1] + b" ")


def truncated(bench: Bench) -> None:
    bench.plan.write_bytes(bench.plan.read_bytes()[:10])


def other_version(bench: Bench) -> None:
    bench.trt.__version__ = "10.16.0.72"


def other_chip(bench: Bench) -> None:
    bench.see(RTX4090)


def no_gpu(bench: Bench) -> None:
    bench.see()


def no_tensorrt(bench: Bench) -> None:
    bench._patch.setitem(sys.modules, "tensorrt", None)


def other_plugin(bench: Bench) -> None:
    bench.plan.with_name("libmal.so").write_bytes(b"other")
    bench.edit(plugin="libmal.so", plugin_sha256="0" * 64)


def no_plugin(bench: Bench) -> None:
    bench.edit(plugin="libmal.so", plugin_sha256="0" * 64)


def refused(bench: Bench) -> None:
    bench.trt.fail.add("Runtime.deserialize_cuda_engine")


def no_room(bench: Bench) -> None:
    bench.trt.fail.add("ICudaEngine.create_execution_context")


REBUILD = r"build it again here from m\.onnx: the same command with --rebuild does it"
TABLE: list[tuple[Callable[[Bench], None], type[MalError], str]] = [
    (no_manifest, ModelFileError, r"has no manifest m\.plan\.json: an engine is code"),
    (foreign_manifest, ModelFileError, "is no manifest of an engine"),
    (files_elsewhere, ModelFileError, r"no manifest of an engine: '\.\./libmal\.so' is no name of a file in the same"),
    (tampered, ModelFileError, "sha256 is .* the file was changed or damaged"),
    (truncated, ModelFileError, "sha256 is .* the file was changed or damaged"),
    (no_tensorrt, MissingPackageError, r'cannot load tensorrt .*pip install "mask-auto-labeler\[tensorrt\]"'),
    (other_version, EngineError, r"built by tensorrt 11\.4\.0\.106, and here is tensorrt 10\.16\.0\.72: " + REBUILD),
    (no_gpu, DeviceError, r"runs on a GPU, and the driver sees none: use the \.onnx"),
    (other_chip, EngineError, "on NVIDIA H200 for compute capability 90, and RTX 4090 has 89: " + REBUILD),
    (other_plugin, ModelFileError, r"libmal\.so: its sha256 is .* not the plugin"),
    (no_plugin, ModelFileError, r"cannot read model .*libmal\.so"),
    (refused, EngineError, "cannot load it: Runtime.deserialize_cuda_engine says no; " + REBUILD),
    (no_room, EngineError, "cannot make a context, .*create_execution_context says no"),
]


@pytest.mark.parametrize(("spoil", "error", "message"), TABLE, ids=lambda value: getattr(value, "__name__", ""))
def test_each_engine_that_cannot_run_says_why(
    bench: Bench, spoil: Callable[[Bench], None], error: type[MalError], message: str
) -> None:
    spoil(bench)
    with pytest.raises(error, match=message) as caught:
        open_session(bench.plan)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert bench.trt.get_plugin_registry().all_creators == []
    assert bench.memory.depth == 0


@pytest.mark.parametrize("spoil", [no_manifest, tampered], ids=lambda value: value.__name__)
def test_the_manifest_comes_first(bench: Bench, spoil: Callable[[Bench], None]) -> None:
    """Before any library or device: neither TensorRT nor a GPU is here."""
    for thing in (no_tensorrt, no_gpu, spoil):
        thing(bench)
    with pytest.raises(ModelFileError, match=r"manifest|sha256"):
        open_session(bench.plan)
    with pytest.raises(ModelFileError, match=r"manifest|sha256"):
        open_session(bench.plan, "cuda:7")


def test_trust_says_so_aloud(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.plan.write_bytes(bench.plan.read_bytes() + b" ")
    open_session(bench.plan, trust=True).close()
    assert "its sha256 is" in (told := capsys.readouterr().err)
    assert "it runs unchecked, as --trust asks" in told
    no_manifest(bench)
    session = open_session(bench.plan, trust=True)  # as trtexec makes them: the constants come from the ONNX file
    assert session.constants.size == SIZE
    assert "has no manifest" in capsys.readouterr().err
    bench.plan.with_suffix(".onnx").unlink()
    with pytest.raises(ModelFileError, match=r"has no manifest.*nor is there m\.onnx"):
        open_session(bench.plan, trust=True)


def test_other_models_in_an_engine(bench: Bench) -> None:
    content = bench.plan.read_bytes()
    bench.plan.write_bytes(content[:-1] + b', "score": "confidence"}')
    with pytest.raises(ModelFileError, match=r"confidence.*expected float32 crops \(-1, 3, 32, 32\)"):
        open_session(bench.plan, trust=True)


@pytest.mark.parametrize("batch", [1, 3, 4, 8])
def test_logits_and_scores(bench: Bench, batch: int) -> None:
    session = open_session(bench.plan)
    for seed in range(4):  # a new shape, then captured, then launched
        given = crops(batch, seed)
        logits, scores = session.run(given)
        np.testing.assert_allclose(logits, expected(given), atol=1e-5)
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected(given).mean((1, 2)))), atol=1e-6)
    assert (session.device, session.lanes, session.auto_batch) == ("cuda:0", 2, 4)
    where = "crops cut on the host (`mal plugins build` with nvcc: on the GPU)"
    assert session.backend == f"tensorrt 11.4.0.106, CUDA graph, fake-memory 1.0, {where}"
    assert session.allocate(3).shape == (3, 3, SIZE, SIZE)


def test_results_outlive_the_next_batch(bench: Bench) -> None:
    session = open_session(bench.plan)
    first, _ = session.run(crops(2))
    kept = first.copy()
    for seed in range(1, 5):
        session.run(crops(2, seed))
    assert (first == kept).all()


def test_the_steady_batch_is_a_graph_and_others_are_not(bench: Bench) -> None:
    session = open_session(bench.plan)
    events = bench.memory.events
    events.clear()
    lane = session._free.get()  # type: ignore[attr-defined]  one lane, so that its steps can be told
    for count in (4, 4, 3, 4, 4, 4):
        lane.run(crops(count))
    told = " ".join(event for event in events if event != "wait")
    # The lane has captured the batch it is best at; the short one forgets that, and the next long one is prepared anew.
    assert told == "launch launch capture launch launch"


def test_without_graphs(bench: Bench) -> None:
    bench.memory.graphs = False
    session = open_session(bench.plan)
    assert "no CUDA graph" in session.backend
    for seed in range(3):
        np.testing.assert_allclose(session.run(crops(4, seed))[0], expected(crops(4, seed)), atol=1e-5)


def test_a_capture_that_fails_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(*_: Any) -> None:
        raise RuntimeError("CUDA: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    monkeypatch.setattr(bench.memory, "capture", capture)
    session = open_session(bench.plan)
    assert "no CUDA graph (CUDA: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)" in session.backend
    for seed in range(3):
        np.testing.assert_allclose(session.run(crops(4, seed))[0], expected(crops(4, seed)), atol=1e-5)


def test_crops_of_the_gpu_never_come_to_the_host(
    bench: Bench, crop_kernel: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(tensorrt_session, "_crop_kernel", lambda plugin: crop_kernel)
    session = open_session(bench.plan)
    assert session.backend.endswith("crops cut on the GPU")
    image = rng.integers(0, 256, (50, 60, 3), np.uint8)
    rects = rng.uniform([-5, -5, 25, 25], [20, 20, 55, 55], (5, 4))
    room = session.allocate(8)
    assert isinstance(room, DeviceCrops)
    room[:5].cut(Picture(image, 60, 50), rects)
    bench.memory.events.clear()
    monkeypatch.setattr(bench.memory, "upload", None)
    given = to_input(cut_crops(image, rects, SIZE, session.constants.fill))
    for count in (5, 3, 3, 5):
        np.testing.assert_allclose(session.run(room[:count])[0], expected(given[:count]), atol=1 / 64)


def test_masks_from_crops_of_the_gpu(
    bench: Bench, crop_kernel: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    images = [rng.integers(0, 256, (8 + n, 10, 3), np.uint8).repeat(9, 0).repeat(9, 1) for n in range(4)]
    boxes = [rng.uniform([-5, -5, 30, 30], [25, 25, 95, 80], (count, 4)) for count in (3, 70, 0, 9)]

    def label() -> list[np.ndarray]:
        with MaskLabeler(bench.plan, workers=3) as labeler:
            return [result.masks for result in labeler.stream(zip(images, boxes, strict=True))]

    on_host = label()
    monkeypatch.setattr(tensorrt_session, "_crop_kernel", lambda plugin: crop_kernel)
    for ours, theirs in zip(label(), on_host, strict=True):
        assert ours.shape == theirs.shape
        assert not theirs.size or np.mean(ours != theirs) < 0.001


def test_two_batches_in_flight(bench: Bench) -> None:
    session = open_session(bench.plan)
    batches = [crops(1 + seed % 8, seed) for seed in range(200)]
    with ThreadPoolExecutor(session.lanes) as pool:
        for given, (logits, _) in zip(batches, pool.map(session.run, batches), strict=True):
            np.testing.assert_allclose(logits, expected(given), atol=1e-5)


def test_a_profile_that_begins_higher_is_filled_up(bench: Bench) -> None:
    bench.write(tiny_model(refine=0).SerializeToString(), profile=Profile(4, 4, 8))
    given = crops(3)
    np.testing.assert_allclose(open_session(bench.plan).run(given)[0], expected(given), atol=1e-5)


def test_a_batch_above_the_profile(bench: Bench) -> None:
    session = open_session(bench.plan)
    with pytest.raises(UsageError, match=r"a batch of 9 crops is outside the engine's profile 1:4:8; use --batch 8"):
        session.run(crops(9))


@pytest.mark.parametrize("fails", ["set_input_shape", "execute_async_v3"])
def test_a_failing_run_is_an_error_and_the_next_one_works(bench: Bench, fails: str) -> None:
    session = open_session(bench.plan)
    for _ in range(2 * session.lanes):  # no lane is lost
        bench.trt.fail.add(f"IExecutionContext.{fails}")
        with pytest.raises(EngineError, match=f"IExecutionContext.{fails} says no"):
            session.run(crops(2))
        bench.trt.fail.clear()
        np.testing.assert_allclose(session.run(crops(3))[0], expected(crops(3)), atol=1e-5)


class Foreign:
    """An array of another library on the GPU."""

    def __init__(self, array: np.ndarray, typestr: str = "<f4", strides: tuple[int, ...] | None = None) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "version": 3, "shape": array.shape, "typestr": typestr, "data": (array.ctypes.data, False),
            "strides": strides,
        }  # fmt: skip


def test_device_arrays_come_in_and_go_out_without_a_copy(bench: Bench) -> None:
    session: Any = open_session(bench.plan)
    given = crops(3)
    logits, scores = session.run_on_device(Foreign(given))
    assert isinstance(logits, DeviceArray)
    assert (logits.shape, scores.shape) == ((3, 8, 8), (3,))
    told = logits.__cuda_array_interface__
    assert (told["version"], told["typestr"], told["strides"]) == (3, "<f4", None)
    np.testing.assert_allclose(logits.block.owner.reshape(3, 8, 8), expected(given), atol=1e-5)
    for seed in range(4):  # the lane's own memory is bound again
        np.testing.assert_allclose(session.run(crops(4, seed))[0], expected(crops(4, seed)), atol=1e-5)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (crops(2), ShapeError, "expected crops on the GPU, got ndarray"),
        (Foreign(crops(2), "<f8"), ShapeError, "expected a contiguous float32 array, got float64"),
        (Foreign(crops(2), strides=(1, 2, 3, 4)), ShapeError, "contiguous"),
        (Foreign(np.zeros((2, 3, 8, 8), np.float32)), ShapeError, r"crops must be \(B, 3, 32, 32\)"),
        (Foreign(crops(9)), UsageError, "outside the engine's profile"),
    ],
)
def test_other_device_arrays(bench: Bench, array: Any, error: type[MalError], message: str) -> None:
    session: Any = open_session(bench.plan)
    with pytest.raises(error, match=message):
        session.run_on_device(array)


def test_the_cpu_was_asked_for(bench: Bench) -> None:
    with pytest.raises(DeviceError, match=r"cpu was asked for, and an engine .* use the \.onnx"):
        open_session(bench.plan, "cpu")
    with pytest.raises(DeviceError, match=r"cuda:1 was .* the driver sees 1 GPUs; the \.onnx beside") as told:
        open_session(bench.plan, "cuda:1")
    assert "--device cpu" not in str(told.value)  # this would be refused, too


def test_hardware_compatible_engines_run_on_later_chips(bench: Bench) -> None:
    bench.write(tiny_model(refine=0).SerializeToString(), hardware_compatible=True)
    open_session(bench.plan).close()
    bench.see(Gpu(0, "B200", 100))
    open_session(bench.plan).close()
    bench.see(T4)
    with pytest.raises(EngineError, match="Tesla T4 has 75"):
        open_session(bench.plan)


def test_rtx_makes_its_own_graphs(bench: Bench) -> None:
    bench.install(make_tensorrt(rtx=True, version="1.7.1.116"))
    bench.see(RTX4090)
    bench._patch.setattr(engine_from_onnx, "make_parser_safe", lambda: None)
    bench.write(tiny_model(refine=0).SerializeToString(), compute_capabilities=(86, 89))
    session = open_session(bench.plan)
    assert session.backend.startswith("tensorrt_rtx 1.7.1.116, its own CUDA graphs")
    np.testing.assert_allclose(session.run(crops(3))[0], expected(crops(3)), atol=1e-5)
    assert "capture" not in bench.memory.events
    bench.see(T4)
    with pytest.raises(EngineError, match="for compute capability 86, 89, and Tesla T4 has 75"):
        open_session(bench.plan)


@pytest.fixture
def refined(bench: Bench) -> Bench:
    library = bench.plan.with_name("libmal.so")
    library.write_bytes(b"as good as any, here")
    bench.write(tiny_model().SerializeToString(), plugin=library)
    return bench


def test_the_plugin_is_there_as_long_as_a_session_is(refined: Bench) -> None:
    creators = refined.trt.get_plugin_registry().all_creators
    first, second = open_session(refined.plan), open_session(refined.plan)
    assert len(creators) == 1
    first.close()
    assert len(creators) == 1
    second.close()
    assert creators == []


def test_rebuilding_makes_it_fit(refined: Bench) -> None:
    other_version(refined)
    other_chip(refined)
    tampered(refined)
    before = json.loads(manifest_path(refined.plan).read_text())
    rebuild_engine(refined.plan)
    open_session(refined.plan).close()
    after = json.loads(manifest_path(refined.plan).read_text())
    assert (after["engine"]["tensorrt"], after["engine"]["compute_capabilities"]) == ("tensorrt 10.16.0.72", [89])
    assert after["engine"]["profile"] == before["engine"]["profile"] == "1:4:8"
    assert after["rebuilt"]["from_plan_sha256"] == before["sha256"]
    assert {**after, "engine": 0, "sha256": 0, "bytes": 0, "rebuilt": 0} == {
        **before, "engine": 0, "sha256": 0, "bytes": 0, "rebuilt": 0,
    }  # fmt: skip


def test_what_cannot_be_rebuilt(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--rebuild is for engines \(\.plan\), got student"):
        rebuild_engine(Path("student"))
    onnx = bench.plan.with_suffix(".onnx")
    onnx.write_bytes(tiny_model().SerializeToString())  # an ONNX of another model
    with pytest.raises(ModelFileError, match=r"m\.onnx: its sha256 is .* not the ONNX file that the engine was built"):
        rebuild_engine(bench.plan)
    onnx.unlink()
    with pytest.raises(ModelFileError, match=r"--rebuild needs .*m\.onnx, the model that m\.plan was built from"):
        rebuild_engine(bench.plan)
    no_manifest(bench)
    with pytest.raises(ModelFileError, match="has no manifest"):
        rebuild_engine(bench.plan)


def test_no_disk(bench: Bench) -> None:
    """A file size limit stands for the full disk: nothing is half written, and the old engine stays."""
    import resource

    before = {path.name: path.read_bytes() for path in bench.plan.parent.iterdir() if path.is_file()}
    other_version(bench)
    shutil.rmtree(bench.plan.parent / "cache")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limits[1]))
    try:
        with pytest.raises(MalError, match=r"cannot write .*m\.plan\.json: File too large"):
            rebuild_engine(bench.plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in bench.plan.parent.iterdir() if path.is_file()} == before
