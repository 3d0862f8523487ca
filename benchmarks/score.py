"""Does the score rank masks, and better than simpler things? Spearman with the true IoU and AUC for IoU > .75.

python benchmarks/score.py STUDENT.safetensors TRUTH.json [--images DIR]

All from the student's unrefined logits, on the objects of TRUTH (crowds left out).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from crf_labelling import crops_of, masks_of

from mal.crops import to_input
from mal.evaluation.ranking import auc, spearman
from mal.network.checkpoint import load_student
from mal.network.score import mask_score


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    student, constants = load_student(options.student)
    crops, objects = crops_of(options.truth, options.images, 1.0, constants)
    logits = torch.cat(
        [student.logits(torch.from_numpy(to_input(crops[at : at + 32]))) for at in range(0, len(crops), 32)]
    )
    logits -= student.boundary
    ious = np.array([iou for _, _, iou in masks_of(logits[:, 0].numpy(), objects, constants.expansion)])

    inside = student.inside
    probability, mask = logits.sigmoid() * inside, (logits > 0) * inside
    area, sure = mask.sum((1, 2, 3)).clamp(min=1e-6), (probability * (logits > 0)).sum((1, 2, 3))
    union = area + (probability * (logits <= 0)).sum((1, 2, 3))
    candidates = {
        "score": mask_score(logits, inside),
        "mean probability inside the mask": sure / area,
        "expected IoU": sure / union,
        "mask / box area": area / inside.sum(),
    }
    print(f"{len(ious)} objects, mean IoU {ious.mean():.4f}\n{'':34s} Spearman   AUC")
    for name, values in candidates.items():
        ranked = values.numpy().astype(np.float64)
        print(f"{name:34s} {spearman(ranked, ious):8.3f} {auc(ranked, ious > 0.75):5.3f}")


if __name__ == "__main__":
    main()
