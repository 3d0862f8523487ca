"""A sheet of the masks that went most wrong, chosen by a rule: in each class of size the lowest IoU, one an image.

    python -m benchmarks.failures MASKS.json TRUTH.json -o SHEET.png [--images DIR]

White: both say object. Blue: only the true mask. Orange: only ours. Thin: the box. Without `--images` shapes alone are
drawn, so the sheet may travel where the photographs may not.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mal.datasets.segmentations import coco_mask, to_mask
from mal.errors import MalError
from mal.evaluation.metrics import LARGE, SMALL
from mal.evaluation.pairs import Pair, pair_up, read_coco
from mal.images import find_image, read_image

CELL, FINE = 144, 3
"""Pixels of a cell's side, and how many times finer it is drawn before it is shrunk."""
CAPTION = 32
MARGIN = 6
ROOM = 1.3
"""What is shown: the square around the box, so many times as long as the box's longer side."""
GROUND, BOX, BOTH, MISSED, TOO_MUCH = (38, 40, 44), (120, 124, 132), (236, 236, 232), (70, 140, 255), (255, 140, 30)
SIZES = {"small": (0.0, SMALL), "medium": (SMALL, LARGE), "large": (LARGE, np.inf)}
"""Pixels of the true mask, up to and with the upper bound, as `mal eval` counts them."""


@dataclass(frozen=True)
class Failure:
    """One object and how wrong its mask is."""

    pair: Pair
    iou: float
    area: int


def worst(pairs: list[Pair], count: int) -> dict[str, list[Failure]]:
    """By class of size the objects of lowest IoU, the worst of each image alone; a missing mask has IoU 0."""
    judged: list[Failure] = []
    for pair in pairs:
        iou = 0.0 if pair.predicted is None else float(coco_mask.iou([pair.predicted], [pair.truth], [0])[0, 0])
        judged.append(Failure(pair, iou, int(coco_mask.area(pair.truth))))
    judged.sort(key=lambda each: each.iou)

    def chosen(low: float, high: float) -> Iterator[Failure]:
        seen: set[int] = set()
        for each in judged:
            if low < each.area <= high and each.pair.image not in seen:
                seen.add(each.pair.image)
                yield each

    return {name: list(chosen(*bounds))[:count] for name, bounds in SIZES.items()}


def draw(pair: Pair, photograph: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """(CELL, CELL, 3) uint8: the object, its two masks and its box."""
    side = CELL * FINE
    centre, size = (pair.box[:2] + pair.box[2:]) / 2, pair.box[2:] - pair.box[:2]
    scale = side / (ROOM * max(size.max(), 1.0))
    shift = side / 2 - scale * centre
    place = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    place[:, 2] += (scale - 1) / 2  # OpenCV counts from the middle of the first pixel
    truth = to_mask(pair.truth)
    ours = np.zeros_like(truth) if pair.predicted is None else to_mask(pair.predicted)
    true_here, ours_here = (
        cv2.warpAffine(mask.astype(np.uint8), place, (side, side), flags=cv2.INTER_NEAREST) > 0
        for mask in (truth, ours)
    )
    picture = np.full((side, side, 3), GROUND, np.float32)
    strength = 1.0
    if photograph is not None:
        picture = cv2.warpAffine(photograph, place, (side, side), borderValue=GROUND).astype(np.float32)
        strength = 0.4
    regions = [(true_here & ours_here, BOTH), (true_here & ~ours_here, MISSED), (~true_here & ours_here, TOO_MUCH)]
    for region, colour in regions:
        picture[region] += strength * (np.array(colour, np.float32) - picture[region])
    for mask, colour in ((true_here, MISSED), (ours_here, TOO_MUCH)):
        lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, lines, -1, colour, FINE)
    low, high = (np.round(scale * corner + shift).astype(int).tolist() for corner in (pair.box[:2], pair.box[2:]))
    cv2.rectangle(picture, low, high, BOX, FINE)
    return np.round(cv2.resize(picture, (CELL, CELL), interpolation=cv2.INTER_AREA)).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("masks", type=Path, help="labelled COCO JSON")
    parser.add_argument("truth", type=Path, help="the same objects with true masks")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="SHEET.png")
    parser.add_argument("--images", type=Path, help="photographs to draw under the masks")
    parser.add_argument("--count", type=int, default=8, help="objects of each class of size")
    options = parser.parse_args()
    try:
        pairs, document = pair_up(options.masks, options.truth), read_coco(options.truth)
        names = {row["id"]: row.get("name", "") for row in document.get("categories", [])}
        rows = worst(pairs.objects, options.count)
        sheet = Image.new("RGB", (options.count * (CELL + MARGIN) + MARGIN, len(rows) * (CELL + CAPTION)), "white")
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
        for line, (size, failures) in enumerate(rows.items()):
            for column, each in enumerate(failures):
                image = document["images"][each.pair.image]
                photograph = None
                if options.images:
                    file = find_image(image["file_name"], options.images)
                    photograph = read_image(file, image["width"], image["height"])
                x, y = MARGIN + column * (CELL + MARGIN), line * (CELL + CAPTION)
                sheet.paste(Image.fromarray(draw(each.pair, photograph)), (x, y + CAPTION - 2))
                name = names.get(each.pair.category, "")
                pen.text((x, y + 1), f"{name[:14]}  {each.iou:.2f}", "black", font)
                pen.text((x, y + 15), f"{size}, {image['id']}", "#666", font)
                print(f"{size:8s}{each.iou:6.3f}  {name:16s} image {image['id']}, annotation {each.pair.annotation_id}")
        sheet.save(options.output, optimize=True)
    except (MalError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
