"""The trainer as a whole, and the defects of the original that must stay out (reference: mal.md §12)."""

import csv
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mal.network.head
import mal.train.start as start_module
from mal.config import LossConfig, ModelConstants, SelfTrainConfig, TrainConfig
from mal.errors import DeviceError, InputError, Interrupted, MalError, ModelFileError, UsageError
from mal.network.checkpoint import load_student
from mal.network.student import Student
from mal.train.fit import precision
from mal.train.module import MalModule, epoch_steps, lr_share, round_epochs
from mal.train.run import rows_aside, train, train_from_words
from mal.train.teacher import follow, make_teacher


@pytest.fixture
def student(quick: TrainConfig) -> Student:
    return Student(ModelConstants(backbone=quick.backbone, size=64, width=8))


def same(a: Path, b: Path) -> bool:
    first, second = (load_student(path)[0].state_dict() for path in (a, b))
    return all(torch.equal(value, second[key]) for key, value in first.items())


def metrics(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return [{key: row[key] for key in row if not key.endswith("crops_per_s")} for row in csv.DictReader(file)]


def test_one_box_is_enough_and_everything_promised_is_written(make_data, quick: TrainConfig) -> None:
    """Upstream divides by zero on tiny sets. A `segmentation` of rubbish shows that nobody reads it."""
    boxes = make_data(1, segmentation={"size": "rubbish", "counts": [["x"]]}, area=-1)
    out = boxes.parent / "run"
    path = train(quick, boxes, None, out, "none")
    student, constants = load_student(path)
    assert constants.backbone == quick.backbone
    assert constants.threshold in quick.thresholds
    assert "boxes.json" in constants.training_data
    assert all(torch.isfinite(value).all() for value in student.state_dict().values())
    names = "config.yaml inputs.json last.ckpt metrics.csv preview student.safetensors tensorboard"
    assert sorted(entry.name for entry in out.iterdir()) == names.split()
    assert TrainConfig.load(out / "config.yaml") == quick
    rows = metrics(out)
    assert [f"{row['round']} {row['epoch']} {row['crops']}" for row in rows] == ["1 1 4", "1 2 8", "2 1 12", "2 2 16"]
    assert rows[0]["loss_crf"] == ""
    assert float(rows[3]["loss_crf"]) >= 0
    assert len(list((out / "preview").glob("*.jpg"))) == 4
    assert list((out / "tensorboard").rglob("events*"))


def test_cached_crops_are_as_fine_as_the_network_sees_them(make_data) -> None:
    boxes = make_data(1)
    words = "backbone=mobilenetv2_035 pretrained=none frozen=null size=256 width=8 rounds=[1] epoch_crops=1 batch=1"
    out = boxes.parent / "run"
    train_from_words([boxes], images=[], start="none", config=None, overrides=words.split(), run=out, resume=False)
    assert TrainConfig.load(out / "config.yaml").cache_size == 384


def test_what_was_left_out_is_listed(make_data, quick: TrainConfig) -> None:
    boxes = make_data(3)
    (boxes.parent / "images" / "1.png").unlink()
    train(quick.model_copy(update={"rounds": (4,)}), boxes, None, boxes.parent / "run", "none")
    assert "1.png" in (boxes.parent / "run" / "left_out.txt").read_text()


def test_masks_in_the_file_change_nothing(make_data, quick: TrainConfig) -> None:
    plain, masked = make_data(2, "plain"), make_data(2, "masked", segmentation=[[1, 2, 3, 4, 5, 6]], area=12)
    assert same(*(train(quick, path, None, path.parent / "run", "none") for path in (plain, masked)))


@pytest.mark.parametrize(
    ("epochs_done", "settings"),
    [(1, {"accumulate": 2, "frozen": (0, 1), "precision": "bf16"}), (2, {}), (3, {"keep_every": 2})],
    ids=str,
)
def test_a_stopped_run_resumes_exactly(
    make_data, quick: TrainConfig, monkeypatch: pytest.MonkeyPatch, epochs_done: int, settings: dict[str, Any]
) -> None:
    """Ctrl-C within round 1, just after the border of the rounds, and within round 2."""
    boxes, quick = make_data(3), quick.model_copy(update=settings)
    whole = train(quick, boxes, None, boxes.parent / "whole", "none")
    calls, step = 0, MalModule.training_step

    def interrupted(self: MalModule, batch: Any, batch_idx: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == (epochs_done * epoch_steps(quick) + 1) * quick.accumulate + 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(MalModule, "training_step", interrupted)
    out = boxes.parent / "parts"
    with pytest.raises(Interrupted, match="--resume"):
        train(quick, boxes, None, out, "none")
    assert not (out / "student.safetensors").exists()
    monkeypatch.undo()
    assert same(whole, train(TrainConfig(), [], None, out, resume=True))
    assert metrics(out) == metrics(boxes.parent / "whole")


def test_a_training_that_diverges_leaves_no_student(make_data, quick: TrainConfig) -> None:
    boxes = make_data(2)
    wild = quick.model_copy(update={"lr_head": 1e12, "lr_backbone": 1e12, "warmup_steps": 0})
    with pytest.raises(MalError, match=r"diverged in epoch 1.*lr_head"):
        train(wild, boxes, None, boxes.parent / "run", "none")
    assert not (boxes.parent / "run" / "student.safetensors").exists()


def test_contradictions_are_refused(make_data, quick: TrainConfig, tmp_path: Path) -> None:
    boxes = make_data(1)
    with pytest.raises(UsageError, match="nothing to resume"):
        train(TrainConfig(), [], None, tmp_path / "empty", resume=True)
    with pytest.raises(UsageError, match="-o"):
        train_from_words([], images=[], start="none", config=None, overrides=[], run=None, resume=True)
    with pytest.raises(UsageError, match="no file of boxes"):
        train(quick, [], None, tmp_path / "run", "none")
    with pytest.raises(UsageError, match="1 image folders for 2"):
        train(quick, [boxes, boxes], boxes.parent / "images", tmp_path / "run", "none")
    with pytest.raises(ModelFileError, match="no model file"):
        train(TrainConfig(), boxes, None, tmp_path / "run", tmp_path / "missing.safetensors")
    nothing = quick.model_copy(update={"losses": LossConfig(label=0, mil=0, crf=0)})
    with pytest.raises(UsageError, match=r"losses\.label.*nothing would be learned"):
        train(nothing, boxes, None, tmp_path / "run", "none")
    empty = quick.model_copy(update={"self_train": SelfTrainConfig(drop=0.7)})
    with pytest.raises(UsageError, match=r"self_train\.drop=0\.7 must be below self_train\.full"):
        train(empty, boxes, None, tmp_path / "run", "none")
    with pytest.raises(UsageError, match="pretrained=none"):
        train(quick.model_copy(update={"pretrained": "auto"}), boxes, None, tmp_path / "run", "none")
    done = train(quick, boxes, None, tmp_path / "run", "none")
    with pytest.raises(UsageError, match="--resume"):
        train(quick, boxes, None, tmp_path / "run", "none")
    with pytest.raises(UsageError, match="complete"):
        train(TrainConfig(), boxes, None, tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="size=96 contradicts"):
        train(TrainConfig(size=96), boxes, None, tmp_path / "next", done)


def test_adapting_starts_at_round_two_from_the_given_weights(make_data, quick: TrainConfig) -> None:
    boxes = make_data(2)
    first = train(quick, boxes, None, boxes.parent / "first", "none")
    shape = {key: getattr(quick, key) for key in ("cache_size", "rounds", "epoch_crops", "batch", "precision")}
    still = TrainConfig(**shape, lr_head=1e-12, lr_backbone=0, teacher_momentum=0)
    second = train(still, boxes, None, boxes.parent / "second", first)
    assert {row["round"] for row in metrics(boxes.parent / "second")} == {"2"}
    before, after = (load_student(path)[0].state_dict() for path in (first, second))
    assert all(torch.allclose(value, after[key], atol=1e-3) for key, value in before.items())
    assert load_student(second)[1].training_data.count("boxes.json") == 2


def test_plain_mal_needs_no_labels(make_data, quick: TrainConfig) -> None:
    boxes = make_data(1)
    plain = quick.model_copy(update={"losses": LossConfig(label=0, mil=4, crf=0.5), "rounds": (4,)})
    train(plain, boxes, None, boxes.parent / "run", "none")
    row = metrics(boxes.parent / "run")[0]
    assert "loss_label" not in row
    assert float(row["loss_crf"]) >= 0


def test_the_first_step_is_not_at_the_full_rate() -> None:
    config = TrainConfig()
    shares = [lr_share(step, 875, config) for step in range(876)]
    assert shares[0] < 0.03
    assert max(shares) > 0.95
    assert max(b - a for a, b in pairwise(shares)) < 0.03
    assert shares[-1] == pytest.approx(config.lr_last, rel=0.01)


def test_an_epoch_has_a_step_however_few_the_crops() -> None:
    config = TrainConfig(rounds=(1, 1), epoch_crops=1)
    assert epoch_steps(config) == round_epochs(config, 0) == 1
    assert 0 < lr_share(0, 1, config) <= 1


def test_teacher_and_student_start_equal_and_the_teacher_has_no_graph(student: Student, quick: TrainConfig) -> None:
    module = MalModule(student, quick, 0, crf=True)
    ours, theirs = module.student.state_dict(), module.teacher.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())
    module.train()
    assert not module.teacher.training
    assert not module.teacher.logits(torch.rand(1, 3, 64, 64)).requires_grad
    learned = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert learned == {id(p) for p in module.student.parameters() if p.requires_grad}


def test_the_teacher_follows_parameters_and_buffers(student: Student) -> None:
    teacher = make_teacher(student)
    with torch.no_grad():
        for tensor in student.state_dict().values():
            tensor.add_(1)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    follow(teacher, student, 0.75)
    for key, value in teacher.state_dict().items():
        step = 1.0 if "running" in key or "num_batches" in key else 0.25
        assert torch.allclose(value.float(), before[key].float() + step, atol=1e-5), key


def test_no_object_is_told_apart_by_its_size() -> None:
    """Upstream gives a box of exactly 32 x 32 or 96 x 96 px no size bucket, hence logits 0 and a full box."""
    source = Path(mal.network.head.__file__).read_text().replace("without size buckets", "")
    assert not re.search(r"\barea\b|bucket|small|large", source)


def test_every_setting_is_used() -> None:
    """No dead flags."""
    folder = Path(start_module.__file__).parents[1]
    source = "".join(path.read_text() for part in ("train", "network") for path in (folder / part).glob("*.py"))
    used = set(re.findall(r"\.(\w+)", source)) | set(start_module.SHAPE)
    assert [key for key in TrainConfig.keys() if key.split(".")[-1] not in used] == []  # noqa: SIM118


def test_few_boxes_are_all_judged_and_many_kept_aside() -> None:
    config = TrainConfig()
    assert rows_aside(np.arange(3), config).tolist() == [0, 1, 2]
    assert len(rows_aside(np.arange(1000), config)) == 50
    assert len(rows_aside(np.arange(10**6), config)) == 256
    assert np.array_equal(rows_aside(np.arange(1000), config), rows_aside(np.arange(1000), config))
    assert len(rows_aside(np.zeros(1000, int), config)) == 256  # one image: nothing can be kept aside
    images = np.repeat(np.arange(200), 5)
    aside = rows_aside(images, config)
    assert len(aside) == 50
    assert not np.isin(np.delete(images, aside), images[aside]).any()


def test_half_precision_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="CUDA"):
        precision(TrainConfig(precision="16"))
    assert precision(TrainConfig(precision="bf16")) == "bf16-mixed"


def test_a_start_that_failed_is_no_run(tmp_path: Path, quick: TrainConfig) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"images": [], "annotations": [], "categories": []}')
    for _ in range(2):  # the second time it is still the boxes that are wrong
        with pytest.raises(InputError, match=r"boxes\.json|no box|empty"):
            train(quick, boxes, None, tmp_path / "run", "none")
