"""The session of an engine, on a fake TensorRT."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from engine_bench import RTX4090, T4, Bench, crops, expected
from fake_tensorrt import make_tensorrt
from tensorrt_parts import SIZE, tiny_model

from mal.crops import cut_crops, to_input
from mal.errors import DeviceError, EngineError, MalError, ShapeError, UsageError
from mal.export import engine_from_onnx
from mal.export.engine_options import Profile
from mal.images import Picture
from mal.runtime import tensorrt_session
from mal.runtime.device_crops import DeviceCrops
from mal.runtime.device_memory import DeviceArray
from mal.runtime.labeler import MaskLabeler
from mal.runtime.machine import Gpu
from mal.runtime.session import open_session


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
