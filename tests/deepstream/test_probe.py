"""The two halves of a mask, driven from Python: geometry, equality with MaskLabeler, what is reused, what is lost."""

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sdk import CORE, FAKE, HERE, build_library

from mal.boxes import expand
from mal.crops import to_input
from mal.evaluation.nvinfer_crop import crop_in_frame, cut_as_nvinfer
from mal.images import Picture
from mal.masks import BoxMask, mask_from_logits, mask_in_crop, polygons
from mal.runtime.labeler import MaskLabeler
from mal.runtime.objects import cut_boxes
from mal.runtime.session import open_session

EXPANSION = 0.3
WIDTH, HEIGHT = 320, 240
UNTRACKED = 2**64 - 1


class MaskParams(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_uint), ("threshold", ctypes.c_float),
        ("width", ctypes.c_uint), ("height", ctypes.c_uint),
    ]  # fmt: skip


class Metrics(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("wanted", "masks", "reused", "misses", "unusable")]


class MaskMeta(ctypes.Structure):
    _fields_ = [
        ("score", ctypes.c_float), ("part_count", ctypes.c_uint), ("part_sizes", ctypes.POINTER(ctypes.c_uint)),
        ("points", ctypes.POINTER(ctypes.c_float)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    library = build_library("mal_test_bridge", [*CORE, FAKE, HERE / "bridge.cpp"])
    library.bridge_new.restype = ctypes.c_void_p
    library.bridge_new.argtypes = [
        ctypes.c_double, ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_int, ctypes.c_uint,
    ]  # fmt: skip
    library.bridge_object.argtypes = [ctypes.c_void_p, *[ctypes.c_float] * 4, ctypes.c_ulong, ctypes.c_int]
    library.bridge_result.argtypes = [
        ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_float, ctypes.c_int,
    ]  # fmt: skip
    library.bridge_pool.argtypes = [ctypes.c_long]
    library.bridge_mask.restype = ctypes.POINTER(MaskParams)
    library.bridge_mask_meta.restype = ctypes.POINTER(MaskMeta)
    return library


class Bridge:
    """A pipeline of one nvinfer; a batch at a time."""

    def __init__(
        self, library: ctypes.CDLL, *, exact=False, longest_side=0, every=1, polygons=False, most=1000
    ) -> None:
        self.library = library
        self.handle = ctypes.c_void_p(library.bridge_new(EXPANSION, exact, longest_side, every, polygons, most))

    def batch(self, boxes, number=0, source=0, width=WIDTH, height=HEIGHT, tracks=None, gie=1) -> None:
        """One frame with boxes x0, y0, x1, y1."""
        self.library.bridge_batch(self.handle)
        self.library.bridge_frame(self.handle, source, number, width, height)
        for index, (x0, y0, x1, y1) in enumerate(boxes):
            track = tracks[index] if tracks else UNTRACKED
            self.library.bridge_object(self.handle, x0, y0, x1 - x0, y1 - y0, track, gie)

    def before(self) -> None:
        self.library.bridge_before(self.handle)

    def after(self) -> None:
        self.library.bridge_after(self.handle)

    def rect(self, index=0) -> list[float]:
        out = (ctypes.c_float * 4)()
        self.library.bridge_rect(self.handle, index, out)
        return list(out)

    def crop(self, index=0) -> np.ndarray:
        out = (ctypes.c_double * 4)()
        assert self.library.bridge_crop(self.handle, index, out)
        return np.array(out)

    def result(self, logits: np.ndarray, index=0, score=0.5, roi=False) -> None:
        logits = np.ascontiguousarray(logits, np.float32)
        self.library.bridge_result(self.handle, index, logits.ctypes.data, *logits.shape, score, roi)

    def mask(self, index=0) -> np.ndarray | None:
        params = self.library.bridge_mask(self.handle, index).contents
        if not params.data:
            return None
        assert params.size == 4 * params.width * params.height
        assert params.threshold == 0
        return np.ctypeslib.as_array(params.data, (params.height, params.width)).copy()

    def mask_meta(self, index=0) -> MaskMeta:
        return self.library.bridge_mask_meta(self.handle, index).contents

    def metrics(self) -> dict[str, int]:
        found = Metrics()
        self.library.bridge_metrics(self.handle, ctypes.byref(found))
        return {name: getattr(found, name) for name, _ in Metrics._fields_}


@pytest.fixture
def make(library) -> Iterator:
    made = []

    def make(**options) -> Bridge:
        made.append(Bridge(library, **options))
        return made[-1]

    yield make
    for bridge in made:
        library.bridge_free(bridge.handle)


def logits_of(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((24, 24)).astype(np.float32)


numbers = st.floats(-50, 400, width=32)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=numbers, y=numbers, w=st.floats(0, 500, width=32), h=st.floats(0, 500, width=32), width=st.integers(2, 330))
def test_any_box_its_crop_and_its_mask_are_as_the_judges_say(library, x, y, w, h, width) -> None:
    bridge = Bridge(library)
    try:
        bridge.batch([(x, y, np.float32(x) + np.float32(w), np.float32(y) + np.float32(h))], width=width)
        before = bridge.rect()
        box = np.array([max(x, 0), max(y, 0), min(x + before[2], width), min(y + before[3], HEIGHT)])
        bridge.before()
        if box[2] <= box[0] or box[3] <= box[1]:
            assert bridge.rect() == [0, 0, 0, 0]  # which nvinfer passes over
            bridge.after()
            assert bridge.metrics()["unusable"] == 1
            assert bridge.mask() is None
        else:
            crop = crop_in_frame(box, width, HEIGHT, EXPANSION)
            assert bridge.rect() == [crop[0], crop[1], crop[2] - crop[0], crop[3] - crop[1]]
            assert not (crop % 2).any()
            assert crop.min() >= 0
            assert crop[2] <= width
            assert crop[3] <= HEIGHT
            logits = logits_of(np.random.default_rng(1))
            bridge.result(logits)
            bridge.after()
            mask = bridge.mask()
            assert mask.shape == (max(1, np.floor(before[3] + 0.5)), max(1, np.floor(before[2] + 0.5)))
            if not any(edge % 1 for edge in (*before, *box)):  # cells are pixels
                judged = mask_in_crop(logits, box, crop)
                top, left = judged.y0 - int(before[1]), judged.x0 - int(before[0])
                expected = np.zeros(mask.shape, bool)
                expected[top : top + judged.pixels.shape[0], left : left + judged.pixels.shape[1]] = judged.pixels
                np.testing.assert_array_equal(mask > 0, expected)
        assert bridge.rect() == before
    finally:
        library.bridge_free(bridge.handle)


WHOLE_BOXES = [(20, 40, 120, 140), (-30, -7, 100, 60), (200, 100, 319, 240), (310, 230, 500, 300), (7, 9, 8, 10)]


@pytest.mark.parametrize("box", WHOLE_BOXES, ids=str)
@pytest.mark.parametrize("exact", [False, True], ids=["clipped", "exact"])
def test_whole_pixels_are_cut_bit_for_bit_like_the_judge(make, rng, box, exact) -> None:
    bridge, logits = make(exact=exact), logits_of(rng)
    bridge.batch([box])
    clipped = np.clip(np.array(box, float), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    bridge.before()
    crop = bridge.crop()
    np.testing.assert_allclose(
        crop, expand(clipped[None], EXPANSION)[0] if exact else crop_in_frame(clipped, WIDTH, HEIGHT, EXPANSION)
    )
    if exact:  # nvdspreprocess may cut what it likes inside the frame; our own code cuts the crop
        x, y, w, h = bridge.rect()
        assert x >= 0
        assert y >= 0
        assert x + w <= WIDTH
        assert y + h <= HEIGHT
    bridge.result(logits, roi=exact)
    bridge.after()
    mask = bridge.mask() > 0
    judged = mask_in_crop(logits, clipped, crop)
    top, left = judged.y0 - box[1], judged.x0 - box[0]
    inside = mask[top : top + judged.pixels.shape[0], left : left + judged.pixels.shape[1]]
    np.testing.assert_array_equal(inside, judged.pixels)
    assert mask.sum() == judged.pixels.sum()  # nothing outside the frame


def test_equal_tensors_give_masklabelers_masks(make, rng) -> None:
    """The same crops through the shipped student: our own crop exactly, nvinfer's with a measured difference."""
    picture = np.repeat(np.repeat(rng.integers(0, 255, (30, 40, 3), np.uint8), 8, axis=0), 8, axis=1)
    boxes = np.array([[40, 40, 140, 120], [0, 0, 90, 200], [150, 30, 310, 230], [200, 180, 320, 240]], float)
    session = open_session("student", "cpu")
    with MaskLabeler("student", "cpu") as labeler:
        expected, scores = labeler(picture, boxes)
    constants = session.constants
    agreement = {}
    for exact in (True, False):
        bridge = make(exact=exact, polygons=True)
        bridge.batch(boxes)
        bridge.before()
        rects = np.array([bridge.crop(index) for index in range(len(boxes))])
        if exact:
            np.testing.assert_array_equal(rects, expand(boxes, constants.expansion))
            crops = np.empty((len(boxes), 3, constants.size, constants.size), np.float32)
            cut_boxes(Picture(picture, WIDTH, HEIGHT), boxes, constants, crops)  # the labeler's own
        else:
            crops = to_input(np.stack([cut_as_nvinfer(picture, rect, constants.size) for rect in rects]))
        logits, found = session.run(crops)
        for index in range(len(boxes)):
            bridge.result(logits[index], index, found[index], roi=exact)
        bridge.after()
        union = common = 0
        for index, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
            ours, theirs = bridge.mask(index) > 0, expected[index, y0:y1, x0:x1]
            union, common = union + (ours | theirs).sum(), common + (ours & theirs).sum()
            if exact:
                np.testing.assert_array_equal(ours, theirs)
                assert bridge.mask_meta(index).score == pytest.approx(scores[index], abs=1e-5)
        agreement[exact] = common / max(1, union)
    session.close()
    print(f"IoU with MaskLabeler's masks: our crops {agreement[True]:.4f}, nvinfer's {agreement[False]:.4f}")
    assert agreement[True] == 1
    assert agreement[False] < 1


def test_the_mask_of_an_exact_crop_is_mask_from_logits(make, rng) -> None:
    bridge, logits, box = make(exact=True), logits_of(rng), (33, 50, 176, 211)
    bridge.batch([box])
    bridge.before()
    bridge.result(logits)
    bridge.after()
    judged = mask_from_logits(logits, np.array(box, float), EXPANSION).pixels
    np.testing.assert_array_equal(bridge.mask() > 0, judged)
    assert bridge.mask().min() == 0  # exact zeros outside: nvdsosd's mask blur knows no threshold


@pytest.mark.parametrize(("longest", "shape"), [(0, (80, 160)), (64, (32, 64)), (1, (1, 1)), (200, (80, 160))])
def test_size_by_choice(make, rng, longest, shape) -> None:
    bridge = make(longest_side=longest)
    bridge.batch([(20, 20, 180, 100)])
    bridge.before()
    bridge.result(logits_of(rng))
    bridge.after()
    assert bridge.mask().shape == shape


def test_an_absurd_box_has_a_mask_of_bounded_size(make, rng) -> None:
    bridge = make()
    bridge.batch([(-1e8, -1e8, 1e8, 1e8)])
    bridge.before()
    bridge.result(logits_of(rng))
    bridge.after()
    assert bridge.mask().shape == (4096, 4096)


def test_masks_are_reused_by_track(make, rng) -> None:
    bridge, first = make(every=3), None
    for number in range(7):
        bridge.batch([(20 + number, 20, 80 + number, 100)], number=number, tracks=[5])
        bridge.before()
        asked = bridge.rect()[2] > 0
        assert asked == (number % 3 == 0)
        if asked:
            bridge.result(logits_of(rng))
        bridge.after()
        if asked:
            first = bridge.mask()
        np.testing.assert_array_equal(bridge.mask(), first)
        assert bridge.rect() == [20 + number, 20, 60, 80]
    assert bridge.metrics() == {"wanted": 7, "masks": 3, "reused": 4, "misses": 0, "unusable": 0}


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"tracks": [6]}, True),
        ({"tracks": [UNTRACKED]}, True),
        ({"source": 1}, True),
        ({"number": 0}, True),
        ({}, False),
    ],
    ids=["another track", "no track", "another source", "frames count anew", "the same"],
)
def test_only_the_same_track_is_reused(make, rng, change, asked) -> None:
    bridge, frame = make(every=5), {"number": 10, "tracks": [5], "source": 0}
    bridge.batch([(20, 20, 80, 100)], **frame)
    bridge.before()
    bridge.result(logits_of(rng))
    bridge.after()
    bridge.batch([(20, 20, 80, 100)], **{**frame, "number": 11, **change})
    bridge.before()
    assert (bridge.rect()[2] > 0) == asked


