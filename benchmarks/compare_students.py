"""How good are students on objects with true masks, before refinement? Each beside the first, object by object.

    python -m benchmarks.compare_students ../shared/data/coco-train STUDENT.safetensors… [--threads 1] [--json OUT.json]

At most 1,000 objects, drawn at random; mean IoU at full resolution at the best of the thresholds; the paired difference
to the first student, with its standard error. The masks only measure.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mal.config import TrainConfig
from mal.errors import MalError
from mal.network.checkpoint import load_student
from mal.train.judge import predict
from mal.train.start import SHAPE
from mal.train.validation import read_truth

THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)


def measure(file: Path, data: Path) -> tuple[NDArray[np.float64], float]:
    """(IoU of each object, the threshold): the best one for the mean."""
    student, constants = load_student(file)
    shape = {key: getattr(constants, key) for key in SHAPE}
    config = TrainConfig(val=data / "instances.json", val_images=data / "images").model_copy(update=shape)
    with tempfile.TemporaryDirectory() as cache:
        truth = read_truth(config, Path(cache))
        assert truth is not None
        probability = predict(student.eval(), truth.samples, truth.rows, config)
        tried = [(truth.ious(probability, each, config.expansion), each) for each in THRESHOLDS]
    return max(tried, key=lambda each: each[0].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with instances.json and images/")
    parser.add_argument("students", type=Path, nargs="+", metavar="STUDENT.safetensors")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: list[dict[str, float | int | str]] = []
    first: NDArray[np.float64] | None = None
    try:
        for file in options.students:
            ious, threshold = measure(file, options.data)
            row = {"file": str(file), "objects": len(ious), "miou": float(ious.mean()), "threshold": threshold}
            told = f"{file}: {row['miou']:.4f} on {len(ious)} objects, threshold {threshold}"
            if first is None:
                first = ious
            else:
                more = ious - first
                row |= {"difference": float(more.mean()), "error": float(more.std() / len(more) ** 0.5)}
                told += f", {row['difference']:+.4f} +- {row['error']:.4f}"
            rows.append(row)
            print(told, flush=True)
    except MalError as error:
        parser.error(str(error))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
