import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import mal
from mal.errors import ShapeError, UsageError
from mal.runtime.labeler import NO_AREA
from mal.runtime.objects import OUTSIDE, PIECE


@pytest.fixture
def labeler(model: Path):
    with mal.MaskLabeler(model, "cpu", batch=8, workers=2) as labeler:
        yield labeler


@pytest.fixture
def image() -> np.ndarray:
    """Dark, with a bright square 20..40."""
    image = np.zeros((60, 70, 3), np.uint8)
    image[20:40, 20:40] = 255
    return image


def test_a_bright_square_is_found(labeler: mal.MaskLabeler, image: np.ndarray) -> None:
    masks, scores = labeler(image, [[15, 15, 45, 45]])
    truth = image[..., 0] > 0
    assert (masks.shape, masks.dtype, scores.shape, scores.dtype) == ((1, 60, 70), bool, (1,), np.float32)
    assert (masks[0] & truth).sum() / (masks[0] | truth).sum() > 0.8
    assert not masks[0][:15].any()
    assert not masks[0][:, 45:].any()


def test_boxes_are_clipped_and_impossible_ones_have_empty_masks(labeler: mal.MaskLabeler, image: np.ndarray) -> None:
    boxes = [[-10, -10, 40, 40], [80, 5, 90, 20], [5, 5, 5, 20], [20, 20, 40, 40]]
    result = next(labeler.stream([(image, boxes)]))
    assert [words for words in result.flags] == [["clipped"], [OUTSIDE], [NO_AREA], []]
    assert result.masks.any((1, 2)).tolist() == [True, False, False, True]
    assert (result.scores > 0).tolist() == [True, False, False, True]


def test_an_empty_mask_has_score_0(labeler: mal.MaskLabeler, image: np.ndarray) -> None:
    result = next(labeler.stream([(image, [[50, 45, 60, 55]])]))
    assert not result.masks.any()
    assert (result.flags, result.scores.tolist()) == ([["empty"]], [0.0])


def test_a_stream_gives_what_single_calls_give(labeler: mal.MaskLabeler, rng: np.random.Generator) -> None:
    pairs = []
    for count in (0, 1, 5, PIECE + 9, 0, 0, 2, 0):
        corner = rng.uniform(-5, 40, (count, 2))
        image = rng.integers(0, 255, (50, 64, 3), dtype=np.uint8)
        pairs.append((image, np.hstack([corner, corner + rng.uniform(1, 30, (count, 2))])))
    results = list(labeler.stream(iter(pairs)))
    assert len(results) == len(pairs)
    for (image, boxes), result in zip(pairs, results, strict=True):
        masks, scores = labeler(image, boxes)
        assert (result.masks == masks).all()
        assert result.masks.shape == (len(boxes), 50, 64)
        np.testing.assert_allclose(result.scores, scores, atol=1e-6)


def endless(image: np.ndarray, taken: list[int]) -> Iterator[tuple[np.ndarray, list[list[int]]]]:
    """The same image for ever; `taken` grows by one entry each time."""
    while True:
        taken.append(1)
        yield image, [[15, 15, 45, 45]]


def test_images_are_taken_as_they_are_needed(labeler: mal.MaskLabeler, image: np.ndarray) -> None:
    taken: list[int] = []
    stream = labeler.stream(endless(image, taken))
    for _ in range(3):
        next(stream)
    assert len(taken) < 100
    stream.close()