@pytest.mark.parametrize(("batches", "asked"), [(10, False), (70, True)])
def test_a_track_that_nobody_asks_for_is_forgotten(make, rng, batches, asked) -> None:
    bridge, track = make(every=2), {"source": 0, "tracks": [5]}
    bridge.batch([(20, 20, 80, 100)], number=0, **track)
    bridge.before()
    bridge.result(logits_of(rng))
    bridge.after()
    for number in range(batches):  # of another stream, while the first one stalls
        bridge.batch([(20, 20, 80, 100)], number=number, source=1)
        bridge.before()
        bridge.after()
    bridge.batch([(20, 20, 80, 100)], number=1, **track)
    bridge.before()
    assert (bridge.rect()[2] > 0) == asked


def test_a_lost_result_is_asked_for_again(make, rng) -> None:
    bridge = make(every=100)
    for number, lost in enumerate([True, True, False]):
        bridge.batch([(20, 20, 80, 100)], number=number, tracks=[5])
        bridge.before()
        assert bridge.rect()[2] > 0
        if not lost:
            bridge.result(logits_of(rng))
        bridge.after()
        assert (bridge.mask() is None) == lost
    assert bridge.metrics() == {"wanted": 3, "masks": 1, "reused": 0, "misses": 2, "unusable": 0}


