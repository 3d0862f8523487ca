"""Ranges of the activations: what a network's layers see on the calibration crops."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from mal.calibration.quantise import ACTIVATIONS, LAYERS, quiet

METHODS: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "min-max": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"percentile": 99.99}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 128}),
}
"""All that a tensor held; all but its most extreme 1 of 10,000 values at each end; what keeps its histogram."""

_TOGETHER = 8  # crops whose activations are in memory at once: 40 MB each for MobileNetV2 at 192 x 192


def measure(model: ModelProto, crops: NDArray[np.float32], method: str) -> Any:
    """Ranges of all tensors that layers read or write, as ONNX Runtime's quantiser takes them.

    Args:
        model: unrefined FP32 graph.
        crops: (N, 3, S, S) float32 RGB 0..255.
        method: a key of `METHODS`.
    """
    kind, options = METHODS[method]
    with TemporaryDirectory() as folder, quiet():
        plain = Path(folder) / "network.onnx"
        onnx.save(model, plain)
        calibrator: Any = create_calibrator(
            plain,
            [*LAYERS, *ACTIVATIONS],
            str(Path(folder) / "calibrator.onnx"),
            kind,
            extra_options={"symmetric": False, **options},
        )
        for first in range(0, len(crops), _TOGETHER):
            calibrator.collect_data(_Reader(crops[first : first + _TOGETHER]))
        return calibrator.compute_data()


class _Reader(CalibrationDataReader):
    """One batch, as the calibrator asks for it."""

    def __init__(self, crops: NDArray[np.float32]) -> None:
        self._batches: Iterator[dict[str, Any]] = iter([{"crops": crops}])

    def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return next(self._batches, None)
