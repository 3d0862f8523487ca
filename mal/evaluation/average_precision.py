"""COCO mask AP of labelled boxes, by faster-coco-eval."""

from collections.abc import Sequence
from typing import Any

from mal.datasets.segmentations import Rle, coco_mask
from mal.errors import missing_package
from mal.evaluation.pairs import Pairs


def mask_ap(pairs: Pairs) -> float:
    """COCO's AP (IoU .50:.05:.95, all sizes, 100 detections an image) with the masks as detections.

    Each mask is a detection of its object's true category, with `mal.score` as confidence (1 where there is
    none); objects without a mask count as not found. Crowd regions are left out on both sides. The boxes are
    the true ones, so this is no detector's AP: it says how far masks and their scores alone would carry.

    Raises:
        MissingPackageError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ModuleNotFoundError:
        raise missing_package("faster_coco_eval") from None

    categories = {
        category: row + 1 for row, category in enumerate(dict.fromkeys(pair.category for pair in pairs.objects))
    }
    truth: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for row, pair in enumerate(pairs.objects):
        place = {"id": row + 1, "image_id": pair.image + 1, "category_id": categories[pair.category]}
        truth.append(place | _shape(pair.truth) | {"iscrowd": 0})
        if pair.predicted is not None:
            detections.append(place | _shape(pair.predicted) | {"score": 1.0 if pair.score is None else pair.score})
    if not detections:
        return 0.0
    images = [{"id": row + 1, "height": h, "width": w} for row, (h, w) in enumerate(pairs.image_sizes)]
    document = {"images": images, "annotations": truth, "categories": _named(list(categories.values()))}
    true_coco = COCO(document)
    judge = COCOeval_faster(true_coco, true_coco.loadRes(detections), iouType="segm")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return float(judge.stats[0])


def _shape(rle: Rle) -> dict[str, Any]:
    box = [float(value) for value in coco_mask.toBbox(rle)]
    return {"segmentation": rle, "area": float(coco_mask.area(rle)), "bbox": box}


def _named(rows: Sequence[int]) -> list[dict[str, Any]]:
    return [{"id": row, "name": str(row)} for row in rows]
