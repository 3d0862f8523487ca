"""Label a COCO file of boxes with a peer: python -m benchmarks.peers PEER BOXES.json -o FOLDER."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from pycocotools import mask as coco_mask

from benchmarks.peers.peers import NAMES, Masks, build
from mal.boxes import clip, from_xywh, pixel_window, usable
from mal.images import find_image, read_image


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("peer", choices=NAMES)
    parser.add_argument("boxes", type=Path, metavar="BOXES.json", help="COCO file; crowd regions are left out")
    parser.add_argument("--images", type=Path, help="default: images/ beside the file")
    parser.add_argument("-o", "--output", type=Path, default=Path("peers"), metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()

    write_peer(options.peer, options.boxes, options.images, options.output, options.threads)


def write_peer(name: str, boxes: Path, images: Path | None, folder: Path, threads: int) -> dict[str, float]:
    """Label a COCO file: FOLDER/NAME.json and FOLDER/NAME.clipped.json; objects, and seconds of processor time."""
    document = orjson.loads(boxes.read_bytes())
    raw, clipped, seconds = label(document, images or boxes.parent / "images", build(name, threads), name)
    folder.mkdir(parents=True, exist_ok=True)
    count = sum(masks is not None for masks in raw)
    for masks, file in ((raw, f"{name}.json"), (clipped, f"{name}.clipped.json")):
        annotations = [a | (m or {}) for a, m in zip(document["annotations"], masks, strict=True)]
        (folder / file).write_bytes(orjson.dumps(document | {"annotations": annotations}))
        print(folder / file)
    print(f"{count} objects, {seconds:.1f} s of processor time, {1000 * seconds / max(1, count):.1f} ms an object")
    return {"objects": count, "seconds": seconds}


Labels = list[dict[str, Any] | None]


def label(document: dict[str, Any], folder: Path, peer: Any, name: str) -> tuple[Labels, Labels, float]:
    """Masks for all annotations of a COCO document, raw and clipped to the box, and seconds of processor time.

    Entries are None where there is no usable box.
    """
    annotations = document["annotations"]
    rows: dict[Any, list[int]] = {}
    for row, annotation in enumerate(annotations):
        if not annotation.get("iscrowd"):
            rows.setdefault(annotation["image_id"], []).append(row)
    raw: Labels = [None] * len(annotations)
    clipped: Labels = [None] * len(annotations)
    seconds = 0.0
    for image_row in document["images"]:
        mine = np.array(rows.get(image_row["id"], []), np.intp)
        if not mine.size:
            continue
        image = read_image(find_image(image_row["file_name"], folder), image_row["width"], image_row["height"])
        boxes = clip(from_xywh(np.array([annotations[row]["bbox"] for row in mine])), image.shape[1], image.shape[0])
        mine, boxes = mine[usable(boxes)], boxes[usable(boxes)]
        start = time.process_time()
        masks, scores = peer.masks(image, boxes)
        seconds += time.process_time() - start
        for at, row in enumerate(mine):
            ours = {"model": name} | ({} if scores is None else {"score": float(scores[at])})
            x0, y0, x1, y1 = pixel_window(boxes[at])
            inside = np.zeros_like(masks[at])
            inside[y0:y1, x0:x1] = masks[at, y0:y1, x0:x1]
            raw[row], clipped[row] = (_coco(mask) | {"mal": ours} for mask in (masks[at], inside))
    return raw, clipped, seconds


def _coco(mask: Masks) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}, "area": int(mask.sum())}


if __name__ == "__main__":
    main()
