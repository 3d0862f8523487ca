"""The session: a loaded model that turns crops into logits. One protocol, one small file a backend.

student.onnx ─────────► onnx_session       ONNX Runtime: CPU, CUDA, TensorRT or TensorRT-RTX provider
student.plan ─────────► tensorrt_session   TensorRT 10, 11 or RTX
student.safetensors ──► torch_session      torch, where it is installed
"""

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mal.config import ModelConstants
from mal.errors import DeviceError, ModelFileError, ShapeError, UsageError
from mal.runtime.machine import cpu_count

SHIPPED = ("student", "student-int8")
# Crops a call. On a CPU small batches stay in the caches: MobileNetV2 at 192 x 192 took 5.3, 5.4 and 6.2 processor ms a
# crop in batches of 8, 16 and 32 (2 cores of a Xeon, ONNX Runtime 1.31).
CPU_BATCH = 16
GPU_BATCH = 64


class Session(Protocol):
    """A model ready to run. `run` may be called by `lanes` threads at a time, by any.

    constants: what the model was made with.   model_id: first 12 hex digits of the file's SHA-256.
    backend: what runs it and how, "onnxruntime 1.31.1 CPU".   device: "cpu", "cuda:0".
    threads: CPU threads that `run` uses.   auto_batch: crops a call that suit it.
    """

    constants: ModelConstants
    model_id: str
    backend: str
    device: str
    threads: int
    lanes: int
    auto_batch: int

    def run(self, crops: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, 3, S, S) float32 RGB 0..255 -> logits (B, h, w) float32, zero = boundary, and scores (B,) float32.

        The crops are an array of the host, or a part of what `allocate` gave. The results share no memory with them:
        the caller overwrites them afterwards.
        """
        ...

    def allocate(self, batch: int) -> Any:
        """Uninitialised memory for crops (batch, 3, S, S) from which `run` is fastest: `device_crops.Crops`."""
        ...

    def close(self) -> None:
        """Give memory and device back; the session cannot run afterwards."""
        ...


def resolve_model(model: str | Path) -> Path:
    """Path of a model file, or of the shipped student that `model` names.

    Raises:
        ModelFileError: no such file and no such name.
    """
    path = Path(model)
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise ModelFileError(f"cannot read model {model}: {error.strerror}") from None
    if str(model) in SHIPPED:
        shipped = Path(str(resources.files("mal"))) / "models" / f"{model}.onnx"
        if shipped.is_file():
            return shipped
        raise ModelFileError(f"the shipped model {str(model)!r} is missing from this installation; reinstall mal")
    what = "is a folder" if path.is_dir() else "does not exist"
    raise ModelFileError(
        f"model {model} {what}; expected a .onnx, .plan or .safetensors file, or one of {', '.join(SHIPPED)}"
    )


def open_session(
    model: str | Path = "student", device: str | None = None, threads: int | None = None, *, trust: bool = False
) -> Session:
    """Load a model.

    Args:
        model: .onnx, .plan or .safetensors file, or the name of a shipped student.
        device: "cpu", "cuda" or "cuda:N", for an .onnx also "tensorrt" and "tensorrt-rtx", ONNX Runtime's providers;
            None: the first GPU this backend can use, else the CPU.
        threads: CPU threads of the session; None: every processor this process may use.
        trust: run an engine whose manifest is missing or wrong, and say so on stderr.

    Raises:
        ModelFileError: missing, damaged, not one of ours, or an engine without its manifest.
        EngineError: an engine for another TensorRT or chip.
        DeviceError: the device was asked for and cannot be had.
        MissingPackageError: the backend is not installed.
    """
    path = resolve_model(model)
    threads = threads or cpu_count()
    kind = path.suffix.lower()
    if kind == ".onnx":
        from mal.runtime.onnx_session import OnnxSession

        return OnnxSession(path, device, threads)
    if kind == ".safetensors":
        from mal.runtime.torch_session import TorchSession

        return TorchSession(path, device, threads)
    if kind == ".plan":
        from mal.runtime.tensorrt_session import TensorRTSession

        return TensorRTSession(path, device, threads, trust)
    raise ModelFileError(f"{path}: models end in .onnx, .plan or .safetensors, got {kind or 'no suffix'!r}")


class Wish(NamedTuple):
    """A GPU that was asked for, and through what."""

    kind: str  # "cuda"; for ONNX models also "tensorrt" and "tensorrt-rtx", providers of ONNX Runtime
    number: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}"


def check_device(device: str | None, kinds: tuple[str, ...] = ("cuda",)) -> Wish | None:
    """The GPU that a device word names, None for "cpu" and for no wish.

    Raises:
        UsageError: not "cpu", "cuda" or "cuda:N", or the same with another of `kinds`.
    """
    if device in (None, "cpu"):
        return None
    kind, _, index = device.partition(":")
    if kind not in kinds or (":" in device and not (index.isascii() and index.isdecimal())):
        others = "".join(f", {other}" for other in kinds if other != "cuda")
        raise UsageError(f"device {device!r} is not known here; expected cpu, cuda or cuda:0{others}")
    return Wish(kind, int(index or 0))


def no_gpu(device: str, why: str) -> DeviceError:
    """The error for a GPU that was asked for and cannot be had."""
    return DeviceError(f"device {device} was asked for and cannot be used: {why}; use --device cpu to run without")


def read_model(path: Path) -> tuple[bytes, str]:
    """Bytes of a model file and its id.

    Raises:
        ModelFileError: cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read model {path}: {error.strerror}") from None
    return content, hashlib.sha256(content).hexdigest()[:12]


def check_crops(crops: NDArray[np.float32], size: int) -> None:
    """Raise ShapeError unless `crops` is (B, 3, size, size) float32 with B >= 1."""
    if crops.dtype != np.float32 or crops.ndim != 4 or crops.shape[1:] != (3, size, size) or not len(crops):
        raise ShapeError(f"crops must be float32 (B, 3, {size}, {size}), got {crops.dtype} {crops.shape}")
