"""The gate of lower precision: what it counts, and when it closes."""

import numpy as np
import pytest
from tensorrt_parts import SIZE, constants, tiny_model

from mal.datasets.segmentations import to_rle
from mal.errors import ParityError
from mal.export.gate_crops import GateCrops
from mal.export.parity import Model, onnx_model
from mal.export.precision_gate import PrecisionParity, compare_precision

EXPANSION = constants(0).expansion


@pytest.fixture
def gate(rng: np.random.Generator) -> GateCrops:
    pixels = rng.integers(0, 256, (7, 3, SIZE, SIZE)).astype(np.float32)
    boxes = np.tile([4.0, 4.0, 36.0, 36.0], (7, 1))
    full = to_rle({"size": [40, 40], "counts": [0, 1600]}, 40, 40)
    return GateCrops(pixels, np.array([0, 0, 1, 1, 1, 2, 2]), boxes, [None, full, None, full, None, None, None])


TRUTH = onnx_model(tiny_model(0))


def moved(by: np.ndarray | float) -> Model:
    return lambda crops: (TRUTH(crops)[0] + np.float32(by), TRUTH(crops)[1])


def gated(model: Model, gate: GateCrops, precision: str = "fp16") -> PrecisionParity:
    return compare_precision(model, TRUTH, gate, EXPANSION, precision)


def test_the_same_model_costs_nothing(gate: GateCrops) -> None:
    parity = gated(TRUTH, gate)
    assert parity.problems() == []
    assert (parity.all.crops, parity.all.mean_iou, parity.all.cells_differ, parity.all.max_score) == (7, 1, 0, 0)
    assert {name: part.crops for name, part in parity.sizes.items()} == {"small": 2, "medium": 3, "large": 2}
    assert (parity.true_objects, parity.miou_loss) == (2, 0)
    assert parity.all.cells_near > 0


def test_other_masks_are_a_problem(gate: GateCrops) -> None:
    parity = gated(moved(0.2), gate)
    assert "mean mask-IoU" in parity.problems()[0]
    assert parity.all.cells_near_differ > 0
    assert f"{parity.all.mean_iou:.4f}" in parity.text()


def test_one_size_alone_is_a_problem(gate: GateCrops) -> None:
    def small_suffer(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, scores = TRUTH(crops)
        logits[0, 0, [3, 4]] = -1  # two rows of the first crop, which is a small object's
        return logits, scores

    problems = gated(small_suffer, gate, "int8").problems()
    assert len(problems) == 1
    assert problems[0].startswith("small objects")


def test_true_masks_count(gate: GateCrops) -> None:
    # Less mask where the truth is the whole picture: a loss, by how much the object's mask shrank.
    parity = gated(moved(-0.05), gate)
    assert parity.miou_loss is not None
    assert parity.miou_loss > 0.001
    assert any(problem.startswith("mIoU with true masks falls") for problem in parity.problems())
    assert gated(moved(0.05), gate).miou_loss < 0  # type: ignore[operator]  a gain is no problem
    without = GateCrops(gate.pixels, gate.size, gate.boxes, [None] * 7)
    assert gated(moved(-0.05), without).miou_loss is None


def test_overflow_is_named(gate: GateCrops) -> None:
    with pytest.raises(ParityError, match="overflows in fp16"):
        gated(moved(np.nan), gate)


def test_only_masks_in_the_box_count(gate: GateCrops) -> None:
    def other_outside(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, scores = TRUTH(crops)
        logits[:, :, 0, :] *= -1  # the box begins further in
        return logits, scores

    assert compare_precision(other_outside, TRUTH, gate, 1.0, "fp16").all.mean_iou == 1
