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

from mal.config import TrainConfig
from mal.crops import cut_crop
from mal.errors import OutputError
from mal.train.judge import Probability, judge, predict
from mal.train.labels import iou
from mal.train.module import MalModule
from mal.train.samples import Samples


class Watch(Callback):
    """Writes RUN after each epoch. The checkpoint comes last: what it says is done, is done.

    Args:
        run: the RUN folder.
        samples: all training crops.
        aside: rows of the samples judged.
        before: crops seen in earlier rounds.
        total: crops of the whole run.
    """

    def __init__(self, run: Path, samples: Samples, aside: NDArray[np.int64], config: TrainConfig, before: int) -> None:
        self.run, self.samples, self.aside, self.config, self.before = run, samples, aside, config, before
        self.started = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the speed."""
        if batch_idx % 10 == 9:
            rate = (batch_idx + 1) * self.config.batch / (time.perf_counter() - self.started)
            pl_module.log("crops_per_s", rate, prog_bar=True, logger=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge, draw, write the metrics, then the checkpoint."""
        assert isinstance(pl_module, MalModule)
        config, epoch = self.config, trainer.current_epoch + 1
        seconds = time.perf_counter() - self.started
        crops = trainer.num_training_batches * config.batch
        pl_module.student.eval()
        nets = pl_module.student, pl_module.teacher
        student, teacher = (judge(net, self.samples, self.aside, config) for net in nets)
        own = predict(pl_module.student, self.samples, self.aside, config) > teacher.threshold
        probability = predict(pl_module.teacher, self.samples, self.aside, config)
        pl_module.train()
        row: dict[str, float | int] = {
            "round": pl_module.round + 1,
            "epoch": epoch,
            "crops": self.before + epoch * crops,
            **{
                name: round(float(trainer.callback_metrics[name]), 5)
                for name in sorted(trainer.callback_metrics)
                if name.startswith("loss_")
            },
            "lr_head": trainer.optimizers[0].param_groups[-1]["lr"],
            "extent_student": student.extent,
            "extent_teacher": teacher.extent,
            "flip_student": student.flip,
            "flip_teacher": teacher.flip,
            "agreement": float(np.mean([iou(a, b > teacher.threshold) for a, b in zip(own, probability, strict=True)])),
            "threshold": teacher.threshold,
            "crops_per_s": crops / seconds,
        }
        row = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        for logger in trainer.loggers:
            logger.log_metrics(dict(row), trainer.global_step)
        try:
            self._write_row(row)
            name = f"round-{pl_module.round + 1}-epoch-{epoch:02d}.jpg"
            write_preview(self.run / "preview" / name, self.samples, self.aside, probability, teacher.threshold, config)
            part = self.run / "last.ckpt.part"
            trainer.save_checkpoint(part)
            os.replace(part, self.run / "last.ckpt")
        except OSError as error:
            raise OutputError(f"cannot write into {self.run}: {error.strerror or error}") from None
        if not trainer.progress_bar_callback:
            print("  ".join(f"{key} {value:g}" for key, value in row.items()), flush=True)
        self.started = time.perf_counter()

    def _write_row(self, row: dict[str, float | int]) -> None:
        path = self.run / "metrics.csv"
        rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="") as file:  # an epoch that is done again replaces its row
                rows = [old for old in csv.DictReader(file) if int(old["crops"]) < row["crops"]]
        rows.append(row)
        names = list(dict.fromkeys(name for each in rows for name in each))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(rows)


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
