"""Where the time goes: seconds a stage, summed over threads.

Two clocks: `seconds` on the wall, which include waiting for a disk or for a processor that others use, and
`cpu_seconds` of the threads themselves, which do not. The session's own threads are in neither of its CPU times.
"""

import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager

# In the order the data travels. `wait` is the session without a batch: the device waits for the host.
STAGES = ("scan", "read", "crop", "wait", "session", "mask", "journal", "merge")
HOST_STAGES = ("read", "crop", "mask")


class Stages:
    """Adds up seconds by stage; any thread may add."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.cpu_seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def time(self, stage: str) -> Generator[None]:
        """Add the seconds of the block to `stage`."""
        start, cpu_start = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start, time.thread_time() - cpu_start)

    def add(self, stage: str, seconds: float, cpu_seconds: float = 0.0) -> None:
        """Add seconds on the wall and of the processor to `stage`."""
        with self._lock:
            self.seconds[stage] += seconds
            self.cpu_seconds[stage] += cpu_seconds

    def include(self, seconds: dict[str, float], cpu_seconds: dict[str, float]) -> None:
        """Add what somebody else has added up."""
        for stage in STAGES:
            self.add(stage, seconds[stage], cpu_seconds[stage])

    def table(self) -> dict[str, dict[str, float]]:
        """Both clocks of each stage, to the millisecond: {"read": {"seconds": 1.2, "cpu_seconds": 0.9}, ...}."""
        return {
            stage: {"seconds": round(self.seconds[stage], 3), "cpu_seconds": round(self.cpu_seconds[stage], 3)}
            for stage in STAGES
        }

    def bound(self) -> str:
        """What holds everything else up: the session, or the largest host stage if the session waited more."""
        if self.seconds["session"] >= self.seconds["wait"]:
            return "session"
        return max(HOST_STAGES, key=lambda stage: self.seconds[stage])


def stage_lines(table: Mapping[str, Mapping[str, float]], boxes: int, bound: str) -> list[str]:
    """The table as text, with milliseconds a box; an arrow at the stage that holds everything up.

    Args:
        table: as `Stages.table`.
        boxes: over which the time went.
        bound: as `Stages.bound`.
    """
    lines = [f"  {'stage':<8} {'seconds':>9} {'ms a box':>9} {'processor':>10} {'ms a box':>9}"]
    for stage, spent in table.items():
        wall, cpu = spent["seconds"], spent["cpu_seconds"]
        a_box = 1000 / max(1, boxes)
        arrow = "  <- the bottleneck" if stage == bound else ""
        lines.append(f"  {stage:<8} {wall:9.2f} {wall * a_box:9.3f} {cpu:10.2f} {cpu * a_box:9.3f}{arrow}")
    return lines
