"""What a training leaves behind while it runs: checkpoint, metrics, pictures, one line an epoch."""

import csv
import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image

from mal.config import ModelConstants, TrainConfig
from mal.crops import cut_crop
from mal.errors import MalError, OutputError
from mal.network.checkpoint import save_student
from mal.train.judge import Probability, judge
from mal.train.labels import iou
from mal.train.module import MalModule, epoch_steps
from mal.train.samples import Samples
from mal.train.sighted import blind
from mal.train.validation import Truth
from mal.train.views import View


class Watch(Callback):
    """Writes RUN after each epoch. The checkpoint comes last: what it says is done, is done.

    Args:
        run: the RUN folder.
        samples: all training crops.
        aside: rows of the samples judged.
        before: crops seen in earlier rounds.
        truth: objects with true masks to judge by, or None.
        constants: of the student, for the files that are kept.
        patience: judgements without progress that end it; 0: never.
        whole: a copy of the module to judge with, where the module itself is spread over devices (FSDP).
    """

    def __init__(
        self,
        run: Path,
        samples: Samples,
        aside: NDArray[np.int64],
        config: TrainConfig,
        before: int,
        truth: Truth | None,
        constants: ModelConstants,
        patience: int,
        whole: MalModule | None,
    ) -> None:
        self.run, self.samples, self.aside, self.config, self.before = run, samples, aside, config, before
        self.truth, self.constants, self.patience, self.whole = truth, constants, patience, whole
        self.started = self.batch_started = time.perf_counter()
        self.stepping = self.making = 0.0  # seconds of this epoch: of the steps, and of making the views for them

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self.started, self.stepping, self.making = time.perf_counter(), 0.0, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step begins."""
        self.batch_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: View, batch_idx: int
    ) -> None:
        """A step is done; show the speed."""
        now = time.perf_counter()
        self.stepping += now - self.batch_started
        self.making += float(batch["seconds"].sum()) / max(1, self.config.workers)
        if batch_idx % 10 == 9:
            crops = (batch_idx + 1) * len(batch["trust"]) * self.config.devices
            pl_module.log("crops_per_s", crops / (now - self.started), prog_bar=True, logger=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge, draw, write the metrics, then the checkpoint."""
        assert isinstance(pl_module, MalModule)
        part = self.run / "last.ckpt.part"
        # Means over all processes, so all of them have to ask.
        if self.whole:  # all of them give their part, the first gets it together
            state = trainer.strategy.lightning_module_state_dict()
            if trainer.is_global_zero:
                self.whole.load_state_dict(state)
        if not all(bool(each.isfinite().all()) for each in pl_module.student.parameters()):
            raise MalError(
                f"training diverged in epoch {trainer.current_epoch + 1}: the network's numbers are no longer finite; "
                "start a new run with a lower lr_head and lr_backbone (-e: train.lr)"
            )
        means = {name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if "loss_" in name}
        try:
            if trainer.is_global_zero:
                self._tell(trainer, self.whole or pl_module, means)
            over = trainer.is_global_zero and stuck(self.run, self.config, self.patience)
            trainer.should_stop = bool(trainer.strategy.broadcast(over))
            trainer.save_checkpoint(part)  # together: several processes wait for each other here
            if trainer.is_global_zero:
                os.replace(part, self.run / "last.ckpt")
        except OSError as error:
            raise OutputError(f"cannot write into {self.run}: {error.strerror or error}") from None

    def _tell(self, trainer: Trainer, pl_module: MalModule, losses: dict[str, float]) -> None:
        """Judge, draw, write and print one epoch's row; the first process does it for all."""
        config, epoch = self.config, trainer.current_epoch + 1
        seconds = time.perf_counter() - self.started
        crops = epoch_steps(config) * config.batch
        row: dict[str, float | int] = {
            "round": pl_module.round + 1,
            "epoch": epoch,
            "crops": self.before + epoch * crops,
            **losses,
            "lr_head": trainer.optimizers[0].param_groups[-1]["lr"],
            "crops_per_s": crops / seconds,
            "step_crops_per_s": crops / self.stepping,
            "loader_crops_per_s": crops / self.making,
        }
        if epoch % config.validate_every == 0 or epoch == trainer.max_epochs:
            row |= self._judge(pl_module, f"round-{pl_module.round + 1}-epoch-{epoch:02d}.jpg")
        row = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        for logger in trainer.loggers:
            logger.log_metrics(dict(row), trainer.global_step)
        self._write_row(row)
        total = row["crops"] // crops
        if config.keep_every and total % config.keep_every == 0:
            name = f"model_epoch_{total:03d}_step_{row['crops'] // config.batch:05d}.safetensors"
            save_student(self.run / name, blind(pl_module.teacher), self.constants)
        if not trainer.progress_bar_callback:
            print("  ".join(f"{key} {value:g}" for key, value in row.items()), flush=True)

    def _judge(self, pl_module: MalModule, picture: str) -> dict[str, float | int]:
        """Student and teacher judged by boxes alone, and by the user's masks where there are some; draw a preview."""
        config = self.config
        pl_module.student.eval()
        nets = {"student": pl_module.student, "teacher": pl_module.teacher}
        by_boxes = {name: judge(net, self.samples, self.aside, config) for name, net in nets.items()}
        threshold, probability = by_boxes["teacher"].threshold, by_boxes["teacher"].probability
        own = by_boxes["student"].probability > threshold
        row: dict[str, float | int] = {}
        for name, each in by_boxes.items():
            row |= {f"{signal}_{name}": getattr(each, signal) for signal in ("extent", "flip", "claimed")}
        row["agreement"] = float(np.mean([iou(a, b > threshold) for a, b in zip(own, probability, strict=True)]))
        row |= {"threshold": threshold, "value": by_boxes["teacher"].value}
        if self.truth:
            row |= {f"miou_{name}": self.truth.best(net, config)[0] for name, net in nets.items()}
            row["value"] = row["miou_teacher"]
        pl_module.train()
        write_preview(self.run / "preview" / picture, self.samples, self.aside, probability, threshold, config)
        return row

    def _write_row(self, row: dict[str, float | int]) -> None:
        rows = [
            old for old in _rows(self.run) if int(old["crops"]) < row["crops"]
        ]  # an epoch done again replaces its row
        rows.append(dict(row))
        names = list(dict.fromkeys(name for each in rows for name in each))
        with (self.run / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(rows)


def stuck(run: Path, config: TrainConfig, patience: int) -> bool:
    """Whether the last `patience` judgements in RUN brought nothing; read back, so that a resumed run knows, too.

    Sighted networks are no students: their rounds do not count, and run to their end.
    """
    rows = [row for row in _rows(run) if row.get("value")]
    if not patience or not rows or int(rows[-1]["round"]) in config.sighted:
        return False
    values = [float(row["value"]) for row in rows if int(row["round"]) not in config.sighted]
    return len(values) - 1 - int(np.argmax(values)) >= patience


def _rows(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_preview(
    path: Path,
    samples: Samples,
    rows: NDArray[np.int64],
    probability: Probability,
    threshold: float,
    config: TrainConfig,
) -> None:
    """Draw the first objects judged as one picture: mask in colour, its outline in white.

    Args:
        probability: (n, h, w) of `rows`.
        threshold: above it is mask.
    """
    shown: list[NDArray[np.uint8]] = []
    for row, p in list(zip(rows, probability, strict=True))[: config.preview]:
        crop = cut_crop(samples.pixels[row], samples.central(config.expansion), config.size, config.fill)
        mask = (cv2.resize(p, (config.size, config.size), interpolation=cv2.INTER_LINEAR) > threshold).astype(np.uint8)
        tint = np.where(mask[..., None] > 0, crop * 0.55 + np.array([255, 60, 120]) * 0.45, crop * 0.6)
        picture = np.ascontiguousarray(tint.astype(np.uint8))
        outline, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        shown.append(cv2.drawContours(picture, outline, -1, (255, 255, 255), 1).astype(np.uint8))
    if not shown:
        return
    columns = min(4, len(shown))
    shown += [np.zeros_like(shown[0])] * (-len(shown) % columns)
    sheet = np.vstack([np.hstack(shown[first : first + columns]) for first in range(0, len(shown), columns)])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, quality=88)
