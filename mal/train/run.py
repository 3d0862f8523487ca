"""`mal train`: boxes -> crops -> labels -> rounds of training -> RUN/student.safetensors."""

import copy
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mal.config import ModelConstants, Settings, TrainConfig
from mal.datasets import BoxFile, open_boxes
from mal.errors import Interrupted, UsageError
from mal.network.checkpoint import save_student
from mal.network.student import Student
from mal.train.console import bar, say
from mal.train.fit import Round, check_devices, fit
from mal.train.judge import judge, predict
from mal.train.labels import BACKGROUND, UNKNOWN, Labels, labels_from_boxes, labels_from_student, to_label_grid
from mal.train.neighbours import claimed_by_smaller, claims, surer_larger
from mal.train.run_folder import remember, remembered
from mal.train.samples import Samples, cut_samples, usable_rows
from mal.train.sighted import Net, Sighted, blind
from mal.train.start import SHAPE, origin, start_student
from mal.train.tao import link_latest, train_task
from mal.train.validation import Truth, read_truth
from mal.train.watch import stuck

FOR_ADAPTING = {"losses": {"crf": 0.0}, "self_train": {"boundary": 0.5, "drop": 0.0, "full": 0.5}}
"""The boxes that a student is adapted to are mostly those that it labels then. So all of them count, also those of the
lowest score: their labels know their neighbours. And a good student's soft labels need no vote of the colours."""


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


