"""What decoding JPEGs smaller is worth, and what it costs: `mal label` with and without it, judged by true masks.

    python benchmarks/small_decode.py BOXES.json TRUTH.json [--images DIR] [--enlarge 3]

Three sets: the images as they are; the same enlarged (bicubic, JPEG of quality 90, boxes likewise), as with a
camera's photographs; and of these only the largest box of each image, because a single small box keeps its image
whole. `TRUTH.json` judges all: masks of enlarged images are brought back to its size by mean over pixels.
Milliseconds are those of the `read` stage on the processor, an image.
"""

import argparse
import json
import tempfile
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import simplejpeg
from pycocotools import mask as rle

from mal.evaluation.metrics import evaluate
from mal.runtime import blocks
from mal.runtime.label import label_dataset


def enlarged(boxes: Path, images: Path, factor: int, folder: Path) -> Path:
    """Write the set `factor` times as large and return its box file."""
    document = json.loads(boxes.read_bytes())
    for image in document["images"]:
        pixels = simplejpeg.decode_jpeg((images / image["file_name"]).read_bytes(), "RGB", strict=False)
        large = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        (folder / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / image["file_name"]).write_bytes(simplejpeg.encode_jpeg(large, 90, "RGB", "420"))
        image["width"], image["height"] = image["width"] * factor, image["height"] * factor
    for annotation in document["annotations"]:
        annotation["bbox"] = [side * factor for side in annotation["bbox"]]
    path = folder / "boxes.json"
    path.write_text(json.dumps(document))
    return path


def largest(document: dict) -> dict:
    """The document with the largest box of each image only."""
    best: dict[object, dict] = {}
    for each in document["annotations"]:
        area = each["bbox"][2] * each["bbox"][3]
        held = best.get(each["image_id"])
        if not each.get("iscrowd") and (held is None or area > held["bbox"][2] * held["bbox"][3]):
            best[each["image_id"]] = each
    return document | {"annotations": list(best.values())}


def reduced(masks: Path, factor: int) -> None:
    """Bring masks and boxes of a file back to 1 / factor of their size."""
    document = json.loads(masks.read_bytes())
    for image in document["images"]:
        image["width"], image["height"] = image["width"] // factor, image["height"] // factor
    for annotation in document["annotations"]:
        annotation["bbox"] = [side / factor for side in annotation["bbox"]]
        if "mal" in annotation:
            pixels = rle.decode(annotation["segmentation"])
            small = cv2.resize(pixels * 255, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA) > 127
            found = rle.encode(np.asfortranarray(small.astype(np.uint8)))
            annotation["segmentation"] = {"size": found["size"], "counts": found["counts"].decode()}
    masks.write_text(json.dumps(document))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boxes", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--enlarge", type=int, default=3)
    options = parser.parse_args()
    images = options.images or options.boxes.parent / "images"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        by = options.enlarge
        large = enlarged(options.boxes, images, by, folder / "large")
        few, few_true = folder / "few.json", folder / "few_true.json"
        few.write_text(json.dumps(largest(json.loads(large.read_bytes()))))
        few_true.write_text(json.dumps(largest(json.loads(options.truth.read_bytes()))))
        sets = {
            "as it is": (options.boxes, options.truth, images, 1),
            f"{by} x enlarged": (large, options.truth, large.parent, by),
            f"{by} x, largest": (few, few_true, large.parent, by),
        }
        print("set            decoding     object-mean  class-mean  read, ms/image")
        for title, (boxes, truth, where, factor) in sets.items():
            for decoding in ("full", "smaller"):
                masks = folder / "masks.json"
                shrink = blocks.shrink_of_crops if decoding == "smaller" else lambda *_: 1.0
                with mock.patch.object(blocks, "shrink_of_crops", shrink):
                    report = label_dataset(boxes, images=where, output=masks)
                if factor > 1:
                    reduced(masks, factor)
                found = evaluate(masks, truth).to_json()
                read = report.stages["read"]["cpu_seconds"] * 1000 / report.images
                print(
                    f"{title:14} {decoding:11} {found['miou_object']:12.4f} {found['miou_class']:11.4f} {read:15.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
