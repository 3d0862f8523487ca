import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.evaluation.ranking import auc, ranks, spearman


def test_ties_share_the_mean_rank() -> None:
    assert ranks(np.array([5.0, 1.0, 5.0, 5.0, 9.0])).tolist() == [3, 1, 3, 3, 5]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 99], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        # Ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 * (1 + 1 + 1 + 1) / (5 * 24).
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),
        # Ranks 1.5 1.5 3 and 1 2 3: covariance 1.5, variances 1.5 and 2.
        ([7, 7, 8], [1, 2, 3], 1.5 / np.sqrt(1.5 * 2)),
    ],
)
def test_spearman_by_hand(a: list[float], b: list[float], expected: float) -> None:
    assert spearman(np.array(a, float), np.array(b, float)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_spearman_of_nothing_to_rank(values: list[float]) -> None:
    assert spearman(np.array(values), np.array(values)) is None


def test_auc_by_hand() -> None:
    # Pairs (good, bad): .9 beats .5 and .1; .5 ties with .5 and beats .1: 3.5 of 4.
    assert auc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])) == pytest.approx(3.5 / 4)


def test_auc_needs_both_kinds() -> None:
    assert auc(np.array([0.1, 0.2]), np.array([True, True])) is None
    assert auc(np.array([]), np.array([], bool)) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_auc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]

    area = auc(scores, positive)

    assert area is None if not pairs else area == pytest.approx(np.mean(pairs))