def train_from_spec(spec: Path, overrides: Sequence[str]) -> Path:
    """`train` with what a TAO MAL experiment spec gives; errors as there and in `tao.train_task`."""
    task = train_task(spec, overrides)
    student = train(task.config, task.boxes, task.images, task.out, task.start, task.resume)
    link_latest(student)
    return student


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
        UsageError: settings that contradict the start, a RUN that exists, nothing to resume or to learn.
        InputError: boxes, images or weights that cannot be used.
        Interrupted: stopped by the user; out/last.ckpt can be resumed.
        OutputError: out cannot be written.
    """
    files = [boxes] if isinstance(boxes, Path) else list(boxes)
    folders = [images] if isinstance(images, Path) else list(images or [])
    student_file = out / "student.safetensors"
    if resume:
        config, files, folders, start = remembered(out, config, files)
        if student_file.is_file():
            raise UsageError(f"{out} is complete: {student_file} exists")
    elif student_file.exists() or (out / "last.ckpt").exists():  # one that failed before it had learned is replaced
        raise UsageError(
            f"{out} holds a run already; go on with it by --resume (-e: train.resume_training_checkpoint_path="
            f"{out / 'last.ckpt'}), or choose another folder"
        )
    check_devices(config)
    if not (config.losses.label or config.losses.mil or config.losses.crf):
        raise UsageError(
            "losses.label, losses.mil and losses.crf (-e: train.loss_mil_weight, train.loss_crf_weight) are all 0: "
            "nothing would be learned"
        )
    if not files:
        raise UsageError("no file of boxes given, e.g. mal train boxes.json --images images/")
    if folders and len(folders) != len(files):
        raise UsageError(f"{len(folders)} image folders for {len(files)} files of boxes; give one each, in order")
    opened = [open_boxes(file, folder) for file, folder in zip(files, folders or [None] * len(files), strict=True)]
    student, constants, first = start_student(config, start)
    adapting = start != "none"
    config = config.model_copy(update={key: getattr(constants, key) for key in SHAPE})
    if "cache_size" not in config.model_fields_set:  # never less than the network sees of it
        config = config.model_copy(update={"cache_size": round(1.5 * config.size)})
    if not resume:
        config = for_adapting(config, opened) if adapting else config
        _check_rounds(config, student)
        remember(out, config, opened, folders, start)
    try:
        return _Run(config, constants, opened, out, resume, adapting).go(student, first)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; go on with: mal train --resume -o {out}") from None


def _check_rounds(config: TrainConfig, student: Student) -> None:
    """Refuse at once what would fail in a later round."""
    if any(not 1 < each < len(config.rounds) for each in config.sighted):
        raise UsageError(
            f"sighted={list(config.sighted)}: of {len(config.rounds)} rounds only those from 2 to "
            f"{len(config.rounds) - 1} can be; the first learns from boxes, the last is the student"
        )
    if config.sighted and config.sighted_size:
        student.at_size(config.sighted_size)
    drop, full = config.self_train.drop, config.self_train.full
    if drop >= full:
        raise UsageError(f"self_train.drop={drop:g} must be below self_train.full, which is {full:g}; give both")


class _Run:
    """One call of `train`, its inputs checked."""

    def __init__(
        self,
        config: TrainConfig,
        constants: ModelConstants,
        files: list[BoxFile],
        out: Path,
        resume: bool,
        adapting: bool,
    ) -> None:
        self.config, self.files, self.out, self.resume, self.adapting = config, files, out, resume, adapting
        self.before = constants  # of the student that is adapted
        self.constants = constants.model_copy(update=origin(config, files, constants if adapting else None))
        self.cache = config.cache or out / "cache"

    def go(self, student: Student, first: int) -> Path:
        """All rounds from `first` on; returns the student's file."""
        config = self.config
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
        with bar("cutting crops") as tick:
            samples = cut_samples(self.files, config, self.cache, tick, config.adapt.boxes if self.adapting else None)
        if samples.skipped:
            (self.out / "left_out.txt").write_text("\n".join(samples.skipped) + "\n")
            say(f"left out ({self.out / 'left_out.txt'}): {samples.skipped[0]}")
        aside = rows_aside(samples.image, config)
        say(
            f"{len(samples)} boxes, {len(aside)} kept aside"
            if len(aside) < len(samples)
            else f"{len(samples)} boxes, too few to keep some aside: judged on the training boxes"
        )
        truth = read_truth(config, self.cache / "val")
        old = copy.deepcopy(student)
        checkpoint = self.out / "last.ckpt" if self.resume and (self.out / "last.ckpt").is_file() else None
        if checkpoint:
            first = int(torch.load(checkpoint, map_location="cpu", weights_only=False)["mal_round"])
        net: Net = student
        patience = config.adapt.patience if self.adapting else 0
        for number in range(first, len(config.rounds)):
            labels = self.labels(net, number, samples)
            if number + 1 not in config.sighted:
                net = blind(net).at_size(config.size)
            elif not isinstance(net, Sighted):
                net = Sighted(net.at_size(config.sighted_size or config.size))
            weights = sampling_weights(samples, labels, aside, config)
            module = fit(
                Round(
                    number,
                    net,
                    samples,
                    labels,
                    aside,
                    weights,
                    config.model_copy(update={"size": net.head.size}),
                    self.out,
                    checkpoint,
                    truth,
                    self.constants,
                    patience,
                )
            )
            checkpoint, net = None, module.teacher
            if stuck(self.out, config, patience):
                say(f"ended early: {patience} judgements in a row brought nothing")
                break
        nets = {"teacher": blind(module.teacher), "student": blind(module.student.eval())}  # pyright: ignore[reportPossiblyUnboundVariable]  rounds >= 1
        return self.finish(nets | ({"old": old.eval()} if self.adapting else {}), samples, aside, truth)

    def labels(self, net: Net, round_: int, samples: Samples) -> Labels:
        """Labels of a round, made once and kept in the cache: a resumed run trains on the same ones."""
        config = self.config
        if not config.losses.label:
            return Labels.none(len(samples), config.labels.grid)
        made = self.cache / f"labels-{samples.key}-{config.labels.digest()}.npz"
        if made.is_file():
            labels = Labels.load(made)
        else:
            with bar("labels from boxes") as tick:
                labels = labels_from_boxes(samples, config.labels, tick)
            labels.save(made)
        if round_ > 0:
            again, rows = self.out / f"labels-round-{round_ + 1}.npz", np.arange(len(samples))
            if self.resume and again.is_file():
                labels = Labels.load(again)
            else:
                with bar("labels from the student") as tick, torch.autocast("cpu", torch.bfloat16, enabled=False):
                    net = net.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
                    probability = predict(net, samples, rows, config, tick=tick)
                labels = self.again(labels, to_label_grid(probability, samples, config), round_, samples)
                labels.save(again)
        share, trust = float((labels.trust > 0).mean()), float(labels.trust.mean())
        say(f"round {round_ + 1}: {share:.3f} of the boxes have a label, mean trust {trust:.3f}")
        return labels

    def again(self, labels: Labels, grids: NDArray[np.uint8], round_: int, samples: Samples) -> Labels:
        """Labels of a later round from those of the boxes and from what the last network thinks, on the same grid."""
        config, rows = self.config, np.arange(len(samples))
        contested = np.zeros(grids.shape, bool)
        if config.sighted:
            limits = config.self_train
            contested = claims(grids, samples, rows, (0, limits.contested_area)) > limits.contested * 255
            labels.maps[contested] = UNKNOWN  # boxes alone do not know who owns these
        made = labels_from_student(labels, grids, config.self_train)
        if round_ + 1 in config.sighted:
            made.maps[contested] = UNKNOWN
        if self.adapting:
            made.maps[surer_larger(grids, samples, rows)] = UNKNOWN
            made.maps[claimed_by_smaller(grids, samples, rows, config.claimed)] = BACKGROUND
        return made

    def finish(self, nets: dict[str, Student], samples: Samples, aside: NDArray[np.int64], truth: Truth | None) -> Path:
        """Choose the best network and its threshold, by the user's masks or by boxes alone; write the file."""
        judged: dict[str, tuple[float, float]] = {}
        for name, net in nets.items():
            if truth:
                judged[name] = truth.best(net, self.config)
            else:
                each = judge(net, samples, aside, self.config)
                judged[name] = each.value, each.threshold
        name = max(judged, key=lambda each: judged[each][0])  # the first where they are equal
        how = "masks of val" if truth else "boxes alone"
        say(f"judged by {how}: " + ", ".join(f"{each} {value:.4f}" for each, (value, _) in judged.items()))
        path = self.out / "student.safetensors"
        if name == "old":
            say(f"adapting did not help: {path} is the student that it started from, unchanged")
            save_student(path, nets[name], self.before)
        else:
            threshold = judged[name][1]
            say(f"{name} written, threshold {threshold:g}")
            save_student(path, nets[name], self.constants.model_copy(update={"threshold": threshold}))
        for leftover in self.out.glob("labels-round-*.npz"):
            leftover.unlink()
        if self.config.cache is None:
            shutil.rmtree(self.cache, ignore_errors=True)
        return path


