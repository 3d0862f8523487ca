"""The head: one pass of fixed cost for every object, whatever its size.

feature maps -> light pyramid to stride 4 -> V (64, h, w)          what lies where
pooled maps  -> two-layer K (64)                                   which of it is the object
logits = sum_c V_c (1 + K_c) + bias                                 (mal.md §2.3, without size buckets)
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

GROUPS = 8


def box_maps(box: Tensor, size: int) -> Tensor:
    """Where each cell of a crop's grid lies in the box.

    Args:
        box: (B, 4) x0, y0, x1, y1 in units of the crop, 0..1.
        size: cells along each side.

    Returns:
        (B, 6, size, size): u, v (-1..1 in the box, clamped at 2), |u|, |v|, u² + v², and 1 inside the box.
    """
    cell = (torch.arange(size, dtype=box.dtype, device=box.device) + 0.5) / size
    u = (2 * cell - box[:, 0:1] - box[:, 2:3]) / (box[:, 2:3] - box[:, 0:1])
    v = (2 * cell - box[:, 1:2] - box[:, 3:4]) / (box[:, 3:4] - box[:, 1:2])
    u, v = u.clamp(-2, 2)[:, None, :].expand(-1, size, -1), v.clamp(-2, 2)[:, :, None].expand(-1, -1, size)
    inside = ((u.abs() <= 1) & (v.abs() <= 1)).to(box.dtype)
    return torch.stack([u, v, u.abs(), v.abs(), u * u + v * v, inside], 1)


def central_box(expansion: float) -> Tensor:
    """(1, 4): the box in units of its own crop, when the crop is the box grown by `expansion`."""
    margin = expansion / (1 + expansion) / 2
    return torch.tensor([[margin, margin, 1 - margin, 1 - margin]])


class Head(nn.Module):
    """Maps of a backbone -> logits at stride 4.

    Args:
        channels, strides: of the maps, as `Backbone` gives them.
        size: S, side of the crops.
        width: channels of the pyramid, a multiple of 8.
        expansion: of the crops that are labelled; fixes the constant box maps.
    """

    def __init__(self, channels: list[int], strides: list[int], size: int, width: int, expansion: float) -> None:
        super().__init__()
        self.strides, self.size = strides, size
        self.coarse = min(16, max(strides))
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.place = nn.Conv2d(6, width, 1)
        self.mix = nn.ModuleDict({str(s): _block(width) for s in (16, 8, 4) if s <= self.coarse})
        self.key = nn.Sequential(nn.Linear(channels[-1] + width, 128), nn.ReLU(), nn.Linear(128, width))
        self.value = nn.Conv2d(width, width, 1)
        self.bias = nn.Parameter(torch.zeros(()))
        nn.init.normal_(self.value.weight, std=0.02)
        # A constant of the graph: in deployment the box is always the same part of the crop.
        self.register_buffer("maps", box_maps(central_box(expansion), size // self.coarse), persistent=False)
        self.maps: Tensor

    def forward(
        self, features: list[Tensor], box: Tensor | None = None, extra: dict[int, Tensor] | None = None
    ) -> Tensor:
        """Logits (B, 1, S/4, S/4).

        Args:
            features: the backbone's maps.
            box: (B, 4) in units of the crop where training lets the box drift; None: the central box.
            extra: what only training knows, by stride of the pyramid: (B, width, S/stride, S/stride), added there.
        """
        extra = extra or {}
        cells = self.size // self.coarse
        maps = (self.maps if box is None else box_maps(box, cells)).to(features[-1].dtype)
        top = self._add(self.place(maps), features, range(self.coarse, 33)) + extra.get(self.coarse, 0)
        top = self.mix[str(self.coarse)](top)
        inside = maps[:, 5:6]
        of_box = (top * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
        key = 1 + self.key(torch.cat([features[-1].mean((2, 3)), of_box], 1))
        for stride in (8, 4):
            if stride < self.coarse:
                top = self._add(_resize(top, self.size // stride), features, range(stride, stride + 1))
                top = top + extra.get(stride, 0)
                top = self.mix[str(stride)](top)
        return (self.value(top) * key[:, :, None, None]).sum(1, keepdim=True) + self.bias

    def _add(self, top: Tensor, features: list[Tensor], strides: range) -> Tensor:
        """Add the maps of these strides, at the resolution of `top`."""
        for lateral, feature, stride in zip(self.lateral, features, self.strides, strict=True):
            if stride in strides:
                top = top + _resize(lateral(feature), top.shape[-1])
        return top


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, width), nn.ReLU(inplace=True)
    )


def _resize(values: Tensor, cells: int) -> Tensor:
    if values.shape[-1] == cells:
        return values
    return interpolate(values, size=(cells, cells), mode="bilinear", align_corners=False)
