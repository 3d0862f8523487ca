"""One training step, as Lightning wants it: losses, two learning rates, the teacher behind the student."""

import math
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from mal.config import TrainConfig
from mal.train import losses
from mal.train.sighted import Net, logits
from mal.train.teacher import follow, make_teacher
from mal.train.views import View


def epoch_steps(config: TrainConfig) -> int:
    """Steps of an epoch, at least one: however few the crops, nothing divides by zero."""
    return max(1, config.epoch_crops // config.batch)


def round_epochs(config: TrainConfig, round_: int) -> int:
    """Epochs of a round, at least one."""
    return max(1, round(config.rounds[round_] / (epoch_steps(config) * config.batch)))


def lr_share(step: int, steps: int, config: TrainConfig) -> float:
    """Learning rate of a step of a round as a share of the base: a warm-up from near 0, then a cosine."""
    warm = min(config.warmup_steps, steps // 4)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return min(1.0, (step + 1) / (warm + 1)) * (config.lr_last + (1 - config.lr_last) * cosine)


class MalModule(LightningModule):
    """Student and teacher in one round of training.

    Args:
        student: with the weights that the round starts from.
        config: of this run.
        round_: number of the round, from 0.
        crf: whether the CRF loss acts in this round.
    """

    def __init__(self, student: Net, config: TrainConfig, round_: int, *, crf: bool) -> None:
        super().__init__()
        self.student = student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.teacher = make_teacher(self.student)
        self.config, self.round, self.crf = config, round_, crf
        self.matrices = {name for name, each in student.named_parameters() if each.ndim > 1}
        self.train()  # Lightning keeps the modes it finds, and a new BatchNorm would collect statistics

    def train(self, mode: bool = True) -> "MalModule":
        """Switch to training; the teacher never does."""
        super().train(mode)
        self.teacher.eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint knows its round."""
        checkpoint["mal_round"] = self.round

    def configure_optimizers(self) -> Any:
        """AdamW, the backbone slower than the head; weight decay spares biases and norms."""
        config = self.config
        groups: list[dict[str, Any]] = []
        slow = {id(parameter) for parameter in self.student.backbone.parameters()}
        for pretrained, rate in ((True, config.lr_backbone), (False, config.lr_head)):
            train = [
                (name, parameter)
                for name, parameter in self.student.named_parameters()
                if parameter.requires_grad and (id(parameter) in slow) == pretrained
            ]
            # Not by its shape now: FSDP leaves each device flat pieces, under longer names.
            decayed = [name.replace("_fsdp_wrapped_module.", "") in self.matrices for name, _ in train]
            for decay, weight in ((True, config.weight_decay), (False, 0.0)):
                mine = [parameter for (_, parameter), each in zip(train, decayed, strict=True) if each == decay]
                groups.append({"params": mine, "lr": rate, "weight_decay": weight})
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], betas=config.betas)
        steps = round_epochs(config, self.round) * epoch_steps(config)
        # LambdaLR sets the rate before the first step too: no step ever runs at the full rate by accident.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_share(step, steps, config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: View, batch_idx: int) -> Tensor:
        """One batch -> the loss; its terms are logged."""
        terms = self.losses(batch)
        total = torch.stack(list(terms.values())).sum()
        self.log("loss", total, prog_bar=True, on_step=True, on_epoch=False)
        crops = len(batch["trust"])
        for name, value in terms.items():
            self.log(f"loss_{name}", value.detach(), on_step=False, on_epoch=True, batch_size=crops, sync_dist=True)
        return total

    def losses(self, batch: View) -> dict[str, Tensor]:
        """Weighted terms of the loss of one batch."""
        weights = self.config.losses
        crops = batch["student"].contiguous(memory_format=torch.channels_last)
        found = logits(self.student, crops, batch["box"], batch["neighbours"])
        p, size = found.sigmoid(), found.shape[-1]
        terms: dict[str, Tensor] = {}
        if weights.mil:
            terms["mil"] = weights.mil * losses.mil(p, batch["box"], batch["valid"]).mean()
        if weights.label:
            terms["label"] = weights.label * losses.label_loss(found, batch["target"], batch["known"], batch["trust"])
        if weights.crf and self.crf:
            with torch.no_grad():
                clean = batch["teacher"].contiguous(memory_format=torch.channels_last)
                teacher = logits(self.teacher, clean, batch["box"], batch["neighbours"]).sigmoid()
                target = losses.crf_target(
                    p.detach(),
                    teacher,
                    self.student.guide(crops),
                    losses.area_map(batch["box"], size),
                    weights.crf_iterations,
                    weights.crf_zeta,
                )
            ramp = min(1.0, (self.global_step + 1) / (weights.crf_warmup_steps + 1))
            real = losses.area_map(batch["valid"], size).round()
            terms["crf"] = weights.crf * ramp * losses.dice(p, target, real).mean()
        return terms

    def optimizer_step(self, *args: Any, **words: Any) -> None:
        """The teacher follows each step; quickly at first, so that it forgets an untrained head."""
        super().optimizer_step(*args, **words)
        # Lightning counts this step after this method.
        follow(self.teacher, self.student, min(self.config.teacher_momentum, 1 - 1 / (self.global_step + 2)))


def trainable(student: Net, config: TrainConfig, *, pretrained: bool) -> None:
    """Fix what stays as it is: some stages of a trained backbone."""
    if pretrained and config.frozen:
        for stage in range(config.frozen[0], config.frozen[1] + 1):
            for parameter in student.backbone.stage_parameters(stage):
                parameter.requires_grad_(False)
    if not config.lr_backbone:
        student.backbone.requires_grad_(False)
