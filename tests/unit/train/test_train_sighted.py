"""Rounds whose network is shown the other boxes of the image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mal.train.run as run_module
from mal.config import ModelConstants, TrainConfig
from mal.datasets import open_boxes
from mal.errors import UsageError
from mal.network.checkpoint import load_student
from mal.network.student import Student
from mal.train.judge import predict
from mal.train.labels import UNKNOWN, Labels
from mal.train.module import MalModule
from mal.train.neighbours import neighbour_maps
from mal.train.run import train
from mal.train.samples import Samples, cut_samples
from mal.train.sighted import Sighted

THREE = {"rounds": (8, 8, 8), "sighted": (2,)}
FOUR = {"rounds": (8, 8, 8, 8), "sighted": (2, 3), "sighted_size": 96}


@pytest.fixture
def two_boxes(make_data) -> Path:
    """Each image with a second box, a fifth of the first and within it."""
    boxes = make_data(3)
    document = json.loads(boxes.read_text())
    rows = document["annotations"]
    document["annotations"] += [row | {"id": row["id"] + 100, "bbox": [50, 30, 24, 20]} for row in rows]
    boxes.write_text(json.dumps(document))
    return boxes


def sighted(config: TrainConfig) -> Sighted:
    torch.manual_seed(0)
    return Sighted(Student(ModelConstants(backbone=config.backbone, size=64, width=8)).eval())


def test_boxes_of_the_image_are_known_to_each_crop(two_boxes: Path, quick: TrainConfig) -> None:
    """The box of 24 x 20 at (50, 30), seen from the crop of the one of 60 x 50 at (30, 20), grown by .6."""
    samples = cut_samples([open_boxes(two_boxes)], quick, two_boxes.parent / "cache")
    large = int(np.argmax(samples.rect[:, 2] - samples.rect[:, 0]))
    (other,) = samples.others[large]
    assert other == pytest.approx([(50 - 12) / 96, (30 - 5) / 80, (74 - 12) / 96, (50 - 5) / 80], abs=1e-6)


def test_maps_say_where_smaller_and_larger_boxes_lie() -> None:
    own = np.array([0.25, 0.25, 0.75, 0.75], np.float32)
    others = np.array([[0.5, 0.5, 0.75, 0.75], [0, 0, 0.5, 1.25], [2, 2, 3, 3]], np.float32)
    smaller, larger, count, ellipse = neighbour_maps(others, own, 16)
    assert (
        (smaller > 0)
        == ((np.arange(16) >= 8) & (np.arange(16) < 12)) * ((np.arange(16) >= 8) & (np.arange(16) < 12))[:, None]
    ).all()
    assert ((larger > 0) == (np.arange(16) < 8)[None] * np.ones((16, 1), bool)).all()
    assert smaller[8, 8] == pytest.approx(0.45)  # three quarters out from the middle, along both axes
    assert larger[9, 4] == 1
    assert count.max() == pytest.approx(1 / 3)
    assert (ellipse <= smaller + 1e-6).all()
    assert not neighbour_maps(others[:0], own, 16).any()


def test_it_begins_as_the_student_and_then_looks(quick: TrainConfig) -> None:
    net = sighted(quick)
    crops, box = torch.rand(2, 3, 64, 64) * 255, torch.tensor([[0.1, 0.1, 0.9, 0.9]] * 2)
    maps = torch.rand(2, 4, 16, 16)
    assert torch.equal(net.logits(crops, box, maps), net.student.logits(crops, box))
    for eye in net.eyes.values():
        torch.nn.init.ones_(eye[-1].weight)  # pyright: ignore[reportIndexIssue, reportArgumentType]
    assert not torch.allclose(net.logits(crops, box, maps), net.logits(crops, box, torch.zeros_like(maps)))


def test_its_eyes_learn_at_the_rate_of_the_head(quick: TrainConfig) -> None:
    net = sighted(quick)
    groups = MalModule(net, quick, 1, crf=False).configure_optimizers()["optimizer"].param_groups
    fast = {id(p) for group in groups if group["initial_lr"] == quick.lr_head for p in group["params"]}
    assert {id(p) for p in [*net.eyes.parameters(), *net.head.parameters()]} == fast


def test_it_predicts_by_what_it_is_shown(two_boxes: Path, quick: TrainConfig) -> None:
    samples = cut_samples([open_boxes(two_boxes)], quick, two_boxes.parent / "cache")
    net, rows = sighted(quick), np.arange(len(samples))
    same = predict(net, samples, rows, quick)
    assert np.array_equal(same, predict(net.student, samples, rows, quick))
    for eye in net.eyes.values():
        torch.nn.init.ones_(eye[-1].weight)  # pyright: ignore[reportIndexIssue, reportArgumentType]
    shown = predict(net, samples, rows, quick)
    assert np.abs(shown - same).max() > 1e-3
    mirrored = predict(net, samples, rows, quick, flip=True)
    assert mirrored.shape == shown.shape


def test_contested_cells_are_unknown_and_the_last_round_is_a_student(
    two_boxes: Path, quick: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int, Labels]] = []
    fit = run_module.fit

    def watched(round_):
        assert round_.config.size == round_.student.head.size
        seen.append((isinstance(round_.student, Sighted), round_.config.size, round_.labels))
        return fit(round_)

    def certain(net, samples: Samples, rows, config, **_):
        return np.full((len(rows), 16, 16), 0.9, np.float32)

    monkeypatch.setattr(run_module, "fit", watched)
    monkeypatch.setattr(run_module, "predict", certain)
    out = two_boxes.parent / "run"
    path = train(quick.model_copy(update=FOUR), two_boxes, None, out, "none")
    assert [each[:2] for each in seen] == [(False, 64), (True, 96), (True, 96), (False, 64)]
    unknown = [(labels.maps == UNKNOWN).mean((1, 2)) for *_, labels in seen]
    for each in unknown[1:3]:
        large = each > 0
        assert large.sum() == 3  # everything claims everything: the large boxes lose the cells of the small ones
        assert each[large] == pytest.approx(24 * 20 * 1.3**2 / (96 * 80), abs=0.02)
    assert (unknown[3] == 0).all()
    load_student(path)  # no eyes in the file


def test_a_sighted_round_is_resumed(two_boxes: Path, quick: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config, runs = quick.model_copy(update=FOUR), [two_boxes.parent / "whole", two_boxes.parent / "stopped"]
    train(config, two_boxes, None, runs[0], "none")
    fit = run_module.fit

    def stopped(round_):
        if round_.number == 2:
            raise KeyboardInterrupt
        return fit(round_)

    monkeypatch.setattr(run_module, "fit", stopped)
    with pytest.raises(Exception, match="resume"):
        train(config, two_boxes, None, runs[1], "none")
    monkeypatch.setattr(run_module, "fit", fit)
    train(config, two_boxes, None, runs[1], "none", resume=True)
    first, second = (load_student(run / "student.safetensors")[0].state_dict() for run in runs)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_backbone_that_has_learned_places_is_refused_another_size(make_data, quick: TrainConfig) -> None:
    boxes = make_data(1)
    config = quick.model_copy(
        update=THREE | {"backbone": "vit_tiny_patch16_224", "pretrained": "none", "sighted_size": 96}
    )
    with pytest.raises(UsageError, match="vit_tiny_patch16_224 has learned where its 64 pixels are"):
        train(config, boxes, None, boxes.parent / "run", "none")


@pytest.mark.parametrize("wrong", [(1,), (3,), (0,)])
def test_rounds_that_cannot_be_sighted_are_refused(make_data, quick: TrainConfig, wrong: tuple[int, ...]) -> None:
    boxes = make_data(1)
    with pytest.raises(UsageError, match="sighted"):
        train(quick.model_copy(update=THREE | {"sighted": wrong}), boxes, None, boxes.parent / "run", "none")
