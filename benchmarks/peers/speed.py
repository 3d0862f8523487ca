"""Boxes a second, ours against MobileSAM's, in one run on images with as many boxes each.

    python -m benchmarks.peers.speed ../shared/data/coco-val [--boxes 8] [--images 12] [--rounds 3] [--json FILE]

Both get decoded images and give masks of the image's size; each image is labelled by one and then by the other, so that
whatever else the machine does falls on both. The ratio is that of the sums; its spread is that of the rounds.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from benchmarks.peers.peers import build
from mal import MaskLabeler
from mal.boxes import clip, usable
from mal.datasets import open_boxes
from mal.images import find_image, read_image


def scenes(data: Path, boxes: int, images: int):
    """(image, (boxes, 4)) of the first images that have so many boxes."""
    file = open_boxes(data / "boxes.json")
    for row in range(len(file.images)):
        mine = np.flatnonzero((file.image_row == row) & ~file.crowd)
        if len(mine) < boxes or not images:
            continue
        image = read_image(find_image(file.images.file_names[row], data / "images"))
        found = clip(file.boxes[mine], image.shape[1], image.shape[0])
        found = found[usable(found)][:boxes]
        if len(found) == boxes:
            images -= 1
            yield image, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--boxes", type=int, default=8)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = list(scenes(options.data, options.boxes, options.images))
    peer, ours = build("mobilesam", options.threads), MaskLabeler("student", "cpu", batch=options.boxes)
    runs = {"mobilesam": peer.masks, "mal": ours}
    for run in runs.values():
        run(*found[0])  # first calls allocate
    rounds = []
    for _ in range(options.rounds):
        seconds = dict.fromkeys(runs, 0.0)
        for scene in found:
            for name, run in runs.items():
                started = time.perf_counter()
                run(*scene)
                seconds[name] += time.perf_counter() - started
        rounds.append({name: len(found) * options.boxes / spent for name, spent in seconds.items()})
    ratios = [each["mal"] / each["mobilesam"] for each in rounds]
    for name in runs:
        print(f"{name:10s} {np.mean([each[name] for each in rounds]):8.1f} boxes/s")
    spread = f"{min(ratios):.1f} .. {max(ratios):.1f}"
    print(f"{len(found)} images of {options.boxes} boxes: {np.median(ratios):.1f} x ({spread})")
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
