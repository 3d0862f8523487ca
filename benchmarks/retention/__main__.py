"""Retention: AP of an instance segmenter trained on our masks over that of one trained on true masks. See README.md.

python -m benchmarks.retention LABELLED.json TRUE.json VAL.json --images DIR --val-images DIR [--smoke]
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone

from mal.boxes import clip, from_xywh
from mal.datasets.segmentations import coco_mask, to_mask, to_rle
from mal.errors import MalError
from mal.evaluation.pairs import read_coco
from mal.images import find_image, read_image

FEWEST = 50_000
"""Training images below which AP is noise; COCO has 118,000."""


class Objects(Dataset[tuple[torch.Tensor, dict[str, torch.Tensor]]]):
    """Images with the boxes, classes and masks of a COCO file; annotations without a mask are left out.

    Args:
        document: COCO with masks.
        images: image folder.
        only: ids of the annotations to use, so that both sides learn the same objects.
        most: images at most.
    """

    def __init__(self, document: dict[str, Any], images: Path, only: set[Any], most: int | None) -> None:
        self.folder = images
        self.classes = {row["id"]: at for at, row in enumerate(document["categories"], 1)}
        mine: dict[Any, list[dict[str, Any]]] = {}
        for row in document["annotations"]:
            if row["id"] in only and min(row["bbox"][2:]) >= 1:
                mine.setdefault(row["image_id"], []).append(row)
        self.rows = [(image, mine[image["id"]]) for image in document["images"] if image["id"] in mine][:most]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        image, rows = self.rows[at]
        height, width = image["height"], image["width"]
        pixels = torch.from_numpy(read_image(find_image(image["file_name"], self.folder), width, height).copy())
        masks = [to_mask(rle) for row in rows if (rle := to_rle(row["segmentation"], height, width))]
        boxes = clip(from_xywh(np.array([row["bbox"] for row in rows], np.float64)), width, height)
        return pixels.permute(2, 0, 1) / 255, {
            "boxes": torch.from_numpy(boxes).float(),
            "labels": torch.tensor([self.classes[row["category_id"]] for row in rows]),
            "masks": torch.from_numpy(np.stack(masks).astype(np.uint8)),
        }


@dataclass(frozen=True)
class Plan:
    """How one segmenter is trained; the same for both sides."""

    steps: int
    batch: int
    rate: float
    size: int
    weights: Path | None
    smoke: bool
    device: str


def segmenter(classes: int, plan: Plan) -> torch.nn.Module:
    """Mask R-CNN: ResNet-50 FPN; in the smoke size a small one on MobileNetV3."""
    if plan.smoke:
        backbone = mobilenet_backbone(backbone_name="mobilenet_v3_small", weights=None, fpn=True, trainable_layers=6)
        return MaskRCNN(
            backbone,
            classes + 1,
            min_size=plan.size,
            max_size=plan.size * 2,
            rpn_anchor_generator=AnchorGenerator(((16, 32, 64, 128),) * 3, ((0.5, 1.0, 2.0),) * 3),  # three levels
            rpn_pre_nms_top_n_train=200,
            rpn_post_nms_top_n_train=100,
            rpn_post_nms_top_n_test=50,
            box_batch_size_per_image=64,
            box_score_thresh=0.0,  # so little is learned that nothing would be found
        )
    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=classes + 1, min_size=plan.size, trainable_backbone_layers=5
    )
    if plan.weights:
        body = resnet50(weights=None)
        body.load_state_dict(torch.load(plan.weights, weights_only=True))
        model.backbone.body.load_state_dict(body.state_dict(), strict=False)  # its classifier is not there
    return model


def train(data: Objects, classes: int, plan: Plan, seed: int) -> torch.nn.Module:
    """A segmenter trained for `plan.steps` steps: SGD, warm-up, falling by ten at 2/3 and 8/9, as is usual."""
    torch.manual_seed(seed)
    model = segmenter(classes, plan).to(plan.device).train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], plan.rate, momentum=0.9, weight_decay=1e-4
    )
    falls = (plan.steps * 2 // 3, plan.steps * 8 // 9)
    warm = min(1000, plan.steps // 4)
    step = 0
    while step < plan.steps:
        loader = DataLoader(
            data,
            plan.batch,
            shuffle=True,
            drop_last=len(data) >= plan.batch,
            collate_fn=_together,
            num_workers=0 if plan.smoke else min(16, os.cpu_count() or 1),
        )
        for images, targets in loader:
            for group in optimizer.param_groups:
                group["lr"] = plan.rate * min(1, (step + 1) / (warm + 1)) * 0.1 ** sum(step >= fall for fall in falls)
            losses = model(
                [image.to(plan.device) for image in images],
                [{key: value.to(plan.device) for key, value in target.items()} for target in targets],
            )
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            step += 1
            if step == plan.steps:
                break
    return model.eval()


def _together(rows: list[Any]) -> tuple[list[Any], list[Any]]:
    return [row[0] for row in rows], [row[1] for row in rows]


@torch.no_grad()
def average_precision(
    model: torch.nn.Module, classes: dict[Any, int], val: dict[str, Any], images: Path, plan: Plan, most: int | None
) -> float:
    """COCO mask AP on true masks; classes: label of each category id, as it was trained. Smoke: all are one class."""
    categories = {label: category for category, label in classes.items()}
    shown = val["images"][:most]
    found: list[dict[str, Any]] = []
    for image in shown:
        pixels = read_image(find_image(image["file_name"], images), image["width"], image["height"])
        (out,) = model([(torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255).to(plan.device)])
        for mask, label, score in zip(out["masks"][:, 0] > 0.5, out["labels"], out["scores"], strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            values = {"image_id": image["id"], "category_id": categories[int(label)], "score": float(score)}
            found.append(values | {"segmentation": rle})
    if not found:
        return 0.0
    ids = {image["id"] for image in shown}
    truth = COCO(val | {"images": shown, "annotations": [a for a in val["annotations"] if a["image_id"] in ids]})
    judge = COCOeval_faster(truth, truth.loadRes(found), "segm")
    judge.params.useCats = int(not plan.smoke)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return max(0.0, float(judge.stats[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labelled", type=Path, help="COCO JSON with our masks")
    parser.add_argument("true", type=Path, help="the same annotations with true masks")
    parser.add_argument("val", type=Path, help="COCO JSON with true masks, to judge by")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--val-images", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=90_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.02, help="at the end of the warm-up")
    parser.add_argument("--size", type=int, default=800, help="shorter side of the images")
    parser.add_argument("--backbone-weights", type=Path, help="torchvision resnet50 state dict")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true", help="a few steps of a small network on few images")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    smoke: bool = options.smoke
    plan = Plan(
        steps=10 if smoke else options.steps,
        batch=2 if smoke else options.batch,
        rate=options.rate,
        size=96 if smoke else options.size,
        weights=options.backbone_weights,
        smoke=smoke,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    seeds = options.seeds[:2] if smoke else options.seeds
    try:
        ours, true, val = read_coco(options.labelled), read_coco(options.true), read_coco(options.val)
    except MalError as error:
        parser.error(str(error))
    common = _with_mask(ours) & _with_mask(true)
    if not common:
        parser.error(f"no object has a mask in {options.labelled} and in {options.true}; was a file of boxes given?")
    few = 8 if smoke else None
    runs: list[dict[str, float]] = []
    for seed in seeds:
        scores: dict[str, float] = {}
        for name, document in (("ours", ours), ("true", true)):
            data = Objects(document, options.images, common, few)
            model = train(data, len(document["categories"]), plan, seed)
            scores[name] = average_precision(model, data.classes, val, options.val_images, plan, few)
        runs.append(scores)
        print(f"seed {seed}: AP on our masks {scores['ours']:.4f}, on true masks {scores['true']:.4f}", flush=True)
    kept = [run["ours"] / run["true"] for run in runs if run["true"] > 0]
    meaningless = smoke or len(data) < FEWEST
    result = {"runs": runs, "images": len(data), "objects": len(common), "meaningless": meaningless}
    result |= {"retention": float(np.mean(kept)) if kept else None, "spread": float(np.ptp(kept)) if kept else None}
    shown = f"{result['retention']:.3f}, spread over seeds {result['spread']:.3f}" if kept else "undefined, AP is 0"
    print(f"retention {shown}; {len(data)} images, {len(seeds)} seeds")
    if meaningless:
        print(f"THIS FIGURE MEANS NOTHING: {len(data)} training images (it takes {FEWEST:,}) and {plan.steps} steps")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


def _with_mask(document: dict[str, Any]) -> set[Any]:
    return {row["id"] for row in document["annotations"] if row.get("segmentation") and not row.get("iscrowd")}


if __name__ == "__main__":
    main()
