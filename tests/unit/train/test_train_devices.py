"""Several processes, parts of a step, frozen stages: what must not change the curve, and what must be refused."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mal.config import TrainConfig
from mal.errors import DeviceError, UsageError
from mal.network.checkpoint import load_student
from mal.train.fit import check_devices
from mal.train.run import train

TOGETHER: dict[str, Any] = {"batch": 8, "epoch_crops": 16, "rounds": (32,), "lr_head": 1e-3, "threads": 1}


def losses(out: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    with (out / "metrics.csv").open(newline="") as file:
        return np.array([[float(row["loss_mil"]), float(row["loss_label"])] for row in csv.DictReader(file)])


@pytest.mark.slow
@pytest.mark.parametrize("shared", [{"accumulate": 2}, {"accumulate": 2, "devices": 2}], ids=str)
def test_a_step_shared_out_gives_the_curve_of_one_process(
    make_data, quick: TrainConfig, shared: dict[str, int]
) -> None:
    """GroupNorm and LayerNorm only (vit tiny): no statistics over the batch. fp32 sums in another order: 1e-4.

    The label term is a mean over trust within each part; here all labels have the same trust, else it differs a little.
    """
    boxes = make_data(4)
    alone = quick.model_copy(update=TOGETHER | {"backbone": "vit_tiny_patch16_224"})
    train(alone, boxes, None, boxes.parent / "alone", "none")
    path = train(alone.model_copy(update=shared), boxes, None, boxes.parent / "shared", "none")
    one, other = losses(boxes.parent / "alone"), losses(boxes.parent / "shared")
    assert one[0, 0] != one[1, 0]  # it learns something
    np.testing.assert_allclose(other, one, rtol=1e-4)
    ours, theirs = (load_student(file)[0].state_dict() for file in (boxes.parent / "alone" / path.name, path))
    # fp16 storage: one unit in the last place of a weight near 1 is 1e-3
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 2e-3


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"batch": 6, "devices": 2, "accumulate": 2}, UsageError, "batch=6 is not a multiple"),
        ({"strategy": "fsdp"}, DeviceError, "Lightning's FSDP refuses to run on a CPU"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_out_is_refused_at_once(
    quick: TrainConfig, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(error, match=words):
        check_devices(quick.model_copy(update=settings))


@pytest.mark.gpu
def test_more_gpus_than_there_are_is_an_error(quick: TrainConfig) -> None:
    with pytest.raises(DeviceError, match="this machine has"):
        check_devices(quick.model_copy(update={"devices": 64, "batch": 64}))
