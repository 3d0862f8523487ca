"""The student: normalisation, backbone, head and score as one module."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from mal.config import ModelConstants
from mal.errors import UsageError
from mal.network.backbone import Backbone
from mal.network.head import Head
from mal.network.score import inside_map, mask_score


class Student(nn.Module):
    """Crops -> mask logits and a score.

    Args:
        constants: backbone, size, width and expansion shape the network; threshold places the boundary
            that the score is measured at.

    Raises:
        UsageError: the backbone is unknown or gives no maps at this size.
    """

    def __init__(self, constants: ModelConstants) -> None:
        super().__init__()
        self.constants = constants
        self.backbone = Backbone(constants.backbone, constants.size)
        self.head = Head(
            self.backbone.channels, self.backbone.strides, constants.size, constants.width, constants.expansion
        )
        self.boundary = math.log(constants.threshold / (1 - constants.threshold))
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (self.backbone.mean, self.backbone.std))
        # Constants of the graph, made anew from the constants, never stored.
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.register_buffer("inside", inside_map(constants.expansion, constants.size // 4), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.inside: Tensor

    def at_size(self, size: int) -> "Student":
        """A copy for crops of another size, a multiple of 32; UsageError for a backbone that has learned places."""
        other = Student(self.constants.model_copy(update={"size": size}))
        try:
            other.load_state_dict(self.state_dict())
        except RuntimeError:
            raise UsageError(
                f"{self.constants.backbone} has learned where its {self.constants.size} pixels are and cannot see "
                f"crops of {size}; leave sighted_size out"
            ) from None
        return other.train(self.training)

    def forward(self, crops: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Label a batch of crops.

        Args:
            crops: (B, 3, S, S) float RGB, 0..255.
            box: (B, 4) in units of the crop; only training gives it (its boxes drift), None is the central box.

        Returns:
            logits (B, 1, S/4, S/4), the threshold not yet subtracted, and scores (B,) 0..1.
        """
        logits = self.logits(crops, box)
        return logits, mask_score(logits - self.boundary, self.inside)

    def logits(self, crops: Tensor, box: Tensor | None = None) -> Tensor:
        """Logits alone, as `forward` gives them: what the losses need."""
        return self.head(self.backbone((crops - self.mean) / self.std), box).float()

    def guide(self, crops: Tensor) -> Tensor:
        """Colours that CRF refinement compares: (B, 3, S/4, S/4), the normalised crops averaged over each cell."""
        return avg_pool2d((crops - self.mean) / self.std, 4)

    def train(self, mode: bool = True) -> "Student":
        """Switch to training; BatchNorm keeps the statistics of the pretraining (batches here are small)."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                module.eval()
        return self
