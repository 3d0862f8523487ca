"""TAO MAL experiment specs: they run as they are, and no key of them is passed over in silence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mal.errors import InputError, MalError, UsageError
from mal.evaluation.metrics import Judged
from mal.evaluation.spec import evaluate_spec, tao_figures
from mal.export.export import export_model
from mal.export.request import ExportRequest
from mal.network.checkpoint import load_student
from mal.runtime.label import label_dataset
from mal.train.run import train_from_spec
from mal.train.tao import TrainTask, evaluate_task, label_task, train_task
from mal.train.tao_spec import FIXED, TaoSpec

DOCS = Path(__file__).parents[3] / "docs" / "tao.md"
Write = Callable[..., Path]


@pytest.fixture
def write_spec(make_data, tmp_path: Path) -> Write:
    def write(count: int = 8, **extra: dict[str, Any]) -> Path:
        """A spec as TAO's documentation has it, on `count` small images; `extra` replaces keys of its groups."""
        boxes = make_data(count, segmentation=[[30, 20, 90, 20, 90, 70, 30, 70]], iscrowd=0)
        (tmp_path / "student.safetensors").touch()
        groups: dict[str, dict[str, Any]] = {
            "dataset": {
                "train_ann_path": str(boxes),
                "train_img_dir": str(boxes.parent / "images"),
                "val_ann_path": str(boxes),
                "val_img_dir": str(boxes.parent / "images"),
                "crop_size": 64,
                "num_workers_per_gpu": 0,
            },
            "model": {"arch": "vit-deit-tiny/16", "mask_head_hidden_channel": 8, "mask_head_out_channel": 8},
            "train": {"num_epochs": 2, "batch_size": 4, "lr": 1e-4, "use_amp": False, "crf_num_iter": 5},
            "evaluate": {"checkpoint": str(tmp_path / "results/train/mal_model_latest.pth")},
            "inference": {
                "ann_path": str(boxes),
                "img_dir": str(boxes.parent / "images"),
                "checkpoint": str(tmp_path / "results/train/mal_model_latest.pth"),
                "label_dump_path": "labels.json",
            },
        }
        for group, values in extra.items():
            groups[group] = groups.get(group, {}) | values
        file = tmp_path / "spec.yaml"
        file.write_text(yaml.safe_dump(groups | {"results_dir": str(tmp_path / "results")}))
        return file

    return write


def test_a_spec_trains_exports_labels_and_evaluates_where_tao_does(write_spec: Write, tmp_path: Path) -> None:
    spec, results = write_spec(), tmp_path / "results"
    student = train_from_spec(spec, ["train.validation_interval=2"])
    assert student == results / "train" / "student.safetensors"
    assert load_student(student)[1].backbone == "vit-deit-tiny/16"
    assert load_student(student)[1].threshold == 0.1
    kept = sorted(path.name for path in student.parent.glob("model_epoch_*"))
    assert kept == ["model_epoch_001_step_00002.safetensors", "model_epoch_002_step_00004.safetensors"]

    export_model(
        ExportRequest(str(student), precision="fp32", refine=None, target="onnx", output=tmp_path / "model.onnx")
    )
    assert (tmp_path / "model.onnx").is_file()

    task = label_task(spec)
    assert task.model == student  # TAO's name of the last model is a link to it
    label_dataset(**task.arguments())
    labels = json.loads((results / "inference" / "labels.json").read_text())
    assert len(labels["annotations"]) == 8
    assert all(row["mal"]["score"] >= 0 for row in labels["annotations"])

    evaluation = evaluate_spec(spec, [f"evaluate.checkpoint={student.parent / 'model_epoch_001_step_00002.pth'}"])
    status = json.loads((results / "evaluate" / "status.json").read_text())
    assert status["kpi"]["mIoU"] == pytest.approx(evaluation.miou_class)
    assert status["kpi"]["mIoU_medium"] == status["kpi"]["mIoU"]  # boxes of 60 x 50
    assert status["kpi"]["mIoU_small"] is None


