"""`mal eval -e`: label the validation boxes of a TAO MAL spec with its checkpoint, judge, write where TAO writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mal.errors import OutputError
from mal.evaluation.metrics import Evaluation, Judged, evaluate
from mal.evaluation.pairs import pair_up, read_coco
from mal.runtime.label import label_dataset
from mal.train.tao import evaluate_task

SIZES = {"mIoU_small": (0.0, 32.0**2), "mIoU_medium": (32.0**2, 96.0**2), "mIoU_large": (96.0**2, 1e10)}
"""TAO's classes: the area of the box, up to and with the upper bound. Source: mal.md §7.1."""


def evaluate_spec(
    spec: Path, overrides: Sequence[str], predicted: Path | None = None, truth: Path | None = None
) -> Evaluation:
    """Judge what a spec's `evaluate` asks for.

    Args:
        spec: TAO MAL experiment spec.
        overrides: `key=value` words.
        predicted, truth: both or neither: a file labelled already, and what it is judged by.

    Returns:
        The evaluation; `status.json` with TAO's own figures lies in the results folder.

    Raises:
        UsageError: as `evaluate_task`; InputError: as `evaluate`; OutputError: the folder cannot be written.
    """
    task = evaluate_task(spec, overrides)
    if predicted is None or truth is None:
        predicted, truth = task.output, task.boxes
        pair_up(truth, truth)  # refuses a file without masks before all of it is labelled
        label_dataset(**task.arguments(), fresh=True)
    evaluation = evaluate(predicted, truth)
    status = {"status": "SUCCESS", "kpi": tao_figures(evaluation.judged, _box_areas(truth))}
    try:
        task.output.parent.mkdir(parents=True, exist_ok=True)
        (task.output.parent / "status.json").write_text(json.dumps(status) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write into {task.output.parent}: {error.strerror}") from None
    return evaluation


def tao_figures(judged: Sequence[Judged], box_areas: dict[Any, float]) -> dict[str, float | None]:
    """mIoU as TAO reports it: each category counts once; by size of the box. None where there is no object."""

    def mean(objects: Sequence[Judged]) -> float | None:
        classes: dict[Any, list[float]] = {}
        for each in objects:
            classes.setdefault(each.category, []).append(each.iou)
        return float(np.mean([np.mean(ious) for ious in classes.values()])) if classes else None

    sizes = {
        name: mean([each for each in judged if low < box_areas[each.annotation_id] <= high])
        for name, (low, high) in SIZES.items()
    }
    return {"mIoU": mean(judged), **sizes}


def _box_areas(truth: Path) -> dict[Any, float]:
    return {row["id"]: float(row["bbox"][2]) * float(row["bbox"][3]) for row in read_coco(truth)["annotations"]}