@pytest.mark.parametrize(
    "box",
    [(10, 10, 10, 50), (10, 10, 5, 5), (-50, 10, 0, 50), (400, 10, 500, 50), (np.nan, 0, 9, 9), (0, 0, np.inf, 9)],
    ids=str,
)
def test_boxes_without_an_area_in_the_frame(make, box) -> None:
    bridge = make()
    bridge.batch([box])
    rect = bridge.rect()
    bridge.before()
    assert bridge.rect() == [0, 0, 0, 0]
    bridge.after()
    np.testing.assert_array_equal(bridge.rect(), rect)
    assert bridge.mask() is None
    assert bridge.metrics()["unusable"] == 1


def test_a_batch_asks_for_no_more_than_nvdspreprocess_has_room_for(make, rng) -> None:
    bridge, boxes = make(most=2, every=10), [(20 * i, 20, 20 * i + 19, 60) for i in range(4)]
    for number, asked in enumerate([[0, 1], [2, 3], []]):  # who got none asks first with the next frame
        bridge.batch(boxes, number=number, tracks=list(range(4)))
        bridge.before()
        assert [index for index in range(4) if bridge.rect(index)[2]] == asked
        for index in asked:
            bridge.result(logits_of(rng), index)
        bridge.after()
        assert [bridge.rect(index) for index in range(4)] == [[20 * i, 20, 19, 40] for i in range(4)]
    assert bridge.metrics() == {"wanted": 12, "masks": 4, "reused": 6, "misses": 2, "unusable": 0}


