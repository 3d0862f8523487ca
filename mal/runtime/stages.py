"""Where the time goes: seconds a stage, summed over threads."""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

# In the order the data travels. `wait` is the main thread without a batch: the device waits for the host.
STAGES = ("scan", "read", "crop", "pack", "wait", "session", "mask", "journal", "merge")
HOST_STAGES = ("read", "crop", "pack", "mask")


class Stages:
    """Adds up seconds by stage; any thread may add."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def time(self, stage: str) -> Generator[None]:
        """Add the wall-clock seconds of the block to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                self.seconds[stage] += spent

    def bound(self) -> str:
        """What holds everything else up: the session, or the largest host stage if the session waited more."""
        if self.seconds["session"] >= self.seconds["wait"]:
            return "session"
        return max(HOST_STAGES, key=lambda stage: self.seconds[stage])
