"""Adapting to a user's boxes: how much work, what neighbours say, and never a worse student than before."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mal.train.run as run_module
from mal.config import AdaptConfig, ModelConstants, TrainConfig
from mal.datasets import open_boxes
from mal.errors import InputError
from mal.network.checkpoint import load_student, save_student
from mal.network.student import Student
from mal.train.judge import Judgement, judge
from mal.train.neighbours import claimed_by_smaller, surer_larger
from mal.train.run import for_adapting, train
from mal.train.samples import cut_samples
from mal.train.validation import read_truth

SHORT: dict[str, Any] = {"cache_size": 96, "rounds": (4, 8), "epoch_crops": 4, "batch": 2, "precision": "32"}


@pytest.fixture
def first(quick: TrainConfig, tmp_path: Path) -> Path:
    constants = ModelConstants(backbone=quick.backbone, size=64, width=8, training_data="the first's", threshold=0.35)
    save_student(tmp_path / "first.safetensors", Student(constants), constants)
    return tmp_path / "first.safetensors"


@pytest.mark.parametrize(
    ("count", "crops"), [(3, 1600), (200, 2400), (3000, 12_000), (50_000, 12_000)], ids=lambda value: str(value)
)
def test_work_follows_the_number_of_boxes_within_bounds(make_data, count: int, crops: int) -> None:
    path = make_data(1)
    document = json.loads(path.read_text())
    document["annotations"] = [document["annotations"][0] | {"id": at} for at in range(count)]
    path.write_text(json.dumps(document))
    adapt = AdaptConfig(passes=12, crops=(1600, 12_000), rounds=3)
    config = for_adapting(TrainConfig(adapt=adapt), [open_boxes(path)])
    assert config.rounds[1:] == (round(crops / 3),) * 3
    assert config.epoch_crops == crops // 8
    mine = TrainConfig.load(None, ["rounds=[10,20]", "self_train.full=0.7"])
    kept = for_adapting(mine, [open_boxes(path)])
    assert (kept.rounds, kept.self_train.full, kept.self_train.drop, kept.losses.crf) == ((10, 20), 0.7, 0, 0)


@pytest.mark.parametrize("better", [True, False])
def test_what_does_not_help_by_its_own_judgement_is_not_kept(
    make_data, first: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], better: bool
) -> None:
    boxes, before = make_data(2), load_student(first)[0].state_dict()

    def judged(student: Student, *_: Any) -> Judgement:
        same = all(np.allclose(value, before[key]) for key, value in student.state_dict().items())
        return Judgement(0.5, 0.5 if same == better else 0.9, 1.0, 0.0, np.zeros((2, 16, 16), np.float32))

    monkeypatch.setattr(run_module, "judge", judged)
    path = train(TrainConfig(**SHORT, lr_backbone=1e-2), boxes, None, boxes.parent / "run", first)
    student, constants = load_student(path)
    kept = all(np.allclose(value, before[key]) for key, value in student.state_dict().items())
    assert kept is not better
    assert ("adapting did not help" in capfd.readouterr().err) is not better
    assert constants.threshold == (0.5 if better else 0.35)
    assert constants.training_data.startswith("the first's")


@pytest.mark.parametrize(
    ("rounds", "every", "epochs"), [((4, 80), 1, 3), ((4, 8, 8, 80), 1, 3), ((4, 80), 2, 6)], ids=str
)
def test_it_ends_when_nothing_gets_better(
    make_data, first: Path, rounds: tuple[int, ...], every: int, epochs: int
) -> None:
    """Rates of nothing: each judgement is like the one before, in this round and in the next one."""
    boxes = make_data(2)
    rates: dict[str, Any] = {"lr_head": 1e-12, "lr_backbone": 0, "teacher_momentum": 0, "validate_every": every}
    still = TrainConfig(**SHORT | rates | {"rounds": rounds}, adapt=AdaptConfig(patience=2))
    train(still, boxes, None, boxes.parent / "run", first)
    assert len((boxes.parent / "run" / "metrics.csv").read_text().splitlines()) == 1 + epochs


def test_the_smaller_box_claims_its_pixels(tmp_path: Path, quick: TrainConfig) -> None:
    """A box of 20 within one of 80, worked by hand; each object fills its box. Where the larger one is surer of the
    smaller one's cells, nobody knows."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (160, 160)).save(tmp_path / "images" / "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 160, "height": 160}],
        "annotations": [
            {"id": 1, "image_id": 1, "bbox": [40, 40, 80, 80], "category_id": 1},
            {"id": 2, "image_id": 1, "bbox": [50, 70, 20, 20], "category_id": 1},
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    file = open_boxes(tmp_path / "boxes.json")
    samples = cut_samples([file], quick, tmp_path / "cache")
    grid = 64
    probability = np.zeros((2, grid, grid), np.uint8)
    low, high = round(samples.box[0] * grid), round(samples.box[2] * grid)
    probability[:, low:high, low:high] = 255
    claimed = claimed_by_smaller(probability, samples, np.arange(2), 0.6)
    assert not claimed[1].any()
    # The large crop is 128 px from 16 on, two to a cell: the small box is cells 17..27 across and 27..37 down.
    rows, columns = np.flatnonzero(claimed[0].any(1)), np.flatnonzero(claimed[0].any(0))
    assert (columns[0], columns[-1] + 1, rows[0], rows[-1] + 1) == (17, 27, 27, 37)
    assert not claimed_by_smaller(probability, samples, np.arange(2), 1.0).any()
    assert not surer_larger(probability, samples, np.arange(2)).any()  # no surer
    probability[1, :, : grid // 2] = 200  # all of the small one's crop lies in the large box
    probability[1, :, :low] = 100
    unknown = surer_larger(probability, samples, np.arange(2))
    assert not unknown[0].any()
    expected = np.zeros((grid, grid), bool)
    expected[:, low : grid // 2] = True  # the right half is as sure itself, on the left there is no mask
    assert (unknown[1] == expected).all()
    assert not claimed_by_smaller(probability[:1], samples, np.array([0]), 0.6).any()  # only what is asked about counts


def test_a_mask_is_judged_by_what_its_neighbours_leave(make_data, quick: TrainConfig, first: Path) -> None:
    """Everything is mask: of a box of 60 x 50 another one's 20 x 20 are claimed, of that one nothing."""
    boxes = make_data(1)
    document = json.loads(boxes.read_text())
    document["annotations"].append(document["annotations"][0] | {"id": 9, "bbox": [50, 35, 20, 20]})
    boxes.write_text(json.dumps(document))
    samples = cut_samples([open_boxes(boxes)], quick, boxes.parent / "cache")
    student = load_student(first)[0].eval()
    student.head.bias.data += 100
    found = judge(student, samples, np.arange(2), quick)
    assert found.claimed == pytest.approx(0.5 * 20 * 20 / (60 * 50), abs=0.01)  # both spill to their crops
    assert found.value == pytest.approx(found.extent * found.flip * (1 - found.claimed))
    alone = judge(student, samples, np.arange(2), quick.model_copy(update={"claimed": 1.0}))
    assert alone.claimed == 0


def test_masks_of_val_choose_and_are_not_learned(make_data, quick: TrainConfig) -> None:
    boxes = make_data(3)
    ellipse = [[60 + 30 * np.cos(t), 45 + 25 * np.sin(t)] for t in np.linspace(0, 2 * np.pi, 40)]
    val = make_data(2, "val", segmentation=[np.ravel(ellipse).tolist()])
    config = quick.model_copy(update={"val": val})
    truth = read_truth(config, boxes.parent / "val-cache")
    assert truth is not None
    y, x = (np.mgrid[:16, :16] + 0.5) / 16 * 2.6 - 1.3  # the crop is 1.3 times the box
    perfect = np.where(np.hypot(x, y) < 1, 0.99, 0.01).astype(np.float32)[None].repeat(2, 0)
    assert truth.miou(perfect, 0.5, 0.3) > 0.9
    assert truth.miou(np.ones_like(perfect), 0.5, 0.3) == pytest.approx(np.pi / 4, abs=0.03)  # the whole box
    plain = train(quick, boxes, None, boxes.parent / "plain", "none")
    judged = train(config, boxes, None, boxes.parent / "judged", "none")
    header = (judged.parent / "metrics.csv").read_text().splitlines()[0]
    assert "miou_teacher" in header
    one, other = ((path.parent / "metrics.csv").read_text().splitlines()[1] for path in (plain, judged))
    assert one.split(",")[:5] == other.split(",")[:5]  # the same losses


def test_val_without_masks_is_refused(make_data, quick: TrainConfig, tmp_path: Path) -> None:
    config = quick.model_copy(update={"val": make_data(1)})
    with pytest.raises(InputError, match="has no mask"):
        read_truth(config, tmp_path / "cache")