def for_adapting(config: TrainConfig, files: Sequence[BoxFile]) -> TrainConfig:
    """Settings of an adaptation, but for those that the user set: as many crops as the boxes deserve, judged eight
    times or nine, since rounds are whole epochs; and `FOR_ADAPTING`."""
    count = min(config.adapt.boxes, sum(len(usable_rows(file, config)) for file in files))
    least, most = config.adapt.crops
    crops, parts = min(most, max(least, count * config.adapt.passes)), config.adapt.rounds
    found: dict[str, Any] = {
        "rounds": (*config.rounds[:1], *[round(crops / parts)] * parts),
        "epoch_crops": max(config.batch, round(crops / 8)),
    }
    found = {key: value for key, value in found.items() if key not in config.model_fields_set}
    for name, values in FOR_ADAPTING.items():
        part: Settings = getattr(config, name)
        unset = {key: value for key, value in values.items() if key not in part.model_fields_set}
        found[name] = part.model_copy(update=unset)
    return config.model_copy(update=found)


def rows_aside(image: NDArray[np.int64], config: TrainConfig) -> NDArray[np.int64]:
    """Rows kept out of training for judging: whole images, so that what neighbours claim is known.

    Args:
        image: (N,) the image of each sample.

    Returns:
        At most 256; the first rows (and all are trained on) where fewer than 8 can be kept aside.
    """
    room = min(256, int(len(image) * config.aside))
    drawn: list[int] = []
    if room >= 8:
        numbers, counts = np.unique(image, return_counts=True)
        for at in np.random.default_rng((config.seed, 7)).permutation(len(numbers)):
            if counts[at] <= room:
                drawn.append(int(numbers[at]))
                room -= int(counts[at])
    rows = np.flatnonzero(np.isin(image, drawn))
    return rows if len(rows) >= 8 else np.arange(min(len(image), 256))


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
