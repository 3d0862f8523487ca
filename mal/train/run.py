"""`mal train`: boxes -> crops -> labels -> rounds of training -> RUN/student.safetensors."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mal.config import ModelConstants, TrainConfig
from mal.datasets import BoxFile, open_boxes
from mal.errors import DeviceError, Interrupted, MalError, OutputError, UsageError
from mal.network.checkpoint import load_student, save_student
from mal.network.pretrained import PACKAGES, load_file, load_package
from mal.network.student import Student
from mal.train.judge import judge, predict
from mal.train.labels import Labels, labels_from_boxes, labels_from_student, to_label_grid
from mal.train.module import MalModule, epoch_steps, round_epochs, trainable
from mal.train.samples import Samples, Tick, cut_samples
from mal.train.views import Draw, Views
from mal.train.watch import Watch

SHIPPED = Path(__file__).parents[1] / "models" / "student.safetensors"
SHAPE = ("backbone", "size", "width", "expansion", "fill")  # what a trained student fixes


def train_from_words(
    boxes: Sequence[Path],
    *,
    images: Sequence[Path],
    start: str,
    config: Path | None,
    overrides: Sequence[str],
    run: Path | None,
    resume: bool,
) -> Path:
    """`train` with what the command line gives.

    Raises:
        UsageError: `--resume` without a RUN, unknown settings, or no boxes.
    """
    if resume and run is None:
        raise UsageError("--resume needs the RUN folder to go on with: give it with -o")
    settings = TrainConfig.load(config, overrides)
    folder = run or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    return train(
        settings,
        boxes,
        images or None,
        folder,
        "student" if start == "student" else "none" if start == "none" else Path(start),
        resume,
    )


def train(
    config: TrainConfig,
    boxes: Sequence[Path] | Path,
    images: Sequence[Path] | Path | None,
    out: Path,
    start: Literal["student", "none"] | Path = "student",
    resume: bool = False,
) -> Path:
    """Train a student from boxes alone.

    Args:
        config: settings. Starting from a trained student, the shape of the network is that student's.
        boxes: one or several files of boxes. Only boxes, sizes and file names are read.
        images: image folder, one for each file of boxes; None: where `open_boxes` looks.
        out: the RUN folder.
        start: "student" adapts the shipped one, a path that file; "none" starts from the backbone.
        resume: go on with an interrupted run in `out`, exactly; its settings and boxes are taken from there.

    Returns:
        out/student.safetensors.

    Raises:
        UsageError: settings that contradict the start, a RUN that exists, nothing to resume.
        InputError: boxes, images or weights that cannot be used.
        Interrupted: stopped by the user; out/last.ckpt can be resumed.
        OutputError: out cannot be written.
    """
    files = [boxes] if isinstance(boxes, Path) else list(boxes)
    folders = [images] if isinstance(images, Path) else list(images or [])
    student_file = out / "student.safetensors"
    if resume:
        config, files, folders = _remembered(out, config, files)
        if student_file.is_file():
            raise UsageError(f"{out} is complete: {student_file} exists")
    elif (out / "config.yaml").exists():
        raise UsageError(f"{out} holds a run already; add --resume to go on with it, or choose another folder")
    if not files:
        raise UsageError("no file of boxes given, e.g. mal train boxes.json --images images/")
    if folders and len(folders) != len(files):
        raise UsageError(f"{len(folders)} image folders for {len(files)} files of boxes; give one each, in order")
    opened = [open_boxes(file, folder) for file, folder in zip(files, folders or [None] * len(files), strict=True)]
    student, constants, first = _start(config, start, resume)
    config = config.model_copy(update={key: getattr(constants, key) for key in SHAPE})
    constants = constants.model_copy(update=_origin(config, opened, constants if first else None))
    if not resume:
        _remember(out, config, opened, folders, start)
    try:
        with _quiet():
            return _Run(config, constants, opened, out, resume).go(student, first)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; go on with: mal train --resume -o {out}") from None


class _Run:
    """One call of `train`, its inputs checked."""

    def __init__(
        self, config: TrainConfig, constants: ModelConstants, files: list[BoxFile], out: Path, resume: bool
    ) -> None:
        self.config, self.constants, self.files, self.out, self.resume = config, constants, files, out, resume
        self.cache = config.cache or out / "cache"

    def go(self, student: Student, first: int) -> Path:
        """All rounds from `first` on; returns the student's file."""
        config = self.config
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
        with _bar("cutting crops") as tick:
            samples = cut_samples(self.files, config, self.cache, tick)
        if samples.skipped:
            (self.out / "left_out.txt").write_text("\n".join(samples.skipped) + "\n")
            _say(f"left out ({self.out / 'left_out.txt'}): {samples.skipped[0]}")
        aside = rows_aside(len(samples), config)
        _say(
            f"{len(samples)} boxes, {len(aside)} kept aside"
            if len(aside) < len(samples)
            else f"{len(samples)} boxes, too few to keep some aside: judged on the training boxes"
        )
        checkpoint = self.out / "last.ckpt" if self.resume and (self.out / "last.ckpt").is_file() else None
        if checkpoint:
            first = int(torch.load(checkpoint, map_location="cpu", weights_only=False)["mal_round"])
        for round_ in range(first, len(config.rounds)):
            module = self.round(student, round_, samples, aside, checkpoint)
            checkpoint, student = None, module.teacher
        return self.finish(module, samples, aside)  # pyright: ignore[reportPossiblyUnboundVariable]  rounds >= 1

    def round(
        self, student: Student, round_: int, samples: Samples, aside: NDArray[np.int64], checkpoint: Path | None
    ) -> MalModule:
        """One round of training."""
        config = self.config
        labels = self.labels(student, round_, samples)
        student.requires_grad_(True)
        trainable(student, config, pretrained=round_ > 0 or config.pretrained != "none")
        module = MalModule(student, config, round_, crf=round_ > 0 or not config.losses.label)
        draw = Draw(
            sampling_weights(samples, labels, aside, config), epoch_steps(config) * config.batch, config.seed, round_
        )
        loader = DataLoader(
            Views(samples, labels, config, round_),
            config.batch,
            sampler=draw,
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            drop_last=True,
        )
        before = sum(round_epochs(config, earlier) * epoch_steps(config) * config.batch for earlier in range(round_))
        terminal = sys.stderr.isatty()
        trainer = Trainer(
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=1,
            precision=precision(config),
            max_epochs=round_epochs(config, round_),
            gradient_clip_val=config.clip,
            logger=TensorBoardLogger(self.out, name="tensorboard", version=f"round-{round_ + 1}"),
            callbacks=[Watch(self.out, samples, aside, config, before), *([RichProgressBar()] if terminal else [])],
            enable_progress_bar=terminal,
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=min(10, epoch_steps(config)),
            use_distributed_sampler=False,
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=False)
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
        return module.cpu()

    def labels(self, student: Student, round_: int, samples: Samples) -> Labels:
        """Labels of a round, made once and kept in the cache: a resumed run trains on the same ones."""
        config = self.config
        if not config.losses.label:
            return Labels.none(len(samples), config.labels.grid)
        made = self.cache / f"labels-{samples.key}-{config.labels.digest()}.npz"
        if made.is_file():
            labels = Labels.load(made)
        else:
            with _bar("labels from boxes") as tick:
                labels = labels_from_boxes(samples, config.labels, tick)
            labels.save(made)
        if round_ > 0:
            again = self.out / f"labels-round-{round_ + 1}.npz"
            if self.resume and again.is_file():
                labels = Labels.load(again)
            else:
                with _bar("labels from the student") as tick, torch.autocast("cpu", torch.bfloat16, enabled=False):
                    student = student.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
                    probability = predict(student, samples, np.arange(len(samples)), config, tick=tick)
                grids = to_label_grid(probability, samples, config)
                labels = labels_from_student(labels, grids, config.self_train)
                labels.save(again)
        share, trust = float((labels.trust > 0).mean()), float(labels.trust.mean())
        _say(f"round {round_ + 1}: {share:.3f} of the boxes have a label, mean trust {trust:.3f}")
        return labels

    def finish(self, module: MalModule, samples: Samples, aside: NDArray[np.int64]) -> Path:
        """Choose the better of teacher and student and the threshold, by boxes alone; write the file."""
        nets = {"teacher": module.teacher, "student": module.student.eval()}
        judged = {name: judge(net, samples, aside, self.config) for name, net in nets.items()}
        name = max(judged, key=lambda each: judged[each].value)  # the teacher where they are equal
        best = judged[name]
        _say(f"{name} written: extent {best.extent:.3f}, flip {best.flip:.3f}, threshold {best.threshold:g}")
        constants = self.constants.model_copy(update={"threshold": best.threshold})
        path = self.out / "student.safetensors"
        save_student(path, nets[name], constants)
        for leftover in self.out.glob("labels-round-*.npz"):
            leftover.unlink()
        if self.config.cache is None:
            shutil.rmtree(self.cache, ignore_errors=True)
        return path


