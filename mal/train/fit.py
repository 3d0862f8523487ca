"""One round of training by Lightning: in this process, or in several that share each step.

Several devices are several processes, on GPUs and (gloo) on a CPU alike: `batch` is the crops of one step however many
work on it, and what a step sees depends on the seed alone, so the loss curve is that of one process.
"""

import copy
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from numpy.typing import NDArray
from torch.multiprocessing.spawn import ProcessException, spawn
from torch.utils.data import DataLoader

from mal.config import ModelConstants, TrainConfig
from mal.errors import DeviceError, MalError, UsageError
from mal.train.labels import Labels
from mal.train.module import MalModule, epoch_steps, round_epochs, trainable
from mal.train.samples import Samples
from mal.train.sighted import Net
from mal.train.validation import Truth
from mal.train.views import Draw, Views
from mal.train.watch import Watch


@dataclass(frozen=True)
class Round:
    """All that a round of training is made of; each process gets it whole.

    Attributes:
        number: of the round, from 0.
        student: with the weights that the round starts from.
        aside: rows of the samples that are judged.
        weights: (N,) chances of the samples to be drawn.
        out: the RUN folder.
        checkpoint: of an interrupted round, or None.
        truth: objects with true masks to judge by, or None.
        constants: of the student.
        patience: judgements without progress that end the round; 0: never.
    """

    number: int
    student: Net
    samples: Samples
    labels: Labels
    aside: NDArray[np.int64]
    weights: NDArray[np.float64]
    config: TrainConfig
    out: Path
    checkpoint: Path | None
    truth: Truth | None
    constants: ModelConstants
    patience: int


def fit(round_: Round) -> MalModule:
    """Train one round.

    Returns:
        The module, on the CPU, with student and teacher as the round left them.

    Raises:
        KeyboardInterrupt: the user stopped it.
        MalError: whatever one of the processes raised.
    """
    with _quiet():
        return (_fit(round_, 0) if round_.config.devices == 1 else _fit_together(round_)).cpu()


def check_devices(config: TrainConfig) -> None:
    """Refuse what this machine cannot do, before anything is computed.

    Raises:
        UsageError: a step's crops cannot be shared out evenly.
        DeviceError: fewer GPUs than asked for, or a setting that only a GPU can follow.
    """
    parts = config.devices * config.accumulate
    if config.batch % parts:
        raise UsageError(
            f"batch={config.batch} is not a multiple of devices x accumulate = {parts}, among which it is shared out"
        )
    found = torch.cuda.device_count()
    if found and config.devices > found:
        raise DeviceError(f"devices={config.devices}: this machine has {found} GPUs")
    if config.strategy == "fsdp" and not found:
        raise DeviceError("strategy=fsdp needs CUDA GPUs: Lightning's FSDP refuses to run on a CPU; use strategy=ddp")
    precision(config)


def precision(config: TrainConfig) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """What the network computes in: fp16 on CUDA; on a CPU bfloat16 where it has instructions for it.

    Measured on this project's 2 cores (avx512_bf16), MobileNetV2 at 192: 68 crops/s against 43.
    """
    if config.precision == "auto":
        if torch.cuda.is_available():
            return "16-mixed"
        return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"  # pyright: ignore
    if config.precision == "16" and not torch.cuda.is_available():
        raise DeviceError("precision=16 needs a CUDA GPU; use bf16 or 32")
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[config.precision]  # pyright: ignore


def _fit(round_: Round, process: int) -> MalModule:
    """The round's part of one process."""
    config = round_.config
    torch.set_num_threads(max(1, (config.threads or os.cpu_count() or 1) // config.devices))
    student = round_.student.requires_grad_(True)
    trainable(student, config, pretrained=round_.number > 0 or config.pretrained != "none")
    module = MalModule(student, config, round_.number, crf=round_.number > 0 or not config.losses.label)
    at_once = config.batch // (config.devices * config.accumulate)
    loader = DataLoader(
        Views(round_.samples, round_.labels, config, round_.number),
        at_once,
        sampler=Draw(
            round_.weights,
            epoch_steps(config) * config.batch,
            config.seed,
            round_.number,
            (process, config.devices),
            at_once,
        ),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        drop_last=True,
    )
    earlier = sum(round_epochs(config, each) * epoch_steps(config) * config.batch for each in range(round_.number))
    terminal = sys.stderr.isatty()
    trainer = Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=config.devices,
        strategy=_strategy(config),
        precision=precision(config),
        max_epochs=round_epochs(config, round_.number),
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip,
        logger=TensorBoardLogger(round_.out, name="tensorboard", version=f"round-{round_.number + 1}"),
        callbacks=[
            Watch(
                round_.out,
                round_.samples,
                round_.aside,
                config,
                earlier,
                round_.truth,
                round_.constants,
                round_.patience,
                copy.deepcopy(module) if config.strategy == "fsdp" else None,
            ),
            *([RichProgressBar()] if terminal else []),
        ],
        enable_progress_bar=terminal,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=min(10, epoch_steps(config)),
        use_distributed_sampler=False,
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, loader, ckpt_path=round_.checkpoint, weights_only=False)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    return module


def _strategy(config: TrainConfig) -> Any:
    if config.strategy == "fsdp":
        return FSDPStrategy(sharding_strategy="SHARD_GRAD_OP", state_dict_type="full", use_orig_params=True)
    return "auto" if config.devices == 1 else "ddp"


def _fit_together(round_: Round) -> MalModule:
    """Start the processes, wait for them, take what the first one learned."""
    weights = round_.out / "round.part"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    errors: Any = torch.multiprocessing.get_context("spawn").SimpleQueue()
    running: Any = spawn(_one_of_several, (round_, port, weights, errors), round_.config.devices, join=False)
    try:
        while not running.join():
            pass
    except ProcessException:
        if errors.empty():
            raise
        raise errors.get() from None
    finally:
        for process in running.processes:
            process.terminate()
            process.join()
    module = MalModule(round_.student, round_.config, round_.number, crf=False)
    module.load_state_dict(torch.load(weights, weights_only=True))
    weights.unlink()
    return module


def _one_of_several(process: int, round_: Round, port: int, weights: Path, errors: Any) -> None:
    """What one process does. Lightning takes these variables for those of a launcher, and launches nobody itself."""
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "LOCAL_RANK": process}
    os.environ.update({key: str(value) for key, value in names.items()} | {"WORLD_SIZE": str(round_.config.devices)})
    try:
        # What was sent lies in memory that all processes share, and each one trains its own.
        with _quiet():
            module = _fit(replace(round_, student=copy.deepcopy(round_.student)), process)
            state = module.trainer.strategy.lightning_module_state_dict()
        if process == 0:
            torch.save(state, weights)
    except (MalError, KeyboardInterrupt) as error:
        errors.put(error)
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@contextmanager
def _quiet() -> Generator[None]:
    """Lightning's advice that does not apply here is not the user's business."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # views cost a twentieth of a step
            ".*module\\(s\\) in eval mode.*",  # the teacher and BatchNorm, on purpose
            ".*Experiment logs directory.*",
            ".*lr_scheduler.step.*",
            ".*isinstance\\(treespec, LeafSpec\\).*",
        ):
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
