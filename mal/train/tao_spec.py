"""TAO MAL experiment specs: every key they may have, and what becomes of it.

A key that has no counterpart here may only have the value that changes nothing (`FIXED`); another value is refused
with the reason. What the other keys become is the table in docs/tao.md, and `mal.train.tao` does it.
Source: reference/mal.md §8, of TAO 5.0 to 6.25. Free of torch: `mal label -e` and `mal eval -e` read specs too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat

from mal.config import Momentum, Probability, Settings
from mal.errors import UsageError


class Wandb(Settings):
    """Weights & Biases, which is not used here."""

    enable: bool = False
    project: str | None = None
    entity: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    reinit: bool = False
    sync_tensorboard: bool = False
    save_code: bool = False


class Cudnn(Settings):
    """How cuDNN chooses its algorithms."""

    benchmark: bool = False
    deterministic: bool = True


class Model(Settings):
    """The network."""

    arch: str = "vit-mae-base/16"
    frozen_stages: tuple[int, ...] = (-1,)
    mask_head_num_convs: int = 4
    mask_head_hidden_channel: int = Field(default=256, ge=8, multiple_of=8)
    mask_head_out_channel: int = 256
    teacher_momentum: Momentum = 0.996
    not_adjust_scale: bool = False
    mask_scale_ratio_pre: int = 1
    mask_scale_ratio: float = 2.0
    vit_dpr: float = 0.0


class Dataset(Settings):
    """Boxes and images."""

    type: Literal["coco"] = "coco"
    train_ann_path: str = ""
    train_img_dir: str = ""
    val_ann_path: str = ""
    val_img_dir: str = ""
    crop_size: int = Field(default=512, ge=64, multiple_of=32)
    load_mask: bool = True
    min_obj_size: float = Field(default=2048, ge=0)
    max_obj_size: float = 1e10
    num_workers_per_gpu: int = Field(default=2, ge=0)


class Train(Settings):
    """`mal train -e`."""

    num_gpus: int = Field(default=1, ge=1)
    gpu_ids: tuple[int, ...] = (0,)
    num_nodes: int = 1
    seed: int = Field(default=1234, ge=0)
    cudnn: Cudnn = Cudnn()
    num_epochs: int = Field(default=10, ge=1)
    checkpoint_interval: int = Field(default=1, ge=1)
    checkpoint_interval_unit: str = "epoch"
    validation_interval: int = Field(default=1, ge=1)
    resume_training_checkpoint_path: str | None = None
    pretrained_model_path: str | None = None
    results_dir: str | None = None
    batch_size: int = Field(default=3, ge=1)
    accum_grad_batches: int = Field(default=1, ge=1)
    use_amp: bool = True
    optim_type: str = "adamw"
    optim_momentum: float = 0.9
    optim_eps: float = 1e-8
    optim_betas: tuple[Momentum, Momentum] = (0.9, 0.9)
    lr: float = Field(default=1.5e-6, gt=0)
    min_lr: float = 0.0
    min_lr_rate: float = Field(default=0.2, ge=0, le=1)
    num_wave: float = 1
    wd: float = Field(default=5e-4, ge=0)
    warmup_epochs: float = Field(default=1, ge=0)
    margin_rate: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 1.2)
    test_margin_rate: tuple[PositiveFloat, float] = (0.6, 0.6)
    mask_thres: tuple[Probability, ...] = (0.1,)
    crf_kernel_size: int = 3
    crf_num_iter: int = Field(default=100, ge=0)
    crf_zeta: float = Field(default=0.1, gt=0)
    crf_size_ratio: float = 1
    crf_value_high_thres: float = 0.9
    crf_value_low_thres: float = 0.1
    loss_mil_weight: float = Field(default=4, ge=0)
    loss_crf_weight: float = Field(default=0.5, ge=0)
    loss_mil_step: int = 1000
    loss_crf_step: int = Field(default=4000, ge=0)


class Evaluate(Settings):
    """`mal eval -e`."""

    checkpoint: str | None = None
    trt_engine: str | None = None
    results_dir: str | None = None
    num_gpus: int = 1
    gpu_ids: tuple[int, ...] = (0,)
    num_nodes: int = 1
    batch_size: int = Field(default=3, ge=1)
    use_mixed_model_test: bool = False
    use_teacher_test: bool = False
    use_flip_test: bool = False
    comp_clustering: bool = False


class Inference(Settings):
    """`mal label -e`."""

    checkpoint: str | None = None
    trt_engine: str | None = None
    results_dir: str | None = None
    num_gpus: int = 1
    gpu_ids: tuple[int, ...] = (0,)
    num_nodes: int = 1
    ann_path: str = ""
    img_dir: str = ""
    label_dump_path: str = "instances_val2017_mal.json"
    batch_size: int = Field(default=3, ge=1)
    load_mask: bool = False


class TaoSpec(Settings):
    """A TAO MAL experiment spec. An unknown key is an error that names the nearest known one."""

    encryption_key: str | None = None
    results_dir: str = "/results"
    strategy: str = "ddp"
    model_name: str | None = None
    wandb: Wandb = Wandb()
    model: Model = Model()
    dataset: Dataset = Dataset()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    inference: Inference = Inference()

    @classmethod
    def load(cls, file: Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read a spec with its overrides, and refuse what cannot be done; errors as in `Settings.load`."""
        spec = super().load(file, overrides)
        values = spec.model_dump()
        for key, (allowed, reason) in FIXED.items():
            value = _at(values, key)
            if value not in allowed:
                words = " or ".join(str(each) for each in allowed)
                raise UsageError(f"{key}={value} cannot be followed: {reason}; expected {words}")
        return spec

    def folder(self, task: Literal["train", "evaluate", "inference"]) -> Path:
        """Where the results of a task go: its results_dir, else the task's folder in the spec's."""
        own: str | None = getattr(self, task).results_dir
        return Path(own) if own else Path(self.results_dir) / task