def rows_aside(count: int, config: TrainConfig) -> NDArray[np.int64]:
    """Rows kept out of training for judging; all rows (and all are trained on) where there are few."""
    share = min(256, int(count * config.aside))
    if share < 8:
        return np.arange(min(count, 256))
    return np.sort(np.random.default_rng((config.seed, 7)).choice(count, share, replace=False))


def sampling_weights(
    samples: Samples, labels: Labels, aside: NDArray[np.int64], config: TrainConfig
) -> NDArray[np.float64]:
    """(N,) chances: box files by n ** mix_power, boxes without a label less often, those kept aside never."""
    counts = np.bincount(samples.source).astype(np.float64)
    weights = counts[samples.source] ** (config.mix_power - 1)
    if config.losses.label and labels.trust.any():
        weights *= np.where(labels.trust > 0, 1.0, config.unlabelled_share)
    if len(aside) < len(samples):
        weights[aside] = 0
    return weights if weights.any() else np.ones(len(samples))


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


def _start(config: TrainConfig, start: str | Path, resume: bool) -> tuple[Student, ModelConstants, int]:
    """The network to start from, its constants, and the round it starts at."""
    torch.manual_seed(config.seed)
    if start == "none" or resume:
        constants = ModelConstants(
            name=config.name,
            backbone=config.backbone,
            size=config.size,
            width=config.width,
            expansion=config.expansion,
            fill=config.fill,
            licence=config.licence,
        )
        student = Student(constants)
        if start == "none" and not resume:
            _load_backbone(student, config)
        return student, constants, 0
    file = SHIPPED if start == "student" else Path(start)
    student, constants = load_student(file)
    for key in SHAPE:
        if key in config.model_fields_set and getattr(config, key) != getattr(constants, key):
            raise UsageError(
                f"{key}={getattr(config, key)} contradicts {file.name}, which has {getattr(constants, key)}; "
                "leave it out, or start with --from none"
            )
    return student, constants, min(1, len(config.rounds) - 1)


