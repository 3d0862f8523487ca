"""What CRF refinement means, worked by hand, for every body; and what the judge must obey."""

import numpy as np
import pytest
from crf_bodies import Body, Floats, find_body, smooth_scene
from hypothesis import given, settings
from hypothesis import strategies as st

from mal.errors import ShapeError
from mal.plugins.crf_refine import reference
from mal.plugins.crf_refine.contract import LIMIT

ZETA = 0.1


@pytest.fixture(params=["judge", "torch", "kernel", "onnx"])
def body(request: pytest.FixtureRequest) -> Body:
    return find_body(request.param)


def grid(rows: list[list[float]]) -> Floats:
    return np.array(rows, np.float32)[None, None]


def alike(logits: Floats) -> Floats:
    return np.zeros((len(logits), 3, *logits.shape[2:]), np.float32)


def everywhere(logits: Floats) -> Floats:
    return np.ones((1, 1, *logits.shape[2:]), np.float32)


def close(refined: Floats, rows: list[list[float]]) -> bool:
    return bool(np.allclose(refined[0, 0], rows, rtol=0, atol=2e-6))


def test_two_alike_pixels_both_take_the_sum(body: Body) -> None:
    logits = grid([[1.0, -0.4]])
    assert close(body(logits, alike(logits), everywhere(logits), 1, ZETA), [[0.6, 0.6]])
    # 0.6 + 0.6, then 1.2 + 1.2 meets the clamp.
    assert close(body(logits, alike(logits), everywhere(logits), 2, ZETA), [[1.2, 1.2]])
    assert close(body(logits, alike(logits), everywhere(logits), 3, ZETA), [[LIMIT, LIMIT]])


def test_a_colour_one_zeta_away_counts_exp_of_minus_a_half(body: Body) -> None:
    logits = grid([[1.0, -0.4]])
    guide = alike(logits)
    guide[0, 1, 0, 1] = ZETA
    k = np.exp(-0.5)
    assert close(body(logits, guide, everywhere(logits), 1, ZETA), [[1 - 0.4 * k, -0.4 + k]])


def test_colour_distance_adds_up_over_the_channels(body: Body) -> None:
    logits = grid([[1.0, 0.0]])
    guide = alike(logits)
    guide[0, :, 0, 1] = [0.1, -0.2, 0.05]
    k = np.exp(-(0.01 + 0.04 + 0.0025) / (2 * ZETA**2))
    assert close(body(logits, guide, everywhere(logits), 1, ZETA), [[1.0, k]])


def test_on_a_line_only_the_next_pixel_votes(body: Body) -> None:
    logits = grid([[1.0, 0.0, 0.0, 0.5]])
    expected = [[1.0, 1.0, 0.5, 0.5]]
    assert close(body(logits, alike(logits), everywhere(logits), 1, ZETA), expected)
    column = logits.transpose(0, 1, 3, 2)
    assert close(body(column, alike(column), everywhere(column), 1, ZETA), [[value] for value in expected[0]])


def test_a_cross_hears_all_eight_neighbours(body: Body) -> None:
    logits = np.full((1, 1, 3, 3), -0.2, np.float32)
    logits[0, 0, 1, 1] = 2.0
    # corner: 2 - 3 * 0.2; side: 2 - 5 * 0.2; centre: 2 - 8 * 0.2
    expected = [[1.4, 1.0, 1.4], [1.0, 0.4, 1.0], [1.4, 1.0, 1.4]]
    assert close(body(logits, alike(logits), everywhere(logits), 1, ZETA), expected)


