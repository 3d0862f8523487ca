"""What INT8 costs: the best way to measure ranges, the price of each layer, and which layers to keep in float.

A cost is the share of the masks that is lost on the trial crops: 1 - mean mask-IoU with the FP32 network.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from mal.calibration.quantise import Scheme, layers, quantise
from mal.calibration.ranges import METHODS, measure

Cost = Callable[[ModelProto], float]
"""Unrefined network -> share of the masks lost, 0..1. The gate gives it, so what is searched is what the gate asks."""


@dataclass(frozen=True)
class Calibration:
    """A calibrated network, ready to be quantised with more or fewer layers kept in float."""

    model: ModelProto  # unrefined, FP32
    scheme: Scheme
    method: str
    ranges: Any
    tried: dict[str, float]  # method -> cost of quantising every layer
    costs: dict[str, float]  # layer -> cost of quantising this one alone, dearest first

    def steps(self) -> Iterator[tuple[str, ...]]:
        """Layers to keep in float: none, then the dearest 1, 2, 4, …, at most half of all."""
        names, count = tuple(self.costs), 0
        while 2 * count <= len(names):
            yield names[:count]
            count = max(1, 2 * count)

    def quantised(self, kept: tuple[str, ...]) -> ModelProto:
        """The network in INT8, except the layers `kept`."""
        return quantise(self.model, self.ranges, self.scheme, kept)

    def to_json(self, kept: tuple[str, ...]) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {
            "scheme": self.scheme.name,
            "method": self.method,
            "cost_by_method": self.tried,
            "kept_in_float": list(kept),
            "cost_by_layer": self.costs,
        }

    def text(self, kept: tuple[str, ...]) -> str:
        """Two lines: ranges, and layers."""
        tried = "  ".join(f"{method} {cost:.4f}" for method, cost in self.tried.items())
        dearest = "  ".join(f"{name} {cost:.4f}" for name, cost in list(self.costs.items())[:3])
        left = f"kept in float: {', '.join(kept)}" if kept else "all in INT8"
        return (
            f"ranges  {self.method}; masks lost on the trial crops: {tried}\n"
            f"layers  {len(self.costs)}, {left}; the dearest, each alone: {dearest}"
        )


def calibrate(model: ModelProto, crops: NDArray[np.float32], scheme: Scheme, cost: Cost) -> Calibration:
    """Measure ranges in every way, take the cheapest, and price each layer.

    Args:
        model: unrefined FP32 graph.
        crops: (N, 3, S, S) float32, the ranges' crops.
        scheme: for what the file is.
        cost: of a quantised network, on other crops.
    """
    measured = {method: measure(model, crops, method) for method in METHODS}
    tried = {method: cost(quantise(model, ranges, scheme)) for method, ranges in measured.items()}
    method = min(tried, key=lambda name: tried[name])
    names, ranges = list(layers(model)), measured[method]
    alone = {name: cost(quantise(model, ranges, scheme, [other for other in names if other != name])) for name in names}
    costs = dict(sorted(alone.items(), key=lambda item: -item[1]))
    return Calibration(model, scheme, method, ranges, tried, costs)