def other(value: Any) -> Any:
    """A value of the same kind, but another one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (list, tuple)):
        return [other(each) for each in value] or ["x"]
    if isinstance(value, int):
        return value + 1
    return 0.96875 * value or 0.5 if isinstance(value, float) else "nonsense"


# The only keys whose every value gives the same here, and why docs/tao.md says so.
WITHOUT_EFFECT = {"model.not_adjust_scale"} | {key for key in TaoSpec.keys() if key.startswith("wandb.")}  # noqa: SIM118


@pytest.mark.parametrize("key", [key for key in TaoSpec.keys() if key not in WITHOUT_EFFECT])  # noqa: SIM118
def test_every_key_changes_what_is_done_or_is_refused_by_name(write_spec: Write, key: str) -> None:
    model = {"checkpoint": "model.onnx"}
    spec = write_spec(evaluate=model, inference=model)
    values: Any = TaoSpec.load(spec).model_dump()
    for part in key.split("."):
        values = values[part]
    changed = {"model.arch": "vit-deit-small/16", "dataset.crop_size": 96, "model.frozen_stages": [2]}.get(key)
    changed = {"train.margin_rate": [0.0, 1.0], "train.warmup_epochs": 0, "strategy": "fsdp"}.get(key, changed)
    word = f"{key}={json.dumps(other(values) if changed is None else changed)}"

    def done(words: list[str]) -> list[object]:
        return [task(spec, words) for task in (train_task, label_task, evaluate_task)]

    before = done([])
    outcome: object
    try:
        outcome = done([word])
    except MalError as error:
        outcome = error
    if isinstance(outcome, MalError):
        assert key in str(outcome) or "nonsense" in str(outcome)  # a file that is not there names itself
        assert outcome.exit_code == 2
    assert outcome != before


@pytest.mark.parametrize("key", TaoSpec.keys())
def test_every_key_is_in_the_table(key: str) -> None:
    assert f"`{key}`" in DOCS.read_text() or (key.startswith("wandb.") and "`wandb.*`" in DOCS.read_text())


def test_every_fixed_key_is_a_key() -> None:
    assert set(FIXED) <= set(TaoSpec.keys())


@pytest.mark.parametrize(
    ("group", "values", "parts"),
    [
        ("train", {"num_epoch": 3}, ["train.num_epoch", "train.num_epochs"]),
        ("dataset", {"train_ann_pth": "x"}, ["dataset.train_ann_pth", "dataset.train_ann_path"]),
        ("model", {"arch": "fan_tiny_12_p16_224"}, ["model.arch", "FAN"]),
        ("trian", {"num_epochs": 3}, ["'trian'", "'train'"]),
        ("train", {"mask_thres": [0.1, 0.2, 0.3]}, ["train.mask_thres", "one value"]),
        ("train", {"mask_thres": [1.5]}, ["train.mask_thres.0=1.5"]),
        ("train", {"optim_betas": [0.9, 1.5]}, ["train.optim_betas.1=1.5"]),
        ("train", {"seed": -1}, ["train.seed=-1"]),
        ("train", {"margin_rate": [-3, 1.2]}, ["train.margin_rate.0=-3"]),
        ("train", {"test_margin_rate": [-1, 0.6]}, ["train.test_margin_rate.0=-1"]),
        ("train", {"resume_training_checkpoint_path": "/elsewhere/last.ckpt"}, ["last.ckpt"]),
        ("model", {"frozen_stages": [3]}, ["model.frozen_stages", "random"]),
    ],
)
def test_mistakes_name_the_key_and_the_way_out(
    write_spec: Write, group: str, values: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        train_task(write_spec(**{group: values}))
    for part in parts:
        assert part in str(caught.value)


def test_a_key_that_is_there_twice_is_refused(write_spec: Write) -> None:
    spec = write_spec()
    for text in (spec.read_text() + "results_dir: elsewhere\n", "{results_dir: here, results_dir: elsewhere}\n"):
        spec.write_text(text)
        with pytest.raises(InputError, match="results_dir is there twice, in line"):
            TaoSpec.load(spec)


def test_boxes_without_masks_are_not_labelled_before_they_are_refused(
    write_spec: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_spec(evaluate={"checkpoint": "model.onnx"})
    boxes = Path(TaoSpec.load(spec).dataset.val_ann_path)
    document = json.loads(boxes.read_text())
    for row in document["annotations"]:
        del row["segmentation"]
    boxes.write_text(json.dumps(document))
    monkeypatch.setattr("mal.evaluation.spec.label_dataset", lambda **words: pytest.fail("labelled"))
    with pytest.raises(InputError, match="no true mask"):
        evaluate_spec(spec, [])


@pytest.mark.parametrize(("bounds", "drift"), [([0, 1.2], (0, 0.6)), ([0.8, 1.2], (0, 1.0)), ([1.2, 0], (0, 0.6))])
def test_margins_are_as_large_on_average_as_those_of_tao(
    write_spec: Write, bounds: list[float], drift: tuple[float, float]
) -> None:
    assert train_task(write_spec(train={"margin_rate": bounds})).config.drift == drift


def test_numbers_of_tao_become_ours(write_spec: Write) -> None:
    task = train_task(write_spec(train={"warmup_epochs": 1, "accum_grad_batches": 2, "batch_size": 2}))
    assert isinstance(task, TrainTask)
    config = task.config
    assert (config.batch, config.accumulate, config.epoch_crops, config.rounds) == (4, 2, 8, (16,))
    assert config.lr_head == pytest.approx(2e-4)  # base rate x crops at once, not counting accumulation
    assert (config.warmup_steps, config.lr_last, config.betas, config.weight_decay) == (2, 0.2, (0.9, 0.9), 5e-4)
    assert (config.losses.label, config.losses.mil, config.losses.crf) == (0, 4, 0.5)
    assert (config.expansion, config.drift, config.thresholds) == (0.3, (0.0, 0.6), (0.1,))


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [([-1], None), ([0], None), ([3], (0, 3)), ([2, 5], (2, 5)), ([0, 4], (0, 4)), ([1, 2, 3], (1, 3))],
)
def test_frozen_stages_mean_what_they_mean_in_tao(
    write_spec: Write, tmp_path: Path, stages: list[int], frozen: tuple[int, int] | None
) -> None:
    train = {"pretrained_model_path": str(tmp_path / "mae.pth")}
    assert train_task(write_spec(model={"frozen_stages": stages}, train=train)).config.frozen == frozen


def test_a_tao_checkpoint_is_refused(write_spec: Write, tmp_path: Path) -> None:
    (tmp_path / "nvidia.pth").touch()
    with pytest.raises(UsageError, match=r"inference\.checkpoint.*NVIDIA"):
        label_task(write_spec(inference={"checkpoint": str(tmp_path / "nvidia.pth")}))


def test_figures_of_tao_worked_by_hand() -> None:
    def judged(key: int, category: int, iou: float) -> Judged:
        return Judged(key, 0, category, 1, iou, 0, 0, 0, None, None)

    objects = [judged(1, 1, 1.0), judged(2, 1, 0.5), judged(3, 2, 0.25)]
    figures = tao_figures(objects, {1: 1024.0, 2: 1025.0, 3: 9217.0})
    assert figures == {"mIoU": np.mean([0.75, 0.25]), "mIoU_small": 1.0, "mIoU_medium": 0.5, "mIoU_large": 0.25}
