import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mal.images import Picture
from mal.runtime.batches import Batch, BatchCutter
from mal.runtime.objects import Prepared


def piece(first: int, labelable: list[bool]) -> Prepared:
    which = np.flatnonzero(labelable)
    return Prepared(
        origin=(0, first),
        reasons=[None if good else "why" for good in labelable],
        flags=np.zeros(len(labelable), np.uint8),
        which=which,
        boxes=np.repeat((first + which)[:, None], 4, axis=1).astype(float),
        picture=Picture(np.zeros((1, 1, 3), np.uint8), 1, 1) if len(which) else None,
        size=(1, 1),
        cost=0,
        ends_batch=False,
    )


def pieces(labelable: list[bool], cuts: list[int], start: int = 0) -> list[Prepared]:
    edges = [start, *sorted({cut for cut in cuts if start < cut < len(labelable)}), len(labelable)]
    return [piece(first, labelable[first:last]) for first, last in itertools.pairwise(edges) if last > first]


def cut(parts: list[Prepared], size: int) -> list[Batch]:
    cutter = BatchCutter(size)
    batches = [batch for part in parts for batch in cutter.add(part)]
    cutter.end()
    assert all(batch.full for batch in batches)
    return batches


def objects(batch: Batch) -> list[int]:
    return [span.piece.origin[1] + index for span in batch.spans for index in range(span.first, span.last)]


labels = st.lists(st.booleans(), max_size=60)
cuts = st.lists(st.integers(1, 60))


@given(labels, cuts, cuts, st.integers(1, 9))
def test_batches_depend_on_the_order_alone(
    labelable: list[bool], some: list[int], others: list[int], size: int
) -> None:
    first, second = cut(pieces(labelable, some), size), cut(pieces(labelable, others), size)
    assert [objects(batch) for batch in first] == [objects(batch) for batch in second]
    assert list(itertools.chain.from_iterable(map(objects, first))) == list(range(len(labelable)))
    for batch in first:
        expected = [index for index in objects(batch) if labelable[index]]
        assert batch.boxes()[:, 0].tolist() == expected
        places = np.zeros((size, 3, 1, 1), np.float32)
        for span in batch.spans:
            assert (span.take_picture() is not None) == (span.crops > 0)
            span.place(places)[:] += 1 + span.boxes()[:, :1, None, None]
        assert places[:, 0, 0, 0].tolist() == [1 + index for index in expected] + [0] * (size - len(expected))
        assert batch.crops == len(expected) <= size
    assert all(batch.crops == size for batch in first[:-1])
    assert not any(span.piece.picture for batch in first for span in batch.spans)  # nobody holds an image any more


@given(labels, cuts, st.integers(1, 9), st.data())
def test_the_rest_of_a_run_is_cut_as_without_the_break(
    labelable: list[bool], some: list[int], size: int, data: st.DataObject
) -> None:
    whole = [objects(batch) for batch in cut(pieces(labelable, some), size)]
    done = data.draw(st.integers(0, len(whole)))
    start = sum(map(len, whole[:done]))
    assert [objects(batch) for batch in cut(pieces(labelable, some, start), size)] == whole[done:]


def test_a_piece_can_end_the_batch() -> None:
    first, second = piece(0, [True, False]), piece(2, [True])
    first.ends_batch = True
    assert [objects(batch) for batch in cut([first, second], 8)] == [[0, 1], [2]]
