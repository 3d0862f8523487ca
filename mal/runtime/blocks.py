"""Blocks of images, the unit of work: cut from the input alone, each labelled and journalled on its own.

Whoever runs a block (this process, another device, another machine) gets the same batches from it.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mal.boxes import Boxes, usable
from mal.config import ModelConstants
from mal.datasets import BoxFile
from mal.images import Picture, decode_image
from mal.runtime.objects import PIECE, Piece, SharedImage, shrink_of_crops
from mal.sources import ImageSource

BLOCK_IMAGES = 64  # enough for batches to fill, few enough to hand blocks out one by one
BLOCK_OBJECTS = 4096
NO_IMAGE = -1
DECODING_BYTES = 7  # a pixel: Pillow's picture has 4, ours 3
UNKNOWN_IMAGE_BYTES = 12_000_000 * DECODING_BYTES  # where the box file states no size


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


class ImageRef(NamedTuple):
    """An image as the box file names it."""

    file_name: str
    width: int  # 0: not stated
    height: int


@dataclass(frozen=True, slots=True)
class BlockWork:
    """All there is to know for labelling a block, wherever that happens: no box file is needed beside it."""

    index: int
    done: int  # so many of its n objects are labelled already, the first ones
    boxes: Boxes  # (n, 4) as in the file
    image: NDArray[np.int32]  # (n,) index into `images`, ascending; -1: none, last
    images: list[ImageRef]
    reasons: dict[int, str]  # why some objects cannot be labelled, by their position, as far as the file tells


def block_work(boxes: BoxFile, order: NDArray[np.int64], block: Block, done: int) -> BlockWork:
    """What is left to do of a block.

    Args:
        boxes: the input.
        order: its `order()`.
        block: which objects.
        done: objects of the block that the journal holds already.
    """
    rows = order[block.start : block.stop]
    image_rows = np.maximum(boxes.image_row[rows], NO_IMAGE)
    used, image = np.unique(image_rows[image_rows >= 0], return_inverse=True)
    bad = np.flatnonzero((image_rows < 0) | boxes.crowd[rows] | ~usable(boxes.boxes[rows]))
    named = boxes.images
    return BlockWork(
        index=block.index,
        done=done,
        boxes=boxes.boxes[rows],
        image=np.concatenate([image, np.full(len(rows) - len(image), NO_IMAGE)]).astype(np.int32),
        images=[ImageRef(named.file_names[at], int(named.widths[at]), int(named.heights[at])) for at in used],
        reasons={at: reason for at in bad.tolist() if (reason := boxes.reason(int(rows[at])))},
    )


def cut_pieces(work: BlockWork, load: Callable[[BlockWork, int], Picture]) -> Iterator[Piece]:
    """Pieces of the objects of a block that are not done yet; the last one ends the block's batch.

    Args:
        work: the block.
        load: (work, index of an image) -> the image; called in host threads; raises ImageError.

    The origin of a piece is (block, position of its first object in the block).
    """
    edges = np.flatnonzero(np.diff(work.image[work.done :])) + 1 + work.done
    count = len(work.image)
    for first, last in itertools.pairwise([work.done, *edges.tolist(), count]):
        at = int(work.image[first]) if last > first else NO_IMAGE
        image = SharedImage(partial(load, work, at)) if at >= 0 else None
        for start in range(first, last, PIECE):
            stop = min(start + PIECE, last)
            yield Piece(
                origin=(work.index, start),
                image=image,
                boxes=work.boxes[start:stop],
                reasons=[work.reasons.get(at) for at in range(start, stop)],
                cost=_image_bytes(work.images[at]) if image and start == first else 0,
                ends_batch=stop == count,
            )


def load_image(
    work: BlockWork, at: int, source: ImageSource, constants: ModelConstants, allow_outside: bool
) -> Picture:
    """An image of a block, in the orientation for which the stated size holds, as small as its crops allow.

    Args:
        work: the block.
        at: which of its images.
        source: where images are.
        constants: of the model.
        allow_outside: file names may leave the source.

    Raises:
        ImageError: it cannot be used; the message is the reason.
    """
    image = work.images[at]
    data = source.read(image.file_name, allow_outside=allow_outside)
    # All of its boxes that may be labelled, also those that are done.
    wanted = [row for row in np.flatnonzero(work.image == at).tolist() if row not in work.reasons]
    return decode_image(data, image.width, image.height, partial(shrink_of_crops, work.boxes[wanted], constants))


def _image_bytes(image: ImageRef) -> int:
    return image.width * image.height * DECODING_BYTES or UNKNOWN_IMAGE_BYTES
