"""ONNX Runtime's providers on a GPU: open a model on one, or say what is missing. Never another one than asked for.

cuda           CUDA, of onnxruntime-gpu
tensorrt       TensorRT 10, of onnxruntime-gpu; what it cannot take runs on the CUDA provider
tensorrt-rtx   TensorRT-RTX, a plugin of its own (onnxruntime-ep-nv-tensorrt-rtx) to either onnxruntime
"""

import importlib
import io
from contextlib import redirect_stdout
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mal.plugins.compile import cache_folder
from mal.runtime.machine import gpu_count
from mal.runtime.session import Wish, no_gpu

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_RTX = "onnxruntime_ep_nv_tensorrt_rtx"
INSTALL = {
    "cuda": 'pip install "mask-auto-labeler[gpu]" in place of [cpu]',
    "tensorrt": 'pip install "mask-auto-labeler[gpu]" in place of [cpu], and TensorRT 10 for it',
    "tensorrt-rtx": "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13",
}
Floats = NDArray[np.float32]


def open_on_gpu(content: bytes, options: Any, wish: Wish, size: int, most: int) -> Any:
    """An `onnxruntime.InferenceSession` on the provider that was asked for.

    Args:
        content: the model.
        options: `onnxruntime.SessionOptions`; the RTX provider is added to it.
        wish: provider and GPU.
        size: of the crops, pixels.
        most: crops a call that TensorRT is prepared for; more work too, and take a while once.

    Raises:
        DeviceError: the provider is not installed, does not start, or sees no such GPU.
    """
    if wish.number >= (count := gpu_count()):
        raise no_gpu(str(wish), f"the driver sees {count} GPUs")
    if wish.kind == "tensorrt-rtx":
        name = _add_rtx(options, wish)
        runtime = onnxruntime.InferenceSession(content, options)
    else:
        name = _PROVIDERS[wish.kind]
        if name not in onnxruntime.get_available_providers():
            raise no_gpu(str(wish), f"this onnxruntime has no {name}; {INSTALL[wish.kind]}")
        _find_libraries()
        runtime = onnxruntime.InferenceSession(content, options, providers=_settings(wish, size, most))
    # ONNX Runtime goes to the next provider without an exception.
    if runtime.get_providers()[0] != name:
        raise no_gpu(str(wish), f"ONNX Runtime could not start {name}: a library of it is missing; see `mal doctor`")
    return runtime


def _settings(wish: Wish, size: int, most: int) -> list[tuple[str, dict[str, Any]]]:
    cuda = (_PROVIDERS["cuda"], {"device_id": wish.number})
    if wish.kind == "cuda":
        return [cuda]
    folder = str(cache_folder() / "onnxruntime-tensorrt")
    shapes = {f"trt_profile_{name}_shapes": f"crops:{n}x3x{size}x{size}"
              for name, n in (("min", 1), ("opt", most), ("max", most))}  # fmt: skip
    caches = {"trt_engine_cache_enable": True, "trt_engine_cache_path": folder, "trt_timing_cache_enable": True}
    return [(_PROVIDERS["tensorrt"], {"device_id": wish.number, **shapes, **caches}), cuda]


def _add_rtx(options: Any, wish: Wish) -> str:
    """Add TensorRT-RTX's provider to the options; its name."""
    try:
        provider = importlib.import_module(_RTX)
    except (ImportError, OSError):
        raise no_gpu(str(wish), f"{_RTX} is not installed; {INSTALL['tensorrt-rtx']}") from None
    name = str(provider.get_ep_name())
    try:
        _register(name, str(provider.get_library_path()))
    except Exception as error:  # of onnxruntime, without a public base
        raise no_gpu(str(wish), f"{name} does not load: {str(error).splitlines()[0]}") from None
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if wish.number >= len(devices):
        raise no_gpu(str(wish), f"{name} sees {len(devices)} GPUs that it can use")
    options.add_provider_for_devices([devices[wish.number]], {})
    return name


@cache
def _register(name: str, library: str) -> None:
    onnxruntime.register_execution_provider_library(name, library)


@cache
def _find_libraries() -> None:
    """Load CUDA and cuDNN from NVIDIA's wheels, where they lie outside of the loader's path."""
    with redirect_stdout(io.StringIO()):  # it prints what it does not find; the provider's own error says it better
        onnxruntime.preload_dlls()


class Binding:
    """Inputs and outputs of one batch size, kept on the GPU between calls.

    Args:
        runtime: session on the provider.
        shape: of the crops.
        wish: provider and GPU. The RTX plugin has memory of its own: it is handed the host's.
    """

    def __init__(self, runtime: Any, shape: tuple[int, ...], wish: Wish) -> None:
        self.count = shape[0]
        self._runtime = runtime
        self._binding: Any = runtime.io_binding()
        self._crops: Any = None
        place = ("cpu", 0) if wish.kind == "tensorrt-rtx" else ("cuda", wish.number)
        if place[0] == "cuda":
            self._crops = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *place)
            self._binding.bind_ortvalue_input("crops", self._crops)
        for name in ("logits", "score"):
            self._binding.bind_output(name, *place)

    def run(self, crops: Floats) -> tuple[Floats, Floats]:
        """Logits (B, 1, h, w) and scores (B,)."""
        if self._crops is None:
            self._binding.bind_cpu_input("crops", crops)
        else:
            self._crops.update_inplace(crops)
        self._runtime.run_with_iobinding(self._binding)
        logits, score = self._binding.copy_outputs_to_cpu()
        return logits, score
