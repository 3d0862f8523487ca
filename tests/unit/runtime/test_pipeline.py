import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from mal.errors import ImageError, MalError
from mal.images import Picture
from mal.runtime.batches import Batch
from mal.runtime.objects import OUTSIDE, Flag, Piece, SharedImage, prepare
from mal.runtime.pipeline import BATCHES_AHEAD, INPUTS_AHEAD, Pipeline
from mal.runtime.stages import Stages

IMAGE = Picture(np.full((40, 50, 3), 200, np.uint8), 50, 40)


def piece(number: int, count: int = 1, image: SharedImage | None = None, cost: int = 1) -> Piece:
    boxes = np.tile([5.0, 5.0, 30.0, 30.0], (count, 1))
    return Piece((0, number), image or SharedImage(lambda: IMAGE), boxes, [None] * count, cost)


def positions(batch: Batch, logits: np.ndarray, scores: np.ndarray) -> list[int]:
    return [span.piece.origin[1] for span in batch.spans]


def test_results_come_in_order_whatever_the_threads_take(fake_session, rng: np.random.Generator) -> None:
    def slow_pieces() -> Iterator[Piece]:
        for number in range(60):
            delay = rng.uniform(0, 0.004)
            yield piece(number, image=SharedImage(lambda delay=delay: time.sleep(delay) or IMAGE))

    pipeline = Pipeline(fake_session, batch=7, workers=4, stages=Stages())
    found = [number for batch in pipeline.run(slow_pieces(), positions) for number in batch]
    assert found == list(range(60))
    assert fake_session.batches == [7] * 8 + [4]


def test_what_is_in_flight_is_bounded(fake_session) -> None:
    batch, workers, drawn, out = 4, 2, 0, 0
    most = 0

    def counted() -> Iterator[Piece]:
        nonlocal drawn
        for number in range(400):
            drawn += 1
            yield piece(number)

    for found in Pipeline(fake_session, batch=batch, workers=workers, stages=Stages()).run(counted(), positions):
        most = max(most, drawn - out)
        out += len(found)
    assert out == 400
    assert most <= batch * (BATCHES_AHEAD + INPUTS_AHEAD + 1 + workers + 2)


def test_the_memory_bound_lets_one_piece_through_at_a_time(fake_session) -> None:
    alive = peak = 0
    lock = threading.Lock()

    def load() -> Picture:
        nonlocal alive, peak
        with lock:
            alive += 1
            peak = max(peak, alive)
        time.sleep(0.005)
        with lock:
            alive -= 1
        return IMAGE

    pipeline = Pipeline(fake_session, batch=4, workers=4, stages=Stages(), budget=100)
    pieces = (piece(number, image=SharedImage(load), cost=1000) for number in range(10))
    assert len(list(pipeline.run(pieces, positions))) == 3
    assert peak == 1


def test_an_image_is_decoded_once_for_all_its_pieces(fake_session) -> None:
    loads: list[int] = []
    shared = SharedImage(lambda: loads.append(1) or IMAGE)
    pipeline = Pipeline(fake_session, batch=4, workers=4, stages=Stages())
    list(pipeline.run((piece(number, image=shared) for number in range(20)), positions))
    assert loads == [1]


def test_a_session_that_fails_gives_what_was_done_before(fake_session) -> None:
    run = fake_session.run
    fake_session.run = lambda crops: run(crops) if len(fake_session.batches) < 3 else 1 / 0
    out: list[int] = []
    batches = Pipeline(fake_session, batch=2, workers=2, stages=Stages()).run(map(piece, range(20)), positions)
    with pytest.raises(MalError, match="fake on cpu failed: division by zero"):
        out.extend(itertools.chain.from_iterable(batches))
    assert out == [0, 1, 2, 3, 4, 5]


def test_a_host_thread_that_fails_ends_the_run(fake_session) -> None:
    def load() -> Picture:
        raise MemoryError("no room")

    pieces = [piece(0), piece(1, image=SharedImage(load)), piece(2)]
    with pytest.raises(MemoryError, match="no room"):
        list(Pipeline(fake_session, batch=1, workers=2, stages=Stages()).run(pieces, positions))


def test_stop_finishes_what_is_in_flight_and_no_more(fake_session) -> None:
    pipeline = Pipeline(fake_session, batch=2, workers=2, stages=Stages())
    found = list(pipeline.run(map(piece, range(100)), positions, stop=lambda: len(fake_session.batches) >= 4))
    assert found == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_no_threads_are_left(fake_session) -> None:
    for _ in Pipeline(fake_session, batch=2, workers=3, stages=Stages()).run(map(piece, range(9)), positions):
        break  # a caller that loses interest
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("mal") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


def test_prepare_sorts_out_what_cannot_be_labelled(fake_session) -> None:
    boxes = np.array([[5, 5, 20, 20], [60, 5, 70, 20], [-8, 5, 20, 20], [5, 5, 50.3, 20], [1, 1, 2, 2]], float)
    reasons = [None, None, None, None, "crowd"]
    prepared = prepare(Piece((0, 0), SharedImage(lambda: IMAGE), boxes, reasons, 0), Stages())
    assert prepared.reasons == [None, OUTSIDE, None, None, "crowd"]
    assert prepared.which.tolist() == [0, 2, 3]
    assert prepared.flags.tolist() == [0, 0, Flag.CLIPPED, 0, 0]  # 0.3 pixels are rounding in the file
    assert prepared.boxes.tolist() == [[5, 5, 20, 20], [0, 5, 20, 20], [5, 5, 50, 20]]
    assert prepared.picture is IMAGE


def test_a_broken_image_is_the_reason_of_its_objects_only(fake_session) -> None:
    def load() -> Picture:
        raise ImageError("damaged")

    prepared = prepare(Piece((0, 0), SharedImage(load), np.ones((2, 4)), [None, "crowd"], 0), Stages())
    assert prepared.reasons == ["image: damaged", "crowd"]


def test_an_image_nobody_needs_is_not_read(fake_session) -> None:
    shared = SharedImage(lambda: 1 / 0)
    prepared = prepare(Piece((0, 0), shared, np.ones((1, 4)), ["crowd"], 0), Stages())
    assert not len(prepared.which)
    assert prepared.picture is None
