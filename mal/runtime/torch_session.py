"""A session on torch, for checkpoints (.safetensors): the only file of the runtime that imports torch.

On a CPU in float32; on a GPU in float16 and compiled, with the score and the refinement in float32.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.errors import MissingPackageError, ShapeError
from mal.runtime.device_memory import is_device_array
from mal.runtime.session import CPU_BATCH, GPU_BATCH, check_crops, check_device, no_gpu, read_model

try:
    import torch
except ImportError as _error:
    raise MissingPackageError(
        'checkpoints (.safetensors) need torch, which is not installed; pip install "mask-auto-labeler[train]", '
        "or use the .onnx of the same model"
    ) from _error

from torch import Tensor, nn

from mal.network.checkpoint import load_student
from mal.network.deploy import DeployStudent
from mal.plugins.crf_refine.torch_body import body, crf_refine


class TorchSession:
    """See `mal.runtime.session.Session`. `threads` is torch's setting for the whole process."""

    lanes = 1

    def __init__(self, path: Path, device: str | None, threads: int) -> None:
        self.device = _choose(device)
        _, self.model_id = read_model(path)
        student, self.constants = load_student(path)
        self.threads = threads
        self.auto_batch = CPU_BATCH if self.device == "cpu" else GPU_BATCH
        torch.set_num_threads(threads)
        self._student = student.to(self.device)
        model = DeployStudent(student, self.constants).eval()
        how = "float32"
        if self.device != "cpu":
            half_precision(model)
            model, compiled = self._compile(model)
            how = f"float16, {compiled}"
        self._model: Any = model
        crf = f", CRF by {body(torch.device(self.device))}" if self.constants.crf_iterations else ""
        self.backend = f"torch {torch.__version__} {how}{crf}"

    def run(self, crops: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Session.run`."""
        check_crops(crops, self.constants.size)
        logits, scores = self._run(torch.from_numpy(crops).to(self.device, non_blocking=True))
        return logits.cpu().numpy(), scores.cpu().numpy()

    def run_on_device(self, crops: Any) -> tuple[Tensor, Tensor]:
        """As `run`, without a copy: crops on this GPU in, torch tensors (B, h, w) and (B,) on this GPU out.

        Args:
            crops: float32 (B, 3, S, S) by DLPack or __cuda_array_interface__.

        Raises:
            ShapeError: another kind of array.
        """
        if not is_device_array(crops):
            raise ShapeError(f"expected crops on the GPU, got {type(crops).__name__}; `run` takes those of the host")
        dlpack = hasattr(crops, "__dlpack__")
        batch = torch.from_dlpack(crops) if dlpack else torch.as_tensor(crops, device=self.device)
        size = self.constants.size
        found = (batch.dtype, tuple(batch.shape[1:]), str(batch.device))
        if found != (torch.float32, (3, size, size), self.device):
            raise ShapeError(
                f"crops must be float32 (B, 3, {size}, {size}) on {self.device}, got {batch.dtype} "
                f"{tuple(batch.shape)} on {batch.device}"
            )
        return self._run(batch)

    def allocate(self, batch: int) -> NDArray[np.float32]:
        """See `Session.allocate`."""
        shape = (batch, 3, self.constants.size, self.constants.size)
        return torch.empty(shape, pin_memory=self.device != "cpu").numpy()

    def close(self) -> None:
        """See `Session.close`."""
        del self._model, self._student

    @torch.inference_mode()
    def _run(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        constants = self.constants
        logits, scores = self._model(batch)
        if constants.crf_iterations:
            guide = self._student.guide(batch)
            logits = crf_refine(logits, guide, self._student.inside, constants.crf_iterations, constants.crf_zeta)
        return logits[:, 0].float(), scores.float()

    def _compile(self, model: nn.Module) -> tuple[Any, str]:
        """The model compiled for any batch, and what to say about it; as it is where this machine cannot compile."""
        compiled = torch.compile(model, dynamic=True)
        size = self.constants.size
        try:
            with torch.inference_mode():
                compiled(torch.zeros(2, 3, size, size, device=self.device))
        except Exception as error:  # of torch's compiler, or of the C compiler that it calls
            return model, f"not compiled ({(str(error).splitlines() or ['no reason given'])[0]})"
        return compiled, "compiled"


class _Half(nn.Module):
    """A float16 module whose inputs may come in float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.half()

    def forward(self, values: Tensor) -> Any:
        return self.inner(values.half())


def half_precision(model: DeployStudent) -> None:
    """Run the network in float16, in place; normalisation, threshold and score stay in float32, as in an FP16 ONNX.

    Convolutions run with channels last, which tensor cores want.
    """
    student = model.student
    student.backbone = _Half(student.backbone)  # pyright: ignore[reportAttributeAccessIssue]  forward is all that counts
    student.head.half()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _choose(device: str | None) -> str:
    wish = check_device(device)
    if device is None:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wish is None:
        return "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wish.number >= count:
        raise no_gpu(str(wish), f"torch {torch.__version__} sees {count} GPUs")
    return str(wish)