@pytest.mark.parametrize(("row", "column"), [(y, x) for y in range(3) for x in range(3)])
def test_one_voice_reaches_its_neighbours_and_no_further(body: Body, row: int, column: int) -> None:
    """Colours are alike across the crop's borders too: a body that wraps around would show it here."""
    logits = np.zeros((2, 1, 3, 3), np.float32)
    logits[0, 0, row, column] = 1.0
    expected = np.zeros((2, 1, 3, 3))
    expected[0, 0, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 1.0
    refined = body(logits, alike(logits), everywhere(logits), 1, ZETA)
    assert np.array_equal(refined, expected.astype(np.float32))


def test_half_a_pixel_in_the_box_pays_ln_2_at_each_step(body: Body) -> None:
    logits, half = grid([[1.0]]), grid([[0.5]])
    p = 0.5 / (1 + np.exp(-1.0))
    start = np.log(p / (1 - p))
    assert close(body(logits, alike(logits), half, 0, ZETA), [[start]])
    assert close(body(logits, alike(logits), half, 1, ZETA), [[start - np.log(2)]])
    assert close(body(logits, alike(logits), half, 2, ZETA), [[start - 2 * np.log(2)]])


def test_iterations_0_is_the_clamped_start(body: Body) -> None:
    logits = grid([[9.0, -9.0, np.inf, -np.inf, 0.25]])
    expected = [[LIMIT, -LIMIT, LIMIT, -LIMIT, 0.25]]
    assert close(body(logits, alike(logits), everywhere(logits), 0, ZETA), expected)


def test_outside_the_box_is_background_however_loud_its_neighbours(body: Body) -> None:
    logits = np.full((1, 1, 3, 3), 5.0, np.float32)
    inside = everywhere(logits)
    inside[0, 0, 1, 1] = 0
    refined = body(logits, alike(logits), inside, 1, ZETA)
    assert refined[0, 0, 1, 1] == pytest.approx(-LIMIT)
    assert (np.delete(refined.ravel(), 4) > 0).all()


def test_each_crop_has_its_own_inside(body: Body) -> None:
    logits = np.ones((2, 1, 2, 2), np.float32)
    inside = np.stack([np.ones((1, 2, 2)), np.zeros((1, 2, 2))]).astype(np.float32)
    refined = body(logits, alike(logits), inside, 1, ZETA)
    assert (refined[0] > 0).all()
    assert (refined[1] < 0).all()


def test_odd_values_have_a_meaning(body: Body) -> None:
    nan, inf = np.nan, np.inf
    # A logit that is NaN has no opinion, and hears its neighbours.
    logits = grid([[nan, 1.0]])
    assert close(body(logits, alike(logits), everywhere(logits), 1, ZETA), [[1.0, 1.0]])
    # A colour that is not finite resembles no other.
    for colour in (nan, inf, -inf):
        logits = grid([[1.0, 0.5, 0.25]])
        guide = alike(logits)
        guide[0, 2, 0, 1] = colour
        assert close(body(logits, guide, everywhere(logits), 1, ZETA), [[1.0, 0.5, 0.25]])
    # `inside` is clamped to 0..1, and NaN is outside.
    logits = grid([[1.0, 1.0, 1.0]])
    guide = alike(logits)
    guide[0, 0, 0] = [0.0, 5.0, 10.0]
    assert close(body(logits, guide, grid([[2.0, -1.0, nan]]), 1, ZETA), [[1.0, -LIMIT, -LIMIT]])


@pytest.mark.parametrize("shape", [(0, 1, 4, 5), (1, 1, 1, 1), (3, 1, 1, 7), (2, 1, 9, 1), (2, 1, 33, 65)])
@pytest.mark.parametrize("name", ["torch", "kernel", "onnx"])
def test_any_shape(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    body = find_body(name)
    logits = rng.normal(size=shape).astype(np.float32)
    guide = rng.normal(scale=0.2, size=(shape[0], 3, *shape[2:])).astype(np.float32)
    inside = rng.uniform(0.2, 1, (1, 1, *shape[2:])).astype(np.float32)
    refined = body(logits, guide, inside, 2, ZETA)
    assert refined.dtype == np.float32
    assert np.allclose(refined, reference.crf_refine(logits, guide, inside, 2, ZETA), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["judge", "torch", "kernel"])
@pytest.mark.parametrize(
    ("shapes", "iterations", "zeta", "message"),
    [
        (((1, 4, 4), (1, 3, 4, 4), (1, 1, 4, 4)), 1, 0.1, "logits must be"),
        (((1, 2, 4, 4), (1, 3, 4, 4), (1, 1, 4, 4)), 1, 0.1, "logits must be"),
        (((1, 1, 0, 4), (1, 3, 0, 4), (1, 1, 0, 4)), 1, 0.1, "logits must be"),
        (((2, 1, 4, 4), (1, 3, 4, 4), (1, 1, 4, 4)), 1, 0.1, "guide must be"),
        (((2, 1, 4, 4), (2, 3, 4, 5), (1, 1, 4, 4)), 1, 0.1, "guide must be"),
        (((3, 1, 4, 4), (3, 3, 4, 4), (2, 1, 4, 4)), 1, 0.1, "inside must be"),
        (((1, 1, 4, 4), (1, 3, 4, 4), (1, 1, 4, 4)), -1, 0.1, "iterations must be"),
        (((1, 1, 4, 4), (1, 3, 4, 4), (1, 1, 4, 4)), 1, 0.0, "zeta must be"),
        (((1, 1, 4, 4), (1, 3, 4, 4), (1, 1, 4, 4)), 1, float("nan"), "zeta must be"),
    ],
)
def test_bad_arguments(
    name: str, shapes: tuple[tuple[int, ...], ...], iterations: int, zeta: float, message: str
) -> None:
    body = find_body(name)
    logits, guide, inside = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ShapeError, match=message):
        body(logits, guide, inside, iterations, zeta)


# What the judge must obey, whatever the scene.


@pytest.mark.parametrize("turn", ["flip", "upside", "transpose"])
def test_judge_does_not_know_left_from_right(turn: str, rng: np.random.Generator) -> None:
    scene = smooth_scene(rng, 2, 24, 24)
    moved = {
        "flip": lambda a: a[..., ::-1],
        "upside": lambda a: a[..., ::-1, :],
        "transpose": lambda a: a.swapaxes(2, 3),
    }[turn]
    straight = moved(reference.crf_refine(*scene, 20, ZETA))
    turned = reference.crf_refine(*(moved(array) for array in scene), 20, ZETA)
    assert np.allclose(straight, turned, rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_judge_nothing_inside_nothing_found(seed: int, iterations: int) -> None:
    logits, guide, inside = smooth_scene(np.random.default_rng(seed), 1, 12, 12)
    refined = reference.crf_refine(logits, guide, 0 * inside, iterations, ZETA)
    assert np.allclose(refined, -LIMIT)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_judge_with_no_tolerance_for_colour_changes_nothing(seed: int, iterations: int) -> None:
    logits, guide, inside = smooth_scene(np.random.default_rng(seed), 1, 12, 12)
    refined = reference.crf_refine(logits, guide, np.ones_like(inside), iterations, 1e-6)
    assert np.allclose(refined, np.clip(logits, -LIMIT, LIMIT), rtol=0, atol=1e-5)


def test_judge_one_colour_counts_every_vote_alike(rng: np.random.Generator) -> None:
    logits = rng.normal(size=(1, 1, 16, 16)).clip(-LIMIT, LIMIT)
    votes = sum(np.pad(logits[0, 0], 1)[y : y + 16, x : x + 16] for y in range(3) for x in range(3))
    refined = reference.crf_refine(logits, alike(logits), everywhere(logits), 1, ZETA)
    assert np.allclose(refined[0, 0], np.clip(votes, -LIMIT, LIMIT), rtol=0, atol=1e-12)
    # Lone dissenters are outvoted.
    logits = np.where(np.arange(256).reshape(1, 1, 16, 16) % 11 == 0, -2.0, 1.0)
    assert (reference.crf_refine(logits, alike(logits), everywhere(logits), 3, ZETA) > 0).all()


def test_judge_agrees_with_the_probability_form(rng: np.random.Generator) -> None:
    differ = cells = 0
    for _ in range(8):
        scene = smooth_scene(rng, 4, 48, 48)
        mask = reference.crf_refine(*scene, 100, ZETA) > 0
        second = reference.crf_refine_probability(*scene, 100, ZETA) > 0.5
        differ, cells = differ + int((mask != second).sum()), cells + mask.size
    print(f"log-odds against probabilities: {differ} of {cells} cells differ")
    # The 1e-6 in the denominator decides where the two classes tie.
    assert differ <= 1e-4 * cells


def test_a_tie_is_background_in_both_forms() -> None:
    logits = grid([[1.0, -1.0]])
    arguments = (logits, alike(logits), everywhere(logits), 1, ZETA)
    assert not (reference.crf_refine(*arguments) > 0).any()
    assert not (reference.crf_refine_probability(*arguments) > 0.5).any()
