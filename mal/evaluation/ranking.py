"""Does one number rank objects as another does? Spearman's correlation and the area under the ROC curve, with ties."""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def ranks(values: Values) -> Values:
    """Ranks 1..N of (N,) values; equal values share the mean of their ranks.

    >>> ranks(np.array([10.0, 30.0, 10.0])).tolist()
    [1.5, 3.0, 1.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def spearman(a: Values, b: Values) -> float | None:
    """Pearson correlation of the ranks of two (N,) arrays, -1..1; None where either is constant or N < 2."""
    if len(a) < 2:
        return None
    x, y = ranks(a) - (len(a) + 1) / 2, ranks(b) - (len(b) + 1) / 2
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread > 0 else None


def auc(scores: Values, positive: NDArray[np.bool_]) -> float | None:
    """Probability that a positive object outscores a negative one, a tie counting half: 0..1.

    Args:
        scores: (N,) numbers, higher means more positive.
        positive: (N,) the truth.

    Returns:
        None where one of the two kinds is missing.

    Source: Mann and Whitney, 1947: the area under the ROC curve is U / (positives x negatives).
    """
    good, bad = int(positive.sum()), int((~positive).sum())
    if not good or not bad:
        return None
    return float((ranks(scores)[positive].sum() - good * (good + 1) / 2) / (good * bad))
