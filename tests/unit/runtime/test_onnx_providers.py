"""ONNX Runtime on a GPU, without one: which provider is asked for, that it is the one used, and what is said if not."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mal.errors import DeviceError
from mal.runtime import onnx_providers, onnx_session
from mal.runtime.session import open_session

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"


class Value:
    """An OrtValue that says where it lies."""

    def __init__(self, shape: tuple[int, ...], place: tuple[str, int]) -> None:
        self.array, self.place = np.full(shape, np.nan, np.float32), place

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.shape == self.array.shape
        self.array[:] = array


class Binding:
    def __init__(self) -> None:
        self.crops: np.ndarray | None = None
        self.outputs: dict[str, tuple[str, int]] = {}
        self.results: list[np.ndarray] = []

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        assert (name, value.place[0]) == ("crops", "cuda")
        self.crops = value.array

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.crops = array

    def bind_output(self, name: str, *place: Any) -> None:
        self.outputs[name] = place

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        return self.results


class Machine:
    """An ONNX Runtime for GPUs: the real one on the CPU, under other names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.available = [TENSORRT, CUDA, CPU]
        self.broken: set[str] = set()
        self.asked: list[Any] = []
        self.bindings: list[Binding] = []
        machine, real = self, onnxruntime.InferenceSession

        class Session:
            def __init__(self, content: bytes, options: Any, providers: Any = None) -> None:
                self._real = real(content, options, providers=[CPU])
                machine.asked.append(providers)
                names = [item if isinstance(item, str) else item[0] for item in providers or [RTX]]
                self._names = [name for name in [*names, CPU] if name not in machine.broken]

            def get_providers(self) -> list[str]:
                return self._names

            def io_binding(self) -> Binding:
                machine.bindings.append(Binding())
                return machine.bindings[-1]

            def run_with_iobinding(self, binding: Binding) -> None:
                binding.results = self._real.run(list(binding.outputs), {"crops": binding.crops})

            def __getattr__(self, name: str) -> Any:
                return getattr(self._real, name)

        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: self.available)
        monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", lambda s, t, *place: Value(s, place))
        for module in (onnx_providers, onnx_session):
            monkeypatch.setattr(module, "gpu_count", lambda: 2)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(count).uniform(0, 255, (count, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize(
    ("device", "provider", "used", "reported"),
    [
        (None, CUDA, "CUDA", "cuda:0"),
        ("cuda", CUDA, "CUDA", "cuda:0"),
        ("cuda:1", CUDA, "CUDA", "cuda:1"),
        ("tensorrt:1", TENSORRT, "Tensorrt", "cuda:1"),
    ],
)
def test_the_provider_that_was_asked_for(
    machine: Machine, model: Path, device: str | None, provider: str, used: str, reported: str
) -> None:
    session = open_session(model, device)
    first, settings = machine.asked[-1][0]
    assert (first, settings["device_id"]) == (provider, int(reported[-1]))
    assert (session.backend, session.device) == (f"onnxruntime {onnxruntime.__version__} {used}", reported)
    assert (session.lanes, session.auto_batch) == (2, 64)
    if provider == TENSORRT:
        assert settings["trt_profile_max_shapes"] == "crops:64x3x32x32"
        assert machine.asked[-1][1][0] == CUDA


def test_bindings_keep_the_steady_batch_on_the_gpu(machine: Machine, model: Path) -> None:
    session = open_session(model, "cuda:1")
    plain = open_session(model, "cpu")
    for count in (4, 4, 4, 4, 3):
        for ours, expected in zip(session.run(crops(count)), plain.run(crops(count)), strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert len(machine.bindings) == 3  # one for each lane, and one more for the short batch
    assert all(binding.outputs == {"logits": ("cuda", 1), "score": ("cuda", 1)} for binding in machine.bindings)


@pytest.mark.parametrize(
    ("change", "device", "message"),
    [
        ({"available": [CPU]}, "cuda", r'has no CUDAExecutionProvider; pip install "mask-auto-labeler\[gpu\]"'),
        ({"available": [CUDA, CPU]}, "tensorrt", r"has no TensorrtExecutionProvider; .* TensorRT 10"),
        ({"broken": {CUDA}}, "cuda", "could not start CUDAExecutionProvider"),
        ({"broken": {TENSORRT}}, "tensorrt", "could not start TensorrtExecutionProvider"),
        ({}, "cuda:2", "the driver sees 2 GPUs"),
        ({}, "tensorrt-rtx", "is not installed; pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"),
    ],
)
def test_asked_for_and_missing(
    machine: Machine, model: Path, change: dict[str, Any], device: str, message: str
) -> None:
    for name, value in change.items():
        setattr(machine, name, value)
    with pytest.raises(DeviceError, match=f"device {device}.* was asked for and cannot be used: .*{message}"):
        open_session(model, device)


def test_the_default_goes_to_the_cpu_and_says_so(machine: Machine, model: Path) -> None:
    machine.broken = {CUDA}
    session = open_session(model)
    assert (session.device, session.backend.split()[-1]) == ("cpu", "CPU")


def test_the_rtx_plugin(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime_ep_nv_tensorrt_rtx.py").write_text(
        f"def get_ep_name(): return {RTX!r}\ndef get_library_path(): return '/x/librtx.so'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    onnx_providers._register.cache_clear()
    devices = [type("Device", (), {"ep_name": RTX})(), type("Device", (), {"ep_name": CPU})()]
    registered: list[tuple[str, str]] = []
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *words: registered.append(words))
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: devices)
    monkeypatch.setattr(onnxruntime.SessionOptions, "add_provider_for_devices", lambda self, chosen, options: None)
    session = open_session(model, "tensorrt-rtx")
    assert registered == [(RTX, "/x/librtx.so")]
    assert session.backend.endswith(" NvTensorRTRTX")
    np.testing.assert_array_equal(session.run(crops(3))[0], open_session(model, "cpu").run(crops(3))[0])
    with pytest.raises(DeviceError, match="sees 1 GPUs that it can use"):
        open_session(model, "tensorrt-rtx:1")
    onnx_providers._register.cache_clear()