def test_objects_of_other_detectors_stay_as_they_are(make) -> None:
    bridge = make()
    bridge.batch([(20, 20, 80, 100)], gie=2)
    bridge.before()
    assert bridge.rect() == [20, 20, 60, 80]
    bridge.after()
    assert bridge.metrics()["wanted"] == 0


def test_without_metadata_to_save_in_the_rectangle_stays(make, library) -> None:
    bridge = make()
    bridge.batch([(21, 21, 80, 100)])
    library.bridge_pool(0)
    bridge.before()
    library.bridge_pool(1 << 40)
    assert bridge.rect() == [21, 21, 59, 79]
    assert bridge.metrics()["misses"] == 1


@pytest.mark.parametrize("logits", [np.full((3, 4), np.nan), np.full((3, 4), -1.0), np.full((3, 4), 2.0)])
def test_empty_full_and_not_finite_logits(make, logits) -> None:
    bridge = make(polygons=True)
    bridge.batch([(20, 20, 80, 100)])
    bridge.before()
    bridge.result(logits)
    bridge.after()
    full = logits[0, 0] > 0
    assert np.all((bridge.mask() > 0) == full)
    assert bridge.mask_meta().part_count == full


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), wide=st.integers(1, 12), high=st.integers(1, 12))
def test_outlines_are_those_of_masks_polygons(library, seed, wide, high) -> None:
    bridge = Bridge(library, polygons=True)
    try:
        bridge.batch([(40, 60, 40 + wide, 60 + high)])
        bridge.before()
        bridge.result(np.random.default_rng(seed).standard_normal((40, 40)))
        bridge.after()
        meta, mask = bridge.mask_meta(), bridge.mask() > 0
        found, at = [], 0
        for part in range(meta.part_count):
            length = 2 * meta.part_sizes[part]
            found.append(_from_the_least([meta.points[at + i] for i in range(length)]))
            at += length
        expected = polygons(BoxMask(40, 60, mask))
        assert sorted(found) == sorted(map(_from_the_least, expected))
    finally:
        library.bridge_free(bridge.handle)


def _from_the_least(points: list[float]) -> list[tuple[float, float]]:
    """Vertices of a closed line from its least one on, in the direction that reads less."""
    pairs = list(zip(points[::2], points[1::2], strict=True))
    lines = [pairs[i:] + pairs[:i] for i in range(len(pairs))]
    lines += [line[::-1] for line in lines]
    return min(lines)
