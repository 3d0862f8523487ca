"""Resident memory of one process over many batches: its slope, and whether that is more than noise.

    python -m benchmarks.soak --batches 100000

One `MaskLabeler` labels generated images in a stream. The student's place is taken by a session that costs nothing, so
that all else runs as often as possible: threads, queues, crops, masks, results.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mal.config import ModelConstants
from mal.runtime import labeler as labeler_module
from mal.runtime.labeler import MaskLabeler

BATCH = 4
SIZE = 64
SAMPLES = 200


class Free:
    """A session that answers at once."""

    constants = ModelConstants(backbone="none", size=SIZE)
    model_id, backend, device, threads, lanes, auto_batch = "0" * 12, "none", "cpu", 1, 1, BATCH

    def run(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return crops[:, 0, ::4, ::4] - 127, np.full(len(crops), 0.5, np.float32)

    def allocate(self, batch: int) -> np.ndarray:
        return np.empty((batch, 3, SIZE, SIZE), np.float32)

    def close(self) -> None:
        pass


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def pairs(batches: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images of changing size, four boxes each: a batch."""
    rng = np.random.default_rng(0)
    for _ in range(batches):
        height, width = rng.integers(60, 200, 2).tolist()
        corner = rng.uniform(0, 40, (BATCH, 2))
        image = np.empty((height, width, 3), np.uint8)
        image[:] = rng.integers(0, 255, 3, dtype=np.uint8)
        yield image, np.hstack([corner, corner + rng.uniform(5, 60, (BATCH, 2))])


def soak(batches: int) -> dict[str, float | int | str]:
    """Label so many batches; the slope of resident memory over their second half, in bytes a batch."""
    labeler_module.open_session = lambda *some, **more: Free()  # pyright: ignore
    at: list[int] = []
    memory: list[float] = []
    step = max(1, batches // SAMPLES)
    started = time.monotonic()
    with MaskLabeler(workers=2, batch=BATCH) as labeler:
        for number, result in enumerate(labeler.stream(pairs(batches))):
            assert len(result.scores) == BATCH
            if number % step == 0:
                at.append(number)
                memory.append(resident_mb())
    half = len(at) // 2  # before that, allocators still learn how much they need
    x, y = np.array(at[half:], float), np.array(memory[half:])
    slope, offset = np.polyfit(x, y, 1)
    noise = float(np.std(y - (slope * x + offset)))
    grown = float(slope * (x[-1] - x[0]))
    return {
        "batches": batches,
        "minutes": round((time.monotonic() - started) / 60, 2),
        "resident_mb_at_half": round(float(y[0]), 1),
        "resident_mb_at_end": round(float(y[-1]), 1),
        "slope_bytes_a_batch": round(float(slope) * 1e6, 2),
        "grown_mb": round(grown, 2),
        "noise_mb": round(noise, 2),
        "verdict": "flat" if grown <= max(2 * noise, 1.0) else "grows",
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=2000)
    found = soak(parser.parse_args().batches)
    print(json.dumps(found))
    sys.exit(found["verdict"] != "flat")


if __name__ == "__main__":
    main()