def test_images_in_flight_are_bounded_in_bytes(
    labeler: mal.MaskLabeler, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labeler._pipeline, "_budget", image.nbytes)
    monkeypatch.setattr(labeler._pipeline, "_batch", 2)
    taken: list[int] = []
    stream = labeler.stream(endless(image, taken))
    next(stream)
    # Two a batch: one in the session, two packed, one that comes out, one piece waiting.
    assert len(taken) <= 9
    stream.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.astype(float), r"must be \(H, W, 3\) uint8 RGB, got \(60, 70, 3\) float64"),
        (lambda image: image[..., 0], r"got \(60, 70\) uint8"),
        (lambda image: image[:0], r"got \(0, 70, 3\)"),
    ],
)
def test_other_images_are_refused(labeler: mal.MaskLabeler, image: np.ndarray, change, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        labeler(change(image), [[1, 1, 5, 5]])


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 5, 5], [0, float("nan"), 5, 5]], "box 1 is not finite"),
        ([[0, 0, float("inf"), 5]], "box 0 is not finite"),
        ([1, 2, 3, 4], r"got shape \(4,\)"),
        ([["a", 1, 2, 3]], "must be numbers"),
    ],
)
def test_other_boxes_are_refused(labeler: mal.MaskLabeler, image: np.ndarray, boxes: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        labeler(image, boxes)


def test_a_live_source_gets_its_masks_without_a_full_batch(labeler: mal.MaskLabeler, image: np.ndarray) -> None:
    """Batches are of 8 crops; the source gives one, and the next only when the first result is there."""
    first_is_out = threading.Event()

    def camera() -> Iterator[tuple[np.ndarray, list[list[int]]]]:
        yield image, [[15, 15, 45, 45]]
        assert first_is_out.wait(60)
        yield image, []  # nothing in sight
        yield image, [[20, 20, 40, 40]]

    results = labeler.stream(camera(), max_wait_ms=5)
    found = [next(results)]
    first_is_out.set()
    found += results
    assert [len(result.scores) for result in found] == [1, 0, 1]
    assert found[0].masks.any()


@pytest.mark.parametrize("max_wait_ms", [None, 0, 20])
def test_what_the_source_raises_comes_behind_the_results(
    labeler: mal.MaskLabeler, image: np.ndarray, max_wait_ms: float | None
) -> None:
    def broken() -> Iterator[tuple[np.ndarray, list[list[int]]]]:
        for _ in range(11):
            yield image, [[15, 15, 45, 45]]
        raise OSError("camera unplugged")

    found: list[mal.LabelResult] = []
    with pytest.raises(OSError, match="camera unplugged"):
        found.extend(labeler.stream(broken(), max_wait_ms=max_wait_ms))
    assert len(found) == 11
    assert all(result.masks.any() for result in found)


def test_a_bad_pair_comes_behind_the_results(labeler: mal.MaskLabeler, image: np.ndarray) -> None:
    found: list[mal.LabelResult] = []
    with pytest.raises(ShapeError, match="pairs of an image and its boxes, got NoneType"):
        found.extend(labeler.stream([(image, [[1, 1, 9, 9]]), None, (image, [[1, 1, 9, 9]])]))  # pyright: ignore
    assert len(found) == 1


def test_a_closed_labeler_says_so(labeler: mal.MaskLabeler, image: np.ndarray) -> None:
    labeler.close()
    labeler.close()
    with pytest.raises(UsageError, match="this MaskLabeler is closed"):
        labeler(image, [[1, 1, 5, 5]])
    with pytest.raises(UsageError, match="this MaskLabeler is closed"):
        labeler.stream([])


def test_waiting_is_not_negative(labeler: mal.MaskLabeler) -> None:
    with pytest.raises(UsageError, match="max_wait_ms=-1: expected milliseconds from 0 up"):
        labeler.stream([], max_wait_ms=-1)


@pytest.mark.parametrize(
    ("value", "object_there"), [(np.inf, True), (-np.inf, False), (np.nan, False), (3e38, True), (-3e38, False)]
)
def test_logits_without_end_are_decided(
    labeler: mal.MaskLabeler, image: np.ndarray, monkeypatch: pytest.MonkeyPatch, value: float, object_there: bool
) -> None:
    """Warnings are errors here, NumPy's too."""
    run = labeler._session.run

    def wild(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, scores = run(crops)
        logits = logits.copy()
        logits[:, 2:6, 2:6] = value
        return logits, scores

    monkeypatch.setattr(labeler._session, "run", wild)
    result = next(labeler.stream([(image, [[15, 15, 45, 45]])]))
    assert result.masks[0, 30, 30] == object_there
    assert "not-finite" in result.flags[0]
