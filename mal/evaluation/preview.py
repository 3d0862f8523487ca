"""`mal preview`: a labelled COCO file -> one picture for each image, and a page to browse them."""

import os
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from mal.boxes import clip, usable
from mal.datasets import BoxFile, open_boxes
from mal.datasets.segmentations import to_mask, to_rle
from mal.errors import ImageError, InputError, OutputError
from mal.evaluation.overlay import Drawn, draw
from mal.evaluation.page import Card, render
from mal.evaluation.pairs import read_coco
from mal.images import decode_image
from mal.sources import Address

PICTURES = "pictures"
"""Folder of the pictures, beside the page."""


@dataclass(frozen=True)
class PreviewReport:
    """What was drawn."""

    index: Path
    """The page."""
    pictures: int
    masks: int
    problems: list[str]
    """Images and masks that could not be drawn, one line each."""

    def __str__(self) -> str:
        """One line for the terminal."""
        line = f"{self.index}: {self.masks:,} masks on {self.pictures:,} pictures"
        return f"{line}; {len(self.problems):,} not drawn, the page lists them" if self.problems else line


def write_preview(masks: Path, images: Address | None, out_dir: Path, title: str | None = None) -> PreviewReport:
    """Draw the masks of a COCO file over their images.

    Args:
        masks: COCO or LVIS JSON with RLE or polygons, ours or anyone's. Objects without a mask show as grey boxes.
        images: image folder; None: `images/` beside the file, else the file's folder.
        out_dir: folder to write; existing files of an earlier preview are replaced.
        title: heading of the page; None: the file's name.

    Raises:
        InputError: the file cannot be used, or none of its images can be read.
        OutputError: the folder cannot be written.
    """
    box_file = open_boxes(masks, images)
    annotations = read_coco(masks)["annotations"]
    rows: dict[int, list[int]] = defaultdict(list)
    for row, image_row in enumerate(box_file.image_row.tolist()):
        rows[image_row].append(row)
    strays = sum(len(group) for image_row, group in rows.items() if image_row < 0)
    drawable = sorted(image_row for image_row in rows if image_row >= 0)
    problems = [f"{strays} objects whose image the file does not list"] if strays else []
    try:
        (out_dir / PICTURES).mkdir(parents=True, exist_ok=True)
        # Decoding, OpenCV and the JPEG encoder release the GIL.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [
                pool.submit(_draw_image, box_file, annotations, image_row, rows[image_row], out_dir)
                for image_row in drawable
            ]
            drawn = [job.result() for job in jobs]
        cards = [card for card, _, _ in drawn if card is not None]
        problems += [line for _, _, lines in drawn for line in lines]
        if drawable and not cards:
            raise InputError(f"no image of {masks} could be drawn, e.g. {problems[0]}; --images names their folder")
        count = sum(count for _, count, _ in drawn)
        figures = [(f"{len(cards):,}", "pictures"), (f"{count:,}", "masks")]
        scores = [score for card in cards for _, score, _ in card.objects if score is not None]
        if scores:
            figures.append((f"{float(np.median(scores)):.2f}", "median score"))
        if bare := len(box_file.images) - len(drawable):
            figures.append((f"{bare:,}", "images without objects, not drawn"))
        index = out_dir / "index.html"
        index.write_text(render(title or masks.name, figures, cards, problems), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the preview into {out_dir}: {error.strerror}") from None
    return PreviewReport(index, len(cards), count, problems)


def _draw_image(
    box_file: BoxFile, annotations: list[dict[str, Any]], image_row: int, rows: list[int], out_dir: Path
) -> tuple[Card | None, int, list[str]]:
    """Write one picture; its card (None where the image cannot be read), its number of masks, its problems."""
    table = box_file.images
    name = table.file_names[image_row]
    try:
        data = box_file.source.read(name)
        image = decode_image(data, int(table.widths[image_row]), int(table.heights[image_row])).pixels
    except ImageError as error:
        return None, 0, [f"{name or 'an image without file name'}: {error}"]
    height, width = image.shape[:2]
    boxes = clip(box_file.boxes[rows], width, height)
    objects: list[Drawn] = []
    problems: list[str] = []
    for row, box in zip(rows, boxes, strict=True):
        annotation = annotations[row]
        try:
            rle = to_rle(annotation.get("segmentation"), height, width)
        except InputError as error:
            problems.append(f"{name}: mask of annotation {annotation.get('id')!r}: {error}")
            continue
        if not usable(box[None])[0]:
            problems.append(f"{name}: annotation {annotation.get('id')!r} has no usable box")
            continue
        objects.append(Drawn(box, None if rle is None else to_mask(rle), _name(box_file, row), _score(annotation)))
    picture, colours = draw(image, objects)
    target = f"{PICTURES}/{image_row + 1:06d}-{_plain(Path(name).stem)}.jpg"
    (out_dir / target).write_bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=90, colorspace="RGB", colorsubsampling="444")
    )
    listed = [(drawn.name, drawn.score, colour) for drawn, colour in zip(objects, colours, strict=True)]
    card = Card(target, picture.shape[1], picture.shape[0], name, listed)
    return card, sum(drawn.mask is not None for drawn in objects), problems


def _name(box_file: BoxFile, row: int) -> str:
    category = int(box_file.category[row])
    return box_file.category_names[category] if category >= 0 else "object"


def _score(annotation: dict[str, Any]) -> float | None:
    ours = annotation.get("mal")
    score = ours.get("score") if isinstance(ours, dict) else None
    return float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None


def _plain(stem: str) -> str:
    """A file name's stem in letters, digits, dots, dashes and underscores, at most 80 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:80]
