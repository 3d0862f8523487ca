"""The deployed graph: what ONNX, TensorRT and DeepStream run."""

from torch import Tensor, nn

from mal.config import ModelConstants
from mal.network.student import Student


class DeployStudent(nn.Module):
    """Crops -> logits whose zero is the boundary, and scores. Nothing downstream knows a threshold.

    Source: design, fixed arithmetic ("decision").
    """

    def __init__(self, student: Student, constants: ModelConstants) -> None:
        super().__init__()
        self.student = student.eval()
        self.constants = constants

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """crops (B, 3, S, S) float RGB 0..255 -> logits (B, 1, S/4, S/4), zero = boundary, and scores (B,)."""
        logits, score = self.student(crops)
        return logits - self.student.boundary, score
