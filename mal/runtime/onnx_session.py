"""A session on ONNX Runtime, on the CPU or on a CUDA GPU."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.config import ModelConstants
from mal.errors import MissingPackageError, ModelFileError
from mal.runtime.machine import gpu_count
from mal.runtime.onnx_file import read_metadata
from mal.runtime.session import check_crops, check_device, no_gpu, read_model

try:
    import onnxruntime
except ImportError as _error:
    raise MissingPackageError(
        'ONNX models need onnxruntime, which is not installed; pip install "mask-auto-labeler[cpu]"'
    ) from _error

_FATAL = 4  # log severity: what goes wrong comes as an exception, not as lines on stderr


class OnnxSession:
    """See `mal.runtime.session.Session`."""

    def __init__(self, path: Path, device: str | None, threads: int) -> None:
        content, self.model_id = read_model(path)
        self.constants = ModelConstants.from_metadata(read_metadata(content, path.name), path.name)
        self.threads = threads
        self.backend = f"onnxruntime {onnxruntime.__version__}"
        self._path = path
        self._runtime, self.device = self._open(content, device)
        self._check_contract()

    def run(self, crops: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Session.run`."""
        check_crops(crops, self.constants.size)
        outputs: Any = self._runtime.run(["logits", "score"], {"crops": crops})
        return outputs[0][:, 0], outputs[1]

    def close(self) -> None:
        """See `Session.close`."""
        del self._runtime

    def _open(self, content: bytes, device: str | None) -> tuple["onnxruntime.InferenceSession", str]:
        """Runtime and the device it really runs on."""
        index = check_device(device)
        if device is None and "CUDAExecutionProvider" in onnxruntime.get_available_providers() and gpu_count():
            try:
                return self._open_cuda(content, 0), "cuda:0"
            except Exception:  # nobody asked for this GPU: the CPU is the default then, and the caller prints it
                index = None
        if index is None:
            return self._load(content, ["CPUExecutionProvider"]), "cpu"
        return self._open_cuda(content, index), f"cuda:{index}"

    def _open_cuda(self, content: bytes, index: int) -> "onnxruntime.InferenceSession":
        name = f"cuda:{index}"
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise no_gpu(name, 'this onnxruntime is built for the CPU (pip install "mask-auto-labeler[gpu]" instead)')
        if index >= (count := gpu_count()):
            raise no_gpu(name, f"the driver sees {count} GPUs")
        runtime = self._load(content, [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"])
        # ONNX Runtime falls back to the CPU without an exception.
        if runtime.get_providers()[0] != "CUDAExecutionProvider":
            raise no_gpu(name, "ONNX Runtime could not start its CUDA provider (CUDA or cuDNN libraries missing?)")
        return runtime

    def _load(
        self, content: bytes, providers: list[str | tuple[str, dict[str, int]]]
    ) -> "onnxruntime.InferenceSession":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = _FATAL
        # Idle threads of the session sleep instead of spinning, for the host stages need these cores: 5.5 instead of
        # 9.5 processor ms a crop (MobileNetV2 at 192 x 192, 2 busy cores).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return onnxruntime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise ModelFileError(f"{self._path.name}: ONNX Runtime cannot load it: {_first_line(error)}") from None

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
