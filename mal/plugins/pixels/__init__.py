"""Crops, masks and run lengths for the pipeline: compiled where the library is there, else `mal.crops` and `mal.masks`.

Both bodies give the same masks and run lengths, byte for byte, and crops within one grey level. Nothing is compiled
here: the library comes with the wheel, with an installation from source where a C++ compiler is, or by
`mal plugins build`.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mal import crops, masks
from mal.config import Fill
from mal.errors import MissingPackageError
from mal.masks import BoxMask
from mal.plugins.host_library import find_host

_Cut = Callable[[NDArray[np.uint8], NDArray[np.float64], Fill, NDArray[np.float32]], None]
_Decide = Callable[[NDArray[np.float32], NDArray[np.float64], float], list[BoxMask]]
_Runs = Callable[
    [NDArray[np.float32], NDArray[np.float64], float, Sequence[tuple[int, int]]], tuple[list[bytes], NDArray[np.int64]]
]


class Pixels(NamedTuple):
    """One body of the three steps."""

    name: str
    """"compiled" or "numpy"."""
    cut_into: _Cut
    """As `mal.crops.cut_into`."""
    masks_from_logits: _Decide
    """As `mal.masks.masks_from_logits`."""
    runs_from_logits: _Runs
    """As `mal.masks.runs_from_logits`."""


NUMPY = Pixels("numpy", crops.cut_into, masks.masks_from_logits, masks.runs_from_logits)


@cache
def pixels() -> Pixels:
    """The fastest body that is there."""
    if find_host() is None:
        return NUMPY
    from mal.plugins.pixels.compiled import COMPILED, host

    try:
        host()
    except MissingPackageError:
        return NUMPY
    return COMPILED