_ONE_PROCESS = "labelling runs in one process on one device"
_CRF = "the mean field has fixed constants here (docs/crf.md)"
_TEST = "student.safetensors holds the better of student and teacher, and the graph labels each crop once"
FIXED: Mapping[str, tuple[Sequence[Any], str]] = {
    "encryption_key": ((None,), "checkpoints are not encrypted, in TAO's MAL neither"),
    "strategy": (("ddp", "fsdp"), "ddp_sharded was fairscale's, whose successor is fsdp"),
    "wandb.enable": ((False,), "curves go to TensorBoard and metrics.csv in the results folder"),
    "model.mask_head_num_convs": ((4,), "the head has a fixed depth"),
    "model.mask_scale_ratio_pre": ((1,), "logits always have a quarter of the crop's side"),
    "model.mask_scale_ratio": ((2.0,), "logits always have a quarter of the crop's side"),
    "model.vit_dpr": ((0.0,), "stochastic depth is not used"),
    "train.num_nodes": ((1,), "training runs on one machine"),
    "train.cudnn.benchmark": ((False,), "cuDNN's choice is not timed, so that runs repeat"),
    "train.cudnn.deterministic": ((True,), "cuDNN's choice is fixed, so that runs repeat"),
    "train.checkpoint_interval_unit": (("epoch",), "checkpoints are written at the end of an epoch"),
    "train.optim_type": (("adamw",), "there is one optimizer"),
    "train.optim_momentum": ((0.9,), "AdamW has no momentum, and TAO does not read it either"),
    "train.optim_eps": ((1e-8,), "AdamW's epsilon is fixed"),
    "train.min_lr": ((0.0,), "TAO overwrites it by min_lr_rate x lr; set min_lr_rate"),
    "train.num_wave": ((1,), "the rate falls along one cosine"),
    "train.crf_kernel_size": ((3,), _CRF),
    "train.crf_size_ratio": ((1,), _CRF),
    "train.crf_value_high_thres": ((0.9,), _CRF),
    "train.crf_value_low_thres": ((0.1,), _CRF),
    "train.loss_mil_step": ((1000,), "the MIL loss needs no warm-up beside that of the learning rate"),
    "evaluate.trt_engine": ((None,), "give the engine as evaluate.checkpoint"),
    "evaluate.num_gpus": ((1,), _ONE_PROCESS),
    "evaluate.num_nodes": ((1,), _ONE_PROCESS),
    "evaluate.use_mixed_model_test": ((False,), _TEST),
    "evaluate.use_teacher_test": ((False,), _TEST),
    "evaluate.use_flip_test": ((False,), _TEST),
    "evaluate.comp_clustering": ((False,), "TAO declares it and never computes it"),
    "inference.trt_engine": ((None,), "give the engine as inference.checkpoint"),
    "inference.num_gpus": ((1,), _ONE_PROCESS),
    "inference.num_nodes": ((1,), _ONE_PROCESS),
    "inference.load_mask": ((False,), "masks are judged by mal eval, not written beside the labels"),
}
"""Keys without a counterpart: the values that change nothing, and why others are refused."""


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values
