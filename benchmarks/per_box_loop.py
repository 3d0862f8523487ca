"""Host cost of a box: the way the original does it, against `mal label`.

    python -m benchmarks.per_box_loop ../shared/data/coco-val/boxes.json [--boxes 300]

The original (facts, no code: MAL as published). One object is one sample: its image is opened and decoded for it, by
Pillow; its crop, with what lies outside taken from the opposite side, is resized to 512 x 512 by Pillow's default
(bicubic), and so is the box drawn into a mask of the whole image; the crop is normalised in float32. The logits come
back as probabilities of the crop; they are resized to the crop's size in the image, pasted into a float canvas of the
whole image, cut at the threshold .1 and encoded by pycocotools; all results wait in memory, one JSON is written at the
end. What the original does on the GPU (the network, enlarging its map to 512, the product with the box) is left out.

Ours is `mal label` from the box file to the written output. Both in processor time of the whole process, without the
network: a session that answers at once with a map of blobs takes its place. Both once with crops of 512, the
original's, and once with 192, the shipped student's. The second set is made here: the images enlarged to a width of
1920 pixels, with 20 boxes each.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.memory import FakeSession
from benchmarks.pixels import blobs
from mal.datasets import open_boxes
from mal.runtime import label

EXPANSION, THRESHOLD = 0.3, 0.1
MEAN, DEVIATION = (
    np.array(values, np.float32)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)
ROUNDS = 3


class Blobs(FakeSession):
    """Answers at once, with outlines about as long as those of objects."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._maps = blobs(64, size // 4)

    def run(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._maps[np.arange(len(crops)) % 64], np.full(len(crops), 0.5, np.float32)


def of_the_original(document: dict[str, Any], folder: Path, size: int, wanted: int) -> float:
    """Processor milliseconds of the host a box, the way of the original."""
    images = {image["id"]: image for image in document["images"]}
    probabilities = 1 / (1 + np.exp(-np.stack([cv2.resize(each, (size, size)) for each in blobs(64, size // 4)])))
    done: list[dict[str, Any]] = []
    began = time.process_time()
    for annotation in document["annotations"]:
        x, y, w, h = annotation["bbox"]
        if annotation.get("iscrowd") or min(w, h) <= 2:
            continue
        if len(done) == wanted:
            break
        image = np.asarray(Image.open(folder / images[annotation["image_id"]]["file_name"]).convert("RGB"))
        height, width = image.shape[:2]
        x0, y0 = int(np.floor(x - EXPANSION / 2 * w)), int(np.floor(y - EXPANSION / 2 * h))
        x1, y1 = int(np.ceil(x + w + EXPANSION / 2 * w)), int(np.ceil(y + h + EXPANSION / 2 * h))
        rows, columns = np.arange(y0, y1), np.arange(x0, x1)
        crop = Image.fromarray(image[rows[:, None] % height, columns % width]).resize((size, size))
        box = np.zeros((height, width), np.uint8)
        box[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = 1
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        inside = np.zeros((y1 - y0, x1 - x0), np.uint8)
        inside[top - y0 : bottom - y0, left - x0 : right - x0] = box[top:bottom, left:right]
        _ = np.asarray(Image.fromarray(inside).resize((size, size)))
        _ = (np.asarray(crop).transpose(2, 0, 1).astype(np.float32) / 255 - MEAN) / DEVIATION
        found = cv2.resize(probabilities[len(done) % 64], (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        canvas = np.zeros((height, width), np.float32)
        canvas[top:bottom, left:right] = found[top - y0 : bottom - y0, left - x0 : right - x0]
        rle = coco_mask.encode(np.asfortranarray(canvas > THRESHOLD).astype(np.uint8))
        done.append({**annotation, "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}})
    json.dumps({**document, "annotations": done})
    return 1000 * (time.process_time() - began) / len(done)


def of_ours(boxes: Path, images: Path, size: int, scratch: Path) -> float:
    """Processor milliseconds a box of `mal label`; best of several runs, of which the first takes its memory."""
    best = float("inf")
    with mock.patch.object(label, "open_session", return_value=Blobs(size)):
        for _ in range(ROUNDS):
            began = time.process_time()
            report = label.label_dataset(boxes, images=images, output=scratch / "masks.json", fresh=True, quiet=True)
            best = min(best, 1000 * (time.process_time() - began) / report.labelled)
    return best


def enlarged(document: dict[str, Any], folder: Path, target: Path, images: int = 12, boxes: int = 20) -> dict[str, Any]:
    """The first images at 1920 pixels of width, each with 20 boxes: its own, and these moved a little."""
    rng = np.random.default_rng(0)
    (target / "images").mkdir()
    made: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    of = {
        image["id"]: [a for a in document["annotations"] if a["image_id"] == image["id"]]
        for image in document["images"]
    }
    for image in document["images"]:
        own = [a["bbox"] for a in of[image["id"]] if not a.get("iscrowd") and min(a["bbox"][2:]) > 4]
        if not own or len(made["images"]) == images:
            continue
        scale = 1920 / image["width"]
        size = 1920, round(image["height"] * scale)
        number = len(made["images"])
        picture = Image.open(folder / image["file_name"]).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        picture.save(target / "images" / f"{number}.jpg", quality=92)
        made["images"].append({"id": number, "file_name": f"{number}.jpg", "width": size[0], "height": size[1]})
        for at in range(boxes):
            x, y, w, h = (scale * value for value in own[at % len(own)])
            x, y = np.clip(np.array([x, y]) + rng.uniform(-20, 20, 2), 0, (size[0] - w, size[1] - h)).tolist()
            row = {"id": len(made["annotations"]), "image_id": number, "category_id": 1, "bbox": [x, y, w, h]}
            made["annotations"].append(row)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boxes", type=Path)
    parser.add_argument("--boxes", dest="wanted", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="Folder for the enlarged set, to be used again.")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    document = json.loads(options.boxes.read_bytes())
    folder = Path(open_boxes(options.boxes).source.address)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        large = options.keep or scratch / "large"
        large.mkdir(parents=True)
        second = enlarged(document, folder, large)
        (large / "boxes.json").write_text(json.dumps(second))
        print("ms a box                     crops of 512             crops of 192             each at its own")
        for what, data, path, images in (
            ("as it is", document, options.boxes, folder),
            ("1080p, 20 boxes an image", second, large / "boxes.json", large / "images"),
        ):
            their = {size: of_the_original(data, images, size, options.wanted) for size in (512, 192)}
            our = {size: of_ours(path, images, size, scratch) for size in (512, 192)}
            cells = "".join(
                f"  {one:7.2f} / {other:6.3f} = {one / other:4.1f} x"
                for one, other in ((their[512], our[512]), (their[192], our[192]), (their[512], our[192]))
            )
            print(f"{what:26}{cells}", flush=True)


if __name__ == "__main__":
    main()
