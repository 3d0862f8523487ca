"""A session on torch, for checkpoints (.safetensors): the only file of the runtime that imports torch."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mal.errors import MissingPackageError
from mal.runtime.session import check_crops, check_device, no_gpu, read_model

try:
    import torch
except ImportError as _error:
    raise MissingPackageError(
        'checkpoints (.safetensors) need torch, which is not installed; pip install "mask-auto-labeler[train]", '
        "or use the .onnx of the same model"
    ) from _error

from mal.network.checkpoint import load_student
from mal.network.deploy import DeployStudent
from mal.plugins.crf_refine.torch_body import crf_refine


class TorchSession:
    """See `mal.runtime.session.Session`. `threads` is torch's setting for the whole process."""

    def __init__(self, path: Path, device: str | None, threads: int) -> None:
        _, self.model_id = read_model(path)
        student, self.constants = load_student(path)
        self.threads = threads
        self.backend = f"torch {torch.__version__}"
        self.device = _choose(device)
        torch.set_num_threads(threads)
        self._model = DeployStudent(student, self.constants).eval().to(self.device)

    def run(self, crops: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Session.run`."""
        check_crops(crops, self.constants.size)
        constants = self.constants
        with torch.inference_mode():
            batch = torch.from_numpy(crops).to(self.device)
            logits, scores = self._model(batch)
            if constants.crf_iterations:
                student = self._model.student
                logits = crf_refine(
                    logits, student.guide(batch), student.inside, constants.crf_iterations, constants.crf_zeta
                )
        return logits[:, 0].float().cpu().numpy(), scores.float().cpu().numpy()

    def close(self) -> None:
        """See `Session.close`."""
        del self._model


def _choose(device: str | None) -> str:
    index = check_device(device)
    if device is None:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if index is None:
        return "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise no_gpu(f"cuda:{index}", f"torch {torch.__version__} sees {count} GPUs")
    return f"cuda:{index}"
