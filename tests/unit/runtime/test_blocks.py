import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mal.runtime.blocks import BLOCK_IMAGES, BLOCK_OBJECTS, cut_blocks


@given(st.lists(st.integers(1, 40) | st.just(3000), max_size=300))
def test_blocks_hold_whole_images_and_everything_once(counts: list[int]) -> None:
    rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    blocks = cut_blocks(rows)
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks)][: len(blocks)]
    assert sum(len(block) for block in blocks) == len(rows)
    for block in blocks:
        images = np.unique(rows[block.start : block.stop])
        assert 1 <= len(images) <= BLOCK_IMAGES
        assert np.isin(rows, images).sum() == len(block)  # no image in two blocks
        assert (rows[block.start : block.stop] != images[-1]).sum() < BLOCK_OBJECTS
    for block in blocks[:-1]:
        assert len(np.unique(rows[block.start : block.stop])) == BLOCK_IMAGES or len(block) >= BLOCK_OBJECTS


def test_objects_without_an_image_are_one_image() -> None:
    assert len(cut_blocks(np.array([0, 0, -1, -2, -1], np.int32))) == 1