def _load_backbone(student: Student, config: TrainConfig) -> None:
    source = config.pretrained
    net = student.backbone.net.model if hasattr(student.backbone.net, "model") else student.backbone.net
    if source == "auto":
        known = [name for name, package in PACKAGES.items() if package.timm_name == student.backbone.name]
        if not known:
            raise UsageError(
                f"no weights known for backbone {student.backbone.name!r}; give pretrained=FILE, "
                "or pretrained=none to start from random numbers (much worse)"
            )
        source = known[0]
    if source == "none":
        return
    if source in PACKAGES:
        if PACKAGES[source].timm_name != student.backbone.name:
            raise UsageError(f"pretrained={source} is for backbone {PACKAGES[source].timm_name}, not {config.backbone}")
        _say(str(load_package(source, net, config.pretrained_file)))
    else:
        _say(str(load_file(Path(source), net)))


def _origin(config: TrainConfig, files: list[BoxFile], before: ModelConstants | None) -> dict[str, Any]:
    """Constants that say where the weights come from."""
    names = ", ".join(f"{file.path.parent.name}/{file.path.name} (boxes)" for file in files)
    data = config.training_data or names
    if before:
        data = f"{before.training_data}; then {data}"
    return {
        "name": config.name,
        "licence": config.licence,
        "training_data": data,
        "revision": _revision(),
        "config_hash": config.digest(),
        "crf_iterations": config.refine_iterations,
        "crf_zeta": config.refine_zeta,
    }


def _revision() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def _remember(out: Path, config: TrainConfig, files: list[BoxFile], folders: list[Path], start: str | Path) -> None:
    """Write what a resumed run needs to know."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        config.write(out / "config.yaml")
        story = {
            "boxes": [str(file.path.resolve()) for file in files],
            "sha256": [file.sha256 for file in files],
            "images": [str(folder.resolve()) for folder in folders],
            "start": str(start),
        }
        (out / "inputs.json").write_text(json.dumps(story, indent=1))
    except OSError as error:
        raise OutputError(f"cannot write into {out}: {error.strerror}") from None


def _remembered(out: Path, config: TrainConfig, files: list[Path]) -> tuple[TrainConfig, list[Path], list[Path]]:
    """Settings and inputs of an interrupted run, checked against what is asked for now."""
    if not (out / "config.yaml").is_file() or not (out / "inputs.json").is_file():
        raise UsageError(f"nothing to resume in {out}: it has no config.yaml and inputs.json of a run")
    stored = TrainConfig.load(out / "config.yaml")
    for key in config.model_fields_set:
        if getattr(config, key) != getattr(stored, key):
            raise UsageError(f"{key}={getattr(config, key)} differs from the run in {out} ({getattr(stored, key)})")
    story = json.loads((out / "inputs.json").read_text())
    known = [Path(name) for name in story["boxes"]]
    if files and [file.resolve() for file in files] != known:
        raise UsageError(f"the run in {out} was started on {', '.join(story['boxes'])}; resume it without box files")
    for file, digest in zip(known, story["sha256"], strict=True):
        if open_boxes(file).sha256 != digest:
            raise UsageError(f"{file} has changed since the run in {out} began; start a new run")
    return stored, known, [Path(name) for name in story["images"]]


@contextmanager
def _bar(title: str) -> Generator[Tick]:
    """A progress bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def tick(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield tick


@contextmanager
def _quiet() -> Generator[None]:
    """Lightning's advice that does not apply here is not the user's business."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
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
            logger.setLevel(level)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


__all__ = ["MalError", "train", "train_from_words"]
