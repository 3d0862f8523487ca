"""The session: a loaded model that turns crops into logits. One protocol, one small file a backend.

student.onnx ─────────► onnx_session    ONNX Runtime, CPU or CUDA
student.safetensors ──► torch_session   torch, where it is installed
student.plan ─────────► TensorRT        not in this version
"""

import hashlib
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mal.config import ModelConstants
from mal.errors import DeviceError, ModelFileError, ShapeError, UsageError
from mal.runtime.machine import cpu_count

SHIPPED = ("student",)


class Session(Protocol):
    """A model ready to run. `run` may be called by one thread at a time.

    constants: what the model was made with.   model_id: first 12 hex digits of the file's SHA-256.
    backend: "onnxruntime 1.31.1".   device: "cpu", "cuda:0".   threads: CPU threads that `run` uses.
    """

    constants: ModelConstants
    model_id: str
    backend: str
    device: str
    threads: int

    def run(self, crops: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, 3, S, S) float32 RGB 0..255 -> logits (B, h, w) float32, zero = boundary, and scores (B,) float32.

        The results share no memory with the crops, which the caller overwrites afterwards.
        """
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
    raise ModelFileError(f"model {model} {what}; expected a .onnx or .safetensors file, or one of {', '.join(SHIPPED)}")


def open_session(model: str | Path = "student", device: str | None = None, threads: int | None = None) -> Session:
    """Load a model.

    Args:
        model: .onnx or .safetensors file, or the name of a shipped student.
        device: "cpu", "cuda" or "cuda:N"; None: the first GPU this backend can use, else the CPU.
        threads: CPU threads of the session; None: every processor this process may use.

    Raises:
        ModelFileError: missing, damaged, not one of ours, or of a kind that this version cannot run.
        DeviceError: the device was asked for and cannot be had.
        MissingPackageError: the backend is not installed.
    """
    path = resolve_model(model)
    check_device(device)
    threads = threads or cpu_count()
    kind = path.suffix.lower()
    if kind == ".onnx":
        from mal.runtime.onnx_session import OnnxSession

        return OnnxSession(path, device, threads)
    if kind == ".safetensors":
        from mal.runtime.torch_session import TorchSession

        return TorchSession(path, device, threads)
    if kind in (".plan", ".engine"):
        raise ModelFileError(f"{path}: TensorRT engines come with a later version; use the .onnx they were built from")
    raise ModelFileError(f"{path}: models end in .onnx or .safetensors, got {kind or 'no suffix'!r}")


def check_device(device: str | None) -> int | None:
    """Index of the GPU that a device word names, None for "cpu" and for no wish.

    Raises:
        UsageError: not "cpu", "cuda" or "cuda:N".
    """
    if device in (None, "cpu"):
        return None
    name, _, index = device.partition(":")
    if name != "cuda" or (":" in device and not index.isdecimal()):
        raise UsageError(f"device {device!r} is not known; expected cpu, cuda or cuda:0")
    return int(index or 0)


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
