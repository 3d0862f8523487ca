import numpy as np
import pytest

from mal.config import LabelConfig, SelfTrainConfig, TrainConfig
from mal.train.labels import (
    BACKGROUND,
    OBJECT,
    UNKNOWN,
    Labels,
    drop_specks,
    extent_iou,
    iou,
    label_crop,
    labels_from_student,
    rank_among_like,
    to_label_grid,
)
from mal.train.samples import Samples

BOX = np.array([0.1875, 0.1875, 0.8125, 0.8125], np.float32)
WHOLE = np.array([0, 0, 1, 1], np.float32)


def ellipse(size: int, half: float = 0.3125) -> np.ndarray:
    t = (np.arange(size) + 0.5) / size - 0.5
    return np.hypot(t[None, :] / half, t[:, None] / half) < 1


def photo(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    crop = rng.integers(20, 60, (*mask.shape, 3)).astype(np.uint8)
    crop[mask] += np.array([150, 100, 0], np.uint8)
    return crop


def test_an_ellipse_on_plain_ground_is_found(rng: np.random.Generator) -> None:
    label, trust = label_crop(photo(ellipse(192), rng), BOX, WHOLE, LabelConfig())
    assert label is not None
    assert iou(label == OBJECT, ellipse(64)) > 0.95
    assert trust == 1


def test_an_object_that_does_not_fill_its_box_is_not_labelled(rng: np.random.Generator) -> None:
    """What GrabCut finds has half the box's sides: no proposal agrees with the box."""
    label, trust = label_crop(photo(ellipse(192, 0.15), rng), BOX, WHOLE, LabelConfig())
    assert label is None
    assert trust == 0


def test_a_crop_of_one_colour_is_no_error() -> None:
    label_crop(np.full((96, 96, 3), 90, np.uint8), BOX, WHOLE, LabelConfig())


def test_a_box_that_fills_the_image_has_no_background_and_no_label(rng: np.random.Generator) -> None:
    label, trust = label_crop(photo(ellipse(96), rng), BOX, BOX, LabelConfig())
    assert trust == 0 or label is not None


def test_the_same_crop_gives_the_same_label(rng: np.random.Generator) -> None:
    crop = photo(ellipse(192) & (rng.random((192, 192)) < 0.7), rng)
    first, second = (label_crop(crop, BOX, WHOLE, LabelConfig()) for _ in range(2))
    assert first[1] == second[1]
    assert np.array_equal(first[0], second[0])  # type: ignore[arg-type]


def test_extent_iou_worked_by_hand() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2] = mask[2, 2:6] = True
    assert extent_iou(mask, np.array([2.0, 2.0, 6.0, 6.0])) == 1
    assert extent_iou(mask, np.array([0.0, 0.0, 8.0, 8.0])) == pytest.approx(0.25)
    assert extent_iou(np.zeros((8, 8), bool), np.array([2.0, 2.0, 6.0, 6.0])) == 0


def test_specks_go_and_pin_holes_close() -> None:
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    clean = mask.copy()
    mask[0, 0], mask[16, 16] = True, False
    assert np.array_equal(drop_specks(mask, 0.04), clean)


def test_round_two_mixes_the_student_with_the_label_and_trusts_the_sure_ones() -> None:
    """Sure, unlabelled, unsure and blank objects: weights by rank of the score; a label shifts, but does not rule."""
    mask = ellipse(64)
    label = np.where(mask, OBJECT, BACKGROUND).astype(np.uint8)
    label[:, :32] = UNKNOWN
    sure, unsure, blank = np.where(mask, 240, 12), np.where(mask, 150, 90), np.zeros((64, 64))
    labels = Labels(np.stack([label] * 4), np.array([1, 0, 1, 0], np.float32))
    config = SelfTrainConfig(vote=0.5, boundary=0.5, sharpen=2, drop=0.25, full=1)
    made = labels_from_student(labels, np.stack([sure, sure, unsure, blank]).astype(np.uint8), config)
    assert made.trust[3] == 0
    assert 0 < made.trust[2] < made.trust[:2].min()
    assert (made.maps != UNKNOWN).all()
    p = (150 / 255 + 1) / 2, 150 / 255  # drawn half way to the label, and where it is unknown
    for column, expected in zip((40, 24), (p**2 / (p**2 + (1 - p) ** 2) for p in p), strict=True):
        assert made.maps[2, 32, column] == pytest.approx(255 * expected, abs=1)
    assert np.array_equal(made.maps[1] > 128, mask)
    assert labels.trust.tolist() == [1, 0, 1, 0]  # what came in is not changed


def test_round_two_of_one_box_trusts_it() -> None:
    made = labels_from_student(Labels.none(1, 64), np.full((1, 64, 64), 200, np.uint8), SelfTrainConfig())
    assert made.trust.tolist() == [1]


def test_thin_objects_are_ranked_among_thin_ones() -> None:
    """Scores that grow with the fill say nothing of it; equal scores rank lowest, a lone object highest."""
    rng = np.random.default_rng(0)
    filled = rng.random(4000).astype(np.float32)
    quality = rng.random(4000).astype(np.float32)
    rank = rank_among_like(quality + 9 * filled, filled)
    thin = filled < 0.2
    assert abs(rank[thin].mean() - 0.5) < 0.1 < (quality[thin & (rank > 0.8)].mean() - quality[thin].mean())
    assert rank_among_like(np.zeros(300, np.float32), filled[:300]).max() == 0.01
    assert rank_among_like(np.ones(1, np.float32), np.ones(1, np.float32)).tolist() == [1]


def test_predictions_land_on_the_label_grid_where_the_crop_is() -> None:
    """A prediction of the box itself covers the box of the cached crop."""
    config = TrainConfig()
    samples = Samples(np.zeros((1, 96, 96, 3), np.uint8), WHOLE[None], np.zeros(1, np.int32), 0.6, [])
    t = (np.arange(48) + 0.5) / 48
    part = (t > 0.3 / 2.6) & (t < 2.3 / 2.6)
    grid = to_label_grid((part[:, None] & part[None, :]).astype(np.float32)[None], samples, config)[0] > 127
    t = (np.arange(config.labels.grid) + 0.5) / config.labels.grid
    box = (t > BOX[0]) & (t < BOX[2])
    assert iou(grid, box[:, None] & box[None, :]) > 0.93
