"""Any timm backbone as a list of feature maps.

A convolutional network gives its feature pyramid (strides 4 to 32); a plain ViT the tokens of four blocks,
laid out as maps of one stride.
"""

import difflib
import re
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mal.errors import UsageError

TAO_NAMES = {
    "vit-deit-tiny/16": "deit_tiny_patch16_224",
    "vit-deit-small/16": "deit_small_patch16_224",
    "vit-deit-base/16": "deit_base_patch16_224",
    "vit-deit-base-distilled/16": "deit_base_distilled_patch16_224",
    "vit-deit-iii-base-224/16": "deit3_base_patch16_224",
    "vit-mocov3-base/16": "vit_base_patch16_224",
    "vit-mae-base/16": "vit_base_patch16_224",
    "vit-mae-large/16": "vit_large_patch16_224",
    "vit-mae-huge/14": "vit_huge_patch14_224",
}
MAE_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # MAE and MoCo v3 were trained with ImageNet's


def timm_name(name: str) -> str:
    """Translate a backbone's name: timm's as it is, TAO's (`vit-mae-base/16`) into timm's.

    Raises:
        UsageError: timm has no such model; the message names the nearest known one.
    """
    known = TAO_NAMES.get(name, name)
    if not timm.is_model(known.split(".")[0]):
        near = difflib.get_close_matches(name, [*TAO_NAMES, *timm.list_models()], n=1, cutoff=0.0)
        raise UsageError(f"unknown backbone {name!r}; the nearest known one is {near[0]!r}")
    return known


class Backbone(nn.Module):
    """Feature maps of a timm network.

    Args:
        name: timm's or TAO's name of the network.
        size: S, side of the square crops.

    Attributes:
        channels, strides: of the maps that `forward` returns, finest first. Strides are powers of two: a patch
            of 14 pixels counts as 16, and the head resamples.
        mean, std: of RGB in 0..1, as the network was pretrained.

    Raises:
        UsageError: unknown name, or a network without usable maps at this size.
    """

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.name = timm_name(name)
        # The layout first; on the meta device it takes no memory and no random numbers.
        with torch.device("meta"):
            try:
                layout, extra = _features(self.name, img_size=size), {"img_size": size}
            except TypeError:  # convolutional networks take any size and no such argument
                layout, extra = _features(self.name), {}
        info: list[dict[str, Any]] = layout.feature_info.info
        taken = _choose([int(level["reduction"]) for level in info])
        self.net = _features(self.name, out_indices=taken, **extra)
        self.channels: list[int] = self.net.feature_info.channels()
        self.strides = [_power_of_two(int(stride)) for stride in self.net.feature_info.reduction()]
        config: dict[str, Any] = timm.get_pretrained_cfg(self.name).to_dict()  # type: ignore[union-attr]
        self.mean, self.std = (
            MAE_STATISTICS if name.startswith(("vit-mae", "vit-mocov3")) else (config["mean"], config["std"])
        )

    def forward(self, crops: Tensor) -> list[Tensor]:
        """Maps (B, C_i, ~S / stride_i, ~S / stride_i) of normalised crops (B, 3, S, S)."""
        maps: list[Tensor] = self.net(crops)
        return [  # some transformers put the channels last
            values if values.shape[1] == channels else values.permute(0, 3, 1, 2)
            for values, channels in zip(maps, self.channels, strict=True)
        ]

    def stage_parameters(self, stage: int) -> list[nn.Parameter]:
        """Parameters of one stage.

        Args:
            stage: 0: the layers before the first map of stride 4, or the patch embedding (general edges and colours);
                from 1 on: the blocks of a plain ViT, the stages of other networks.

        Raises:
            UsageError: there is no such stage.
        """
        names = [name for name, _ in self.net.named_modules()]
        found = [name for name in names if _STAGE.fullmatch(name)]
        stem = [name for name in names if name in _STEM]
        if found[0] == "blocks.0" and self.strides[0] <= 4:  # inverted residuals: the first works at the stem's stride
            stem.append(found.pop(0))
        if not 0 <= stage <= len(found):
            raise UsageError(f"backbone {self.name} has the stages 0 to {len(found)}, not {stage}")
        modules = dict(self.net.named_modules())
        return [p for name in (stem if stage == 0 else found[stage - 1 : stage]) for p in modules[name].parameters()]


_STEM = {"model.patch_embed", "patch_embed", "stem_0", "stem_1", "stem", "conv_stem", "conv1", "bn1"}
_STAGE = re.compile(r"(model\.)?(blocks\.|stages[_.]|layers[_.]|layer|s)\d+")


def _features(name: str, **extra: Any) -> Any:
    try:
        return timm.create_model(name, pretrained=False, features_only=True, **extra)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"backbone {name!r} cannot give feature maps: {reason}") from None


def _choose(strides: list[int]) -> list[int]:
    """Indices of the maps to take: the last one of each stride 4..32; of one stride throughout, four evenly."""
    if len(set(strides)) == 1:
        return sorted({max(0, round(len(strides) * part / 4) - 1) for part in (1, 2, 3, 4)})
    last = {stride: index for index, stride in enumerate(strides)}
    return [index for stride, index in last.items() if 4 <= stride <= 32]


def _power_of_two(stride: int) -> int:
    return max((4, 8, 16, 32), key=lambda power: -abs(power - stride))
