"""What CRF refinement changes in labelling: iterations x zeta x threshold x soft or hard `inside`.

    python benchmarks/crf_labelling.py STUDENT.safetensors TRUTH.json [--images DIR] [--share .33] [--json OUT.json]

Logits of the student (torch) are refined by the compiled CPU kernel and compared with the true masks, object by object.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch

from mal import boxes as geometry
from mal.crops import cut_crop, to_input
from mal.datasets import open_boxes
from mal.datasets.segmentations import to_mask
from mal.evaluation.agreement import boundary_iou
from mal.evaluation.pairs import pair_up
from mal.export.refinement import box_coverage
from mal.images import decode_image
from mal.masks import mask_from_logits
from mal.network.checkpoint import load_student
from mal.plugins.crf_refine.compiled import crf_refine

ITERATIONS = (0, 3, 5, 10, 20, 100)
ZETAS = (0.05, 0.1, 0.2)
THRESHOLDS = (0.35, 0.4, 0.45, 0.5)


def crops_of(truth: Path, folder: Path | None, share: float, constants):
    """(crops (N, S, S, 3) uint8, objects): every object of a random share of the images."""
    pairs, file = pair_up(truth, truth), open_boxes(truth, folder)
    images = np.random.default_rng(0).permutation(len(file.images))
    chosen = set(images[: max(1, round(share * len(images)))].tolist())
    objects = sorted((each for each in pairs.objects if each.image in chosen), key=lambda each: each.image)
    crops = []
    for row, group in itertools.groupby(objects, key=lambda each: each.image):
        image = decode_image(file.source.read(file.images.file_names[row])).pixels
        for each in group:
            rect = geometry.expand(each.box[None], constants.expansion)[0]
            crops.append(cut_crop(image, rect, constants.size, constants.fill))
    return np.stack(crops), objects


def masks_of(logits, objects, expansion: float):
    """(predicted (H, W) bool, truth (H, W) bool, IoU) of each object."""
    for each, z in zip(objects, logits, strict=True):
        truth, mask = to_mask(each.truth), mask_from_logits(z, each.box, expansion)
        predicted = np.zeros_like(truth)
        height, width = mask.pixels.shape
        predicted[mask.y0 : mask.y0 + height, mask.x0 : mask.x0 + width] = mask.pixels
        common = (predicted & truth).sum()
        yield predicted, truth, common / max(1, truth.sum() + predicted.sum() - common)


def measure(logits, objects, expansion: float) -> dict[str, float]:
    """Object and class means, sizes by true area, boundary IoU."""
    ious, boundary, area = [], [], []
    for predicted, truth, iou in masks_of(logits, objects, expansion):
        ious.append(iou)
        boundary.append(boundary_iou(predicted, truth))
        area.append(truth.sum())
    ious, area = np.array(ious), np.array(area)
    category = np.array([each.category for each in objects])
    return {
        "object": ious.mean(),
        "class": np.mean([ious[category == one].mean() for one in np.unique(category)]),
        "small": ious[area <= 32**2].mean(),
        "medium": ious[(area > 32**2) & (area <= 96**2)].mean(),
        "large": ious[area > 96**2].mean(),
        "boundary": float(np.mean(boundary)),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the images")
    parser.add_argument("--iterations", type=int, nargs="*", default=ITERATIONS)
    parser.add_argument("--zetas", type=float, nargs="*", default=ZETAS)
    parser.add_argument("--thresholds", type=float, nargs="*", default=THRESHOLDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    student, constants = load_student(options.student)
    crops, objects = crops_of(options.truth, options.images, options.share, constants)
    parts = [torch.from_numpy(to_input(crops[at : at + 32])) for at in range(0, len(crops), 32)]
    logits = torch.cat([student.logits(part) for part in parts]).numpy()
    cells = logits.shape[-1]
    guide = torch.cat(
        [torch.nn.functional.avg_pool2d((part - student.mean) / student.std, constants.size // cells) for part in parts]
    ).numpy()
    soft = box_coverage(constants.expansion, cells, cells)
    rows = []
    print(f"{len(objects)} objects\n   n  zeta  inside  thr   object class  small medium large boundary  ms/crop")
    for iterations, zeta, hard, threshold in itertools.product(
        options.iterations, options.zetas, (False, True), options.thresholds
    ):
        if iterations == 0 and (zeta != options.zetas[0] or hard):
            continue  # neither counts without iterations
        z = logits - np.log(threshold / (1 - threshold)).astype(np.float32)
        started = time.perf_counter()
        if iterations:
            z = crf_refine(z, guide, np.round(soft) if hard else soft, iterations, zeta)
        spent = (time.perf_counter() - started) / len(z) * 1e3
        row = {"iterations": iterations, "zeta": zeta, "inside": "hard" if hard else "soft", "threshold": threshold}
        row |= {key: round(float(value), 4) for key, value in measure(z[:, 0], objects, constants.expansion).items()}
        row["ms_per_crop"] = round(spent, 3)
        rows.append(row)
        print(
            f"{iterations:4d}  {zeta:.2f}  {row['inside']}  {threshold:.2f}   "
            + "  ".join(f"{row[key]:.4f}" for key in ("object", "class", "small", "medium", "large", "boundary"))
            + f"   {spent:.3f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=0))


if __name__ == "__main__":
    main()
