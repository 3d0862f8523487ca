"""What a TAO MAL experiment spec asks for, in this project's words: a translation, no second trainer.

The table key by key is docs/tao.md. Free of torch.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mal.config import TrainConfig
from mal.datasets import open_boxes
from mal.errors import OutputError, UsageError
from mal.train.samples import usable_rows
from mal.train.tao_spec import TaoSpec

LATEST = "mal_model_latest.pth"
"""The name under which TAO users find the last model; a link to the student's file here."""


@dataclass(frozen=True)
class TrainTask:
    """Arguments of `mal.train.run.train`."""

    config: TrainConfig
    boxes: Path
    images: Path | None
    out: Path
    start: Literal["none"] | Path
    resume: bool


@dataclass(frozen=True)
class LabelTask:
    """Arguments of `mal.runtime.label.label_dataset`."""

    boxes: Path
    images: Path | None
    model: Path
    output: Path
    device: str | None
    batch: int

    def arguments(self) -> dict[str, Any]:
        """As keywords. The results folder is there afterwards, as TAO makes it too.

        Raises:
            OutputError: it cannot be made.
        """
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {self.output.parent}: {error.strerror}") from None
        return dict(vars(self))


def train_task(file: Path, overrides: Sequence[str] = ()) -> TrainTask:
    """`mal train -e`: plain MAL, its two losses without labels made from boxes.

    Raises:
        UsageError: an unknown key, or a value that cannot be followed; names it.
        BoxFileError: the spec's boxes cannot be read; they are counted, for an epoch is one pass over them.
    """
    spec = TaoSpec.load(file, overrides)
    model, data, train = spec.model, spec.dataset, spec.train
    boxes, images = _paths("dataset.train", data.train_ann_path, data.train_img_dir)
    start, pretrained = _weights(train.pretrained_model_path)
    frozen = _frozen(model.frozen_stages)
    if frozen and start == "none" and pretrained == "none":
        raise _refusal(
            "model.frozen_stages",
            list(model.frozen_stages),
            "it would freeze random numbers; give train.pretrained_model_path too",
        )
    if model.arch.startswith("fan"):
        raise _refusal("model.arch", model.arch, "timm has no FAN; take a vit-… or any network of timm by its name")
    if model.mask_head_out_channel != model.mask_head_hidden_channel:
        raise _refusal(
            "model.mask_head_out_channel",
            model.mask_head_out_channel,
            f"the head has one width, mask_head_hidden_channel={model.mask_head_hidden_channel}",
        )
    if len(train.mask_thres) != 1:
        raise _refusal("train.mask_thres", list(train.mask_thres), "one threshold serves all sizes; give one value")
    if train.gpu_ids not in ((0,), tuple(range(train.num_gpus))):
        raise _refusal("train.gpu_ids", list(train.gpu_ids), "choose GPUs by CUDA_VISIBLE_DEVICES and count them")
    validation = data.load_mask and data.val_ann_path
    val, val_images = _paths("dataset.val", data.val_ann_path, data.val_img_dir) if validation else (None, None)

    at_once = train.batch_size * train.num_gpus
    batch = at_once * train.accum_grad_batches
    config = TrainConfig.parse({"min_side": 2.0, "areas": (data.min_obj_size, data.max_obj_size)})
    count = len(usable_rows(open_boxes(boxes, images), config))
    steps = max(1, count // batch)
    # TAO multiplies what it draws between the bounds by a number below 1; as large on average, drawn at once:
    drift = 0.0, sum(train.margin_rate) / 2
    expansion = train.test_margin_rate[0] / 2
    room = max(0.6, drift[1], expansion)
    values = config.model_dump(include=config.model_fields_set) | {
        "name": spec.model_name or "student",
        "backbone": model.arch,
        "pretrained": pretrained,
        "frozen": frozen,
        "width": model.mask_head_hidden_channel,
        "teacher_momentum": model.teacher_momentum,
        "size": data.crop_size,
        "cache_size": round(data.crop_size * (1 + room) / (1 + expansion)),
        "cache_expansion": room,
        "expansion": expansion,
        "drift": drift,
        "workers": data.num_workers_per_gpu,
        "val": val,
        "val_images": val_images,
        "devices": train.num_gpus,
        "strategy": spec.strategy,
        "seed": train.seed,
        "rounds": (train.num_epochs * steps * batch,),
        "epoch_crops": steps * batch,
        "keep_every": train.checkpoint_interval,
        "validate_every": train.validation_interval,
        "batch": batch,
        "accumulate": train.accum_grad_batches,
        "precision": "auto" if train.use_amp else "32",
        "betas": train.optim_betas,
        "lr_head": train.lr * at_once,
        "lr_backbone": train.lr * at_once,
        "lr_last": train.min_lr_rate,
        "weight_decay": train.wd,
        "warmup_steps": round(train.warmup_epochs * steps),
        "thresholds": train.mask_thres,
        "refine_iterations": 0,
        "losses": {
            "label": 0,
            "mil": train.loss_mil_weight,
            "crf": train.loss_crf_weight,
            "crf_iterations": train.crf_num_iter,
            "crf_zeta": train.crf_zeta,
            "crf_warmup_steps": train.loss_crf_step,
        },
    }
    out, resume = spec.folder("train"), train.resume_training_checkpoint_path
    if resume and Path(resume).parent.resolve() != out.resolve():
        raise _refusal(
            "train.resume_training_checkpoint_path", resume, f"a run goes on where it is; expected {out / 'last.ckpt'}"
        )
    return TrainTask(TrainConfig.parse(values), boxes, images, out, start, bool(resume))


def link_latest(student: Path) -> None:
    """Put TAO's name of the last model beside the student's file."""
    try:
        link = student.with_name(LATEST)
        link.unlink(missing_ok=True)
        os.symlink(student.name, link)
    except OSError as error:
        raise OutputError(f"cannot write into {student.parent}: {error.strerror}") from None


def label_task(file: Path, overrides: Sequence[str] = ()) -> LabelTask:
    """`mal label -e`: the boxes of `inference`.

    Raises:
        UsageError: an unknown key, a value that cannot be followed, or a checkpoint that is none of ours.
    """
    spec = TaoSpec.load(file, overrides)
    task = spec.inference
    boxes, images = _paths("inference", task.ann_path, task.img_dir)
    return LabelTask(
        boxes,
        images,
        _checkpoint("inference.checkpoint", task.checkpoint),
        spec.folder("inference") / task.label_dump_path,  # an absolute path wins, as in TAO
        _device("inference.gpu_ids", task.gpu_ids),
        task.batch_size,
    )


def evaluate_task(file: Path, overrides: Sequence[str] = ()) -> LabelTask:
    """`mal eval -e`: the boxes of the validation set, whose file has the true masks too; errors as in `label_task`."""
    spec = TaoSpec.load(file, overrides)
    task, data = spec.evaluate, spec.dataset
    if not data.load_mask:
        raise _refusal("dataset.load_mask", False, "judging needs the true masks of dataset.val_ann_path")
    boxes, images = _paths("dataset.val", data.val_ann_path, data.val_img_dir)
    return LabelTask(
        boxes,
        images,
        _checkpoint("evaluate.checkpoint", task.checkpoint),
        spec.folder("evaluate") / f"{boxes.stem}.masks.json",
        _device("evaluate.gpu_ids", task.gpu_ids),
        task.batch_size,
    )


def _refusal(key: str, value: object, reason: str) -> UsageError:
    return UsageError(f"{key}={value} cannot be followed: {reason}")


def _paths(prefix: str, annotations: str, images: str) -> tuple[Path, Path | None]:
    joint = "_" if prefix.startswith("dataset") else "."
    if not annotations:
        raise UsageError(f"{prefix}{joint}ann_path is missing: the file of boxes, COCO JSON")
    return Path(annotations), Path(images) if images else None


def _frozen(stages: Sequence[int]) -> tuple[int, int] | None:
    """TAO's `frozen_stages`: [n] is 0 to n, [a, b] is a to b; nothing where it ends at 0 or below."""
    first, last = (0, stages[0]) if len(stages) == 1 else (stages[0], stages[-1]) if stages else (0, -1)
    if len(stages) > 2 and list(stages) != list(range(first, last + 1)):
        raise _refusal("model.frozen_stages", list(stages), "expected [last], [first, last] or a gapless list")
    return (max(0, first), last) if last > 0 else None


def _weights(path: str | None) -> tuple[Literal["none"] | Path, str]:
    """Start and `pretrained` of a run: a student of ours goes on, any other file holds a backbone."""
    if not path:
        return "none", "none"
    file = Path(path).resolve()  # mal_model_latest.pth is a link
    ours = file.suffix == ".safetensors" and file.is_file() and b'"mal.format"' in file.read_bytes()[:65536]
    return (file, "auto") if ours else ("none", str(file))


def _checkpoint(key: str, path: str | None) -> Path:
    if not path:
        raise UsageError(f"{key} is missing: the model that labels, e.g. /results/train/{LATEST}")
    file = Path(path)
    kept = file.with_suffix(".safetensors")
    file = file.resolve() if file.exists() else kept if file.suffix == ".pth" and kept.exists() else file
    if file.suffix == ".pth":
        reason = "is a TAO checkpoint, whose network and licence are NVIDIA's" if file.exists() else "does not exist"
        raise UsageError(f"{key}={path} {reason}; expected a model that mal trained or exported")
    return file


def _device(key: str, gpu_ids: Sequence[int]) -> str | None:
    if len(gpu_ids) != 1:
        raise _refusal(key, list(gpu_ids), "labelling runs on one device; give one GPU")
    return None if gpu_ids[0] == 0 else f"cuda:{gpu_ids[0]}"
