import numpy as np
import pytest

from mal.train.labels import BACKGROUND, OBJECT, UNKNOWN, Labels
from mal.train.paste import Occluders
from mal.train.samples import Samples

BLUE = (0, 0, 250)


def occluders(trust: list[float]) -> Occluders:
    """Cached crops of blue boxes; the left third of their labels is unknown."""
    maps = np.full((len(trust), 64, 64), BACKGROUND, np.uint8)
    maps[:, 12:52, 12:52] = OBJECT
    maps[:, :, :25] = UNKNOWN
    pixels = np.full((len(trust), 96, 96, 3), BLUE, np.uint8)
    samples = Samples(pixels, np.tile([0, 0, 1, 1], (len(trust), 1)), np.zeros(len(trust), np.int32), 0.6, [])
    return Occluders(samples, Labels(maps, np.array(trust, np.float32)))


def view() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    crop, target, known = np.zeros((64, 64, 3), np.uint8), np.zeros((16, 16), np.float32), np.ones((16, 16), np.float32)
    target[3:13, 3:13], known[8, 8] = 1, 0
    return crop, target * known, known


def test_what_is_covered_becomes_known_background_and_the_box_stays_tight() -> None:
    """Blue cells are the pasted ones: nothing else changes, and the box is still that of what is left."""
    pasted, (crop, target, known) = 0, view()
    for seed in range(60):
        seen, left, sure, boxes = occluders([1.0]).over(crop, target, known, np.random.default_rng(seed))
        if seen is crop:
            assert not len(boxes)
            continue
        pasted += 1
        blue = seen[..., 2].reshape(16, 4, 16, 4).mean((1, 3)) / 250
        assert (left[blue > 0.9] < 0.2).all()
        assert (sure[blue > 0.9] == 1).all()
        assert np.array_equal(left[blue == 0], target[blue == 0])
        assert np.array_equal(sure[blue == 0], known[blue == 0])
        assert (seen[..., :2] == 0).all()
        (box,) = boxes * 64
        rows, columns = np.nonzero(seen[..., 2] > 125)
        assert (box[:2] - 2 < [columns.min(), rows.min()]).all()
        assert ([columns.max(), rows.max()] < box[2:] + 1).all()
        assert left.sum() >= 0.4 * target.sum()
        assert min((left > 0.5).any(0).sum(), (left > 0.5).any(1).sum()) >= 9
    assert 10 < pasted < 60


@pytest.mark.parametrize(("trust", "rows"), [([0, 0.2, 0.6, 0.9], [2, 3]), ([0, 0, 0], []), ([0, 0.1], [1])])
def test_the_better_half_of_the_labelled_objects_is_pasted(trust: list[float], rows: list[int]) -> None:
    assert occluders(trust).rows.tolist() == rows


def test_without_labelled_objects_nothing_is_pasted() -> None:
    crop, target, known = view()
    assert occluders([0.0]).over(crop, target, known, np.random.default_rng(0))[0] is crop
