"""Blocks of images, the unit of work: cut from the input alone, each labelled and journalled on its own.

Whoever runs a block (this process, another device, another machine) gets the same batches from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mal.boxes import usable
from mal.config import ModelConstants
from mal.datasets import BoxFile
from mal.images import Picture, decode_image
from mal.runtime.objects import PIECE, Piece, SharedImage, shrink_of_crops

BLOCK_IMAGES = 64  # enough for batches to fill, few enough to hand blocks out one by one
BLOCK_OBJECTS = 4096
NO_IMAGE = -1
UNKNOWN_IMAGE_BYTES = 36_000_000  # where the box file states no size: 12 megapixels


@dataclass(frozen=True, slots=True)
class Block:
    """Objects start..stop of `BoxFile.order()`; never part of an image."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def cut_blocks(image_rows: NDArray[np.int32]) -> list[Block]:
    """Cut objects into blocks of up to 64 images; a block ends earlier once it holds 4096 objects.

    Args:
        image_rows: (N,) image of each object, objects of one image side by side; below 0: of none.
    """
    image_rows = np.maximum(image_rows, NO_IMAGE)
    blocks: list[Block] = []
    start = images = 0
    for stop in [*(np.flatnonzero(np.diff(image_rows)) + 1).tolist(), len(image_rows)]:
        images += 1
        if images == BLOCK_IMAGES or stop - start >= BLOCK_OBJECTS or (stop == len(image_rows) > start):
            blocks.append(Block(len(blocks), start, stop))
            start, images = stop, 0
    return blocks


def cut_pieces(
    boxes: BoxFile, order: NDArray[np.int64], block: Block, done: int, constants: ModelConstants, allow_outside: bool
) -> Iterator[Piece]:
    """Pieces of the objects of a block that are not done yet; the last one ends the block's batch.

    Args:
        boxes: the input.
        order: its `order()`.
        block: which objects.
        done: objects of the block that the journal holds already.
        constants: of the model.
        allow_outside: file names may leave the image folder.

    The origin of a piece is (block, position of its first object in the block).
    """
    whole = order[block.start : block.stop]
    rows = whole[done:]
    images = np.maximum(boxes.image_row[rows], NO_IMAGE)
    good = (images >= 0) & ~boxes.crowd[rows] & usable(boxes.boxes[rows])
    edges = np.flatnonzero(np.diff(images)) + 1
    for first, last in zip([0, *edges.tolist()], [*edges.tolist(), len(rows)], strict=True):
        row = int(images[first]) if last > first else -1
        image = None
        if row >= 0:
            alike = whole[boxes.image_row[whole] == row]  # also those that are done
            image = SharedImage(partial(load_image, boxes, row, alike, constants, allow_outside))
        for start in range(first, last, PIECE):
            stop = min(start + PIECE, last)
            picture = _image_bytes(boxes, row) if start == first else 0
            yield Piece(
                origin=(block.index, done + start),
                image=image,
                boxes=boxes.boxes[rows[start:stop]],
                reasons=[
                    None if fine else boxes.reason(int(row))
                    for fine, row in zip(good[start:stop], rows[start:stop], strict=True)
                ],
                cost=picture + (stop - start) * 3 * constants.size**2,
                ends_batch=stop == len(rows),
            )


def load_image(
    boxes: BoxFile, image_row: int, rows: NDArray[np.int64], constants: ModelConstants, allow_outside: bool
) -> Picture:
    """An image of the box file, in the orientation for which the stated size holds, as small as its crops allow.

    Args:
        boxes: the input.
        image_row: which image.
        rows: all its annotations.
        constants: of the model.
        allow_outside: its file name may leave the image folder.

    Raises:
        ImageError: it cannot be used; the message is the reason.
    """
    data = boxes.source.read(boxes.images.file_names[image_row], allow_outside=allow_outside)
    wanted = boxes.boxes[rows[~boxes.crowd[rows]]]
    width, height = int(boxes.images.widths[image_row]), int(boxes.images.heights[image_row])
    return decode_image(data, width, height, partial(shrink_of_crops, wanted, constants))


def _image_bytes(boxes: BoxFile, row: int) -> int:
    if row < 0:
        return 0
    return int(boxes.images.widths[row]) * int(boxes.images.heights[row]) * 3 or UNKNOWN_IMAGE_BYTES
