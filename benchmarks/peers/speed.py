"""Boxes a second, ours against MobileSAM's, in one run on images with as many boxes each.

    python -m benchmarks.peers.speed ../shared/data/coco-val [--boxes 8] [--images 12] [--rounds 3] [--json FILE]

All get decoded images and give masks of the image's size, each as it is used: MobileSAM image by image, ours as a
stream whose crops share batches. They take turns, round by round, so that whatever else the machine does falls on all.
A ratio is that of a round; its spread is that of the rounds.
"""

import argparse
import json
import os
import time
from functools import partial
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


def label(labeler: MaskLabeler, found: list) -> None:
    for _ in labeler.stream(found):
        pass


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
    peer = build("mobilesam", options.threads)
    labelers = {name: MaskLabeler(name, "cpu") for name in ("student", "student-int8")}
    runs = {"mobilesam": lambda: [peer.masks(*scene) for scene in found]}
    runs |= {name: partial(label, labeler, found) for name, labeler in labelers.items()}
    for run in runs.values():
        run()  # first calls allocate
    rounds = []
    for _ in range(options.rounds):
        speed = {}
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            speed[name] = len(found) * options.boxes / (time.perf_counter() - started)
        rounds.append(speed)
    print(f"{len(found)} images of {options.boxes} boxes, {options.rounds} rounds, {options.threads} threads")
    for name in runs:
        ratios = [each[name] / each["mobilesam"] for each in rounds]
        speed = np.median([each[name] for each in rounds])
        print(f"{name:14s} {speed:7.1f} boxes/s {np.median(ratios):6.1f} x ({min(ratios):.1f} .. {max(ratios):.1f})")
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
