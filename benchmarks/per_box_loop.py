"""Host cost of a box: the way the original does it, against ours, on the same session in one run.

    python -m benchmarks.per_box_loop ../shared/data/coco-val/boxes.json [--boxes 300]

The original (facts, no code: MAL as published): one object is one sample. Its image is opened and decoded for it, its
crop resampled by Pillow, its logits are resized to the crop in the image, pasted into a float canvas of the whole
image, cut at the threshold and encoded by pycocotools; all results stay in memory, one JSON is written at the end.
Ours is `mal bench`'s host stages. Both in processor time, the session left out. The second set is made here: the
images enlarged to a width of 1920 pixels, with 20 boxes each.
"""

import argparse
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mal.boxes import clip, expand, from_xywh, usable
from mal.crops import cut_crop
from mal.datasets import open_boxes
from mal.runtime.bench import run_bench
from mal.runtime.session import Session, open_session


def per_box(document: dict, folder: Path, session: Session, wanted: int) -> float:
    """Processor seconds of the host a box, the way of the original."""
    constants = session.constants
    images = {image["id"]: image for image in document["images"]}
    done: list[dict] = []
    spent = 0.0
    for annotation in document["annotations"]:
        if len(done) == wanted:
            break
        began = time.process_time()
        image = np.asarray(Image.open(folder / images[annotation["image_id"]]["file_name"]).convert("RGB"))
        height, width = image.shape[:2]
        box = clip(from_xywh(np.array([annotation["bbox"]], float)), width, height)
        if annotation.get("iscrowd") or not usable(box)[0]:
            continue
        rect = expand(box, constants.expansion)[0]
        crop = cut_crop(image, rect, constants.size, constants.fill)
        tensor = np.ascontiguousarray(crop.transpose(2, 0, 1)[None], np.float32)
        spent += time.process_time() - began
        logits, _ = session.run(tensor)
        began = time.process_time()
        x0, y0 = np.floor(rect[:2]).astype(int)
        x1, y1 = np.ceil(rect[2:]).astype(int)
        whole = cv2.resize(logits[0], (int(x1 - x0), int(y1 - y0)), interpolation=cv2.INTER_LINEAR)
        canvas = np.full((height, width), -1.0, np.float32)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        canvas[top:bottom, left:right] = whole[top - y0 : bottom - y0, left - x0 : right - x0]
        rle = coco_mask.encode(np.asfortranarray((canvas > 0).astype(np.uint8)))
        done.append({**annotation, "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}})
        spent += time.process_time() - began
    began = time.process_time()
    json.dumps({**document, "annotations": done})
    return (spent + time.process_time() - began) / len(done)


def enlarged(document: dict, folder: Path, target: Path, images: int = 12, boxes: int = 20) -> dict:
    """The first images at 1920 pixels of width, each with 20 boxes: its own, and these moved a little."""
    rng = np.random.default_rng(0)
    (target / "images").mkdir()
    made: dict = {"images": [], "annotations": [], "categories": []}
    of = {
        image["id"]: [a for a in document["annotations"] if a["image_id"] == image["id"]]
        for image in document["images"]
    }
    for image in document["images"]:
        own = [a["bbox"] for a in of.get(image["id"], []) if not a.get("iscrowd") and min(a["bbox"][2:]) > 4]
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
    options = parser.parse_args()
    document = json.loads(options.boxes.read_bytes())
    folder = open_boxes(options.boxes).source.address
    with tempfile.TemporaryDirectory() as name, closing(open_session("student", "cpu")) as session:
        large = Path(name)
        second = enlarged(document, Path(folder), large)
        (large / "boxes.json").write_text(json.dumps(second))
        for what, data, path, images in (
            ("as it is", document, options.boxes, Path(folder)),
            ("1080p, 20 boxes an image", second, large / "boxes.json", large / "images"),
        ):
            theirs = 1000 * per_box(data, images, session, options.wanted)
            ours = run_bench(path, device="cpu").host_ms_per_box
            print(f"{what:26}  per box {theirs:8.2f} ms   ours {ours:6.3f} ms   {theirs / ours:6.1f} x", flush=True)


if __name__ == "__main__":
    main()
