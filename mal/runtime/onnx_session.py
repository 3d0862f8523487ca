"""A session on ONNX Runtime: on the CPU, or on a GPU through one of its providers."""

import queue
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.config import ModelConstants
from mal.errors import DeviceError, MalError, MissingPackageError, ModelFileError
from mal.runtime.machine import gpu_count
from mal.runtime.onnx_file import read_metadata
from mal.runtime.session import CPU_BATCH, GPU_BATCH, Wish, check_crops, check_device, read_model

try:
    import onnxruntime
except ImportError as _error:
    raise MissingPackageError(
        'ONNX models need onnxruntime, which is not installed; pip install "mask-auto-labeler[cpu]"'
    ) from _error

from mal.runtime.onnx_providers import Binding, open_on_gpu

DEVICES = ("cuda", "tensorrt", "tensorrt-rtx")
GPU_LANES = 2  # batches in flight: one is copied while the other is computed
_FATAL = 4  # log severity: what goes wrong comes as an exception, not as lines on stderr


def session_options() -> Any:
    """`onnxruntime.SessionOptions` with which a model of ours gives what its file says, and idle threads sleep."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    # Spinning threads take cores from the host stages: 5.5 instead of 9.5 processor ms a crop without (MobileNetV2 at
    # 192 x 192, 2 busy cores).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # It gives biases a scale that is the product of two others, in the type that these have: in float16, INT8 for
    # TensorRT, that is nearly zero, and biases with it (docs/log.md; ONNX Runtime 1.31).
    options.add_session_config_entry("optimization.disable_specified_optimizers", "WeightBiasQuantization")
    return options


class OnnxSession:
    """See `mal.runtime.session.Session`."""

    def __init__(self, path: Path, device: str | None, threads: int) -> None:
        wish = check_device(device, DEVICES)
        content, self.model_id = read_model(path)
        self.constants = ModelConstants.from_metadata(read_metadata(content, path.name), path.name)
        self.threads = threads
        self._path = path
        self._runtime, self._wish = self._open(content, device, wish)
        self._check_contract()
        provider = self._runtime.get_providers()[0].removesuffix("ExecutionProvider")
        self.backend = f"onnxruntime {onnxruntime.__version__} {provider}"
        self.device = f"cuda:{self._wish.number}" if self._wish else "cpu"
        self.lanes, self.auto_batch = (GPU_LANES, GPU_BATCH) if self._wish else (1, CPU_BATCH)
        self._bindings: queue.SimpleQueue[Binding | None] = queue.SimpleQueue()
        for _ in range(self.lanes):
            self._bindings.put(None)

    def run(self, crops: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Session.run`."""
        check_crops(crops, self.constants.size)
        if self._wish is None:
            outputs: Any = self._runtime.run(["logits", "score"], {"crops": crops})
            return outputs[0][:, 0], outputs[1]
        binding = self._bindings.get()
        try:
            if binding is None or binding.count != len(crops):
                binding = Binding(self._runtime, crops.shape, self._wish)
            logits, scores = binding.run(np.ascontiguousarray(crops))
            return logits[:, 0], scores
        finally:
            self._bindings.put(binding)

    def allocate(self, batch: int) -> NDArray[np.float32]:
        """See `Session.allocate`."""
        return np.empty((batch, 3, self.constants.size, self.constants.size), np.float32)

    def close(self) -> None:
        """See `Session.close`."""
        del self._runtime, self._bindings

    def _open(self, content: bytes, device: str | None, wish: Wish | None) -> tuple[Any, Wish | None]:
        """Runtime and the GPU it really runs on."""
        if device is None and "CUDAExecutionProvider" in onnxruntime.get_available_providers() and gpu_count():
            try:
                wish = Wish("cuda", 0)
                return self._load(content, wish), wish
            except DeviceError:  # nobody asked for this GPU: the CPU is the default then, and the caller prints it
                wish = None
        return self._load(content, wish), wish

    def _load(self, content: bytes, wish: Wish | None) -> Any:
        options = session_options()
        options.intra_op_num_threads = self.threads
        try:
            if wish:
                return open_on_gpu(content, options, wish, self.constants.size, GPU_BATCH)
            return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except MalError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no public base
            where = f" on {wish}" if wish else ""
            raise ModelFileError(
                f"{self._path.name}: ONNX Runtime cannot load it{where}: {_first_line(error)}"
            ) from None

    def _check_contract(self) -> None:
        """The inputs and outputs of design §3, batch free; anything else is not ours."""
        size = self.constants.size
        inputs = {item.name: (item.type, item.shape) for item in self._runtime.get_inputs()}
        outputs = {item.name: (item.type, item.shape) for item in self._runtime.get_outputs()}
        crops, logits, score = inputs.get("crops"), outputs.get("logits"), outputs.get("score")
        if (
            set(inputs) != {"crops"}
            or crops != ("tensor(float)", [_batch(crops), 3, size, size])
            or logits is None
            or (logits[0], len(logits[1])) != ("tensor(float)", 4)
            or logits[1][1] not in (1, None)
            or score is None
            or (score[0], len(score[1])) != ("tensor(float)", 1)
        ):
            raise ModelFileError(
                f"{self._path.name} has inputs {inputs} and outputs {outputs}; expected float crops (B, 3, {size}, "
                f"{size}) -> logits (B, 1, h, w) and score (B,): export it with `mal export`"
            )
        if isinstance(_batch(crops), int):
            raise ModelFileError(f"{self._path.name} takes {_batch(crops)} crops only; its batch must be free")


def _batch(port: tuple[str, list[int | str | None]] | None) -> int | str | None:
    return port[1][0] if port and port[1] else None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
