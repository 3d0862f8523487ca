"""What every body of `mal::CRFRefine` agrees on: the arguments, the constants, the odd values.

    logits  (B, 1, h, w)       raw log-odds of the network
    guide   (B, 3, h, w)       the crop's colours in normalised units
    inside  (1 or B, 1, h, w)  how much of a pixel lies in the box, 0..1
    ->      (B, 1, h, w)       refined log-odds, within ±ln 9

Defined for every body alike:

* B = 0 gives an empty result; h, w >= 1 are free; iterations = 0 gives the start state.
* A logit that is NaN has no opinion (0). Infinite logits are certain.
* A colour that is not finite resembles no other: its weights are 0.
* `inside` is clamped to 0..1; NaN counts as 0, which is background.
"""

import math

from mal.errors import ShapeError

# The start state is clamped to these probabilities; every step to the same bounds as log-odds.
# Source: reference notes on MAL, 4.2 (0.1 and 0.9, the author's thresholds).
LOW, HIGH = 0.1, 0.9
LIMIT = math.log(9.0)

# Half of the 3x3 window; k(p, q) = k(q, p) gives the other half. (rows down, columns right)
HALF_WINDOW = ((0, 1), (1, -1), (1, 0), (1, 1))

Shape = tuple[int, ...]


def check(logits: Shape, guide: Shape, inside: Shape, iterations: int, zeta: float) -> None:
    """Check the arguments' shapes and the attributes.

    Raises:
        ShapeError: shapes that do not belong together, iterations < 0, or zeta not a positive number.
    """
    if len(logits) != 4 or logits[1] != 1 or logits[2] < 1 or logits[3] < 1:
        raise ShapeError(f"logits must be (B, 1, h, w) with h, w >= 1, got {logits}")
    batch, _, height, width = logits
    if guide != (batch, 3, height, width):
        raise ShapeError(f"guide must be {(batch, 3, height, width)} to go with logits {logits}, got {guide}")
    if inside not in {(1, 1, height, width), (batch, 1, height, width)}:
        raise ShapeError(
            f"inside must be (1 or {batch}, 1, {height}, {width}) to go with logits {logits}, got {inside}"
        )
    if iterations < 0:
        raise ShapeError(f"iterations must be >= 0, got {iterations}")
    if not (zeta > 0 and math.isfinite(zeta)):
        raise ShapeError(f"zeta must be a positive number, got {zeta}")
