"""Tell how far a run is: a bar on a terminal, JSON lines with `--log-json`, otherwise one line at the start."""

import json
import sys
import time
from types import TracebackType
from typing import Any, Self

_LOG_SECONDS = 5.0


class Progress:
    """Use as a context manager around the run.

    Args:
        total: objects of the input.
        log_json: events as JSON lines on stderr instead of a bar.
    """

    def __init__(self, total: int, log_json: bool) -> None:
        self._total = total
        self._first = self._done = 0
        self._skipped = 0
        self._log_json = log_json
        self._started = self._logged = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not self._log_json and sys.stderr.isatty():
            # rich takes 0.1 s to import: only where it is seen.
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.completed:,}/{task.total:,} boxes"),
                BarColumn(),
                TextColumn("{task.fields[speed]:,.0f} boxes/s"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[skipped]:,} skipped"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("label", total=self._total, speed=0.0, skipped=0)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, done: int) -> None:
        """Work starts; an earlier run has finished so many objects."""
        self._first = self._done = done
        self._started = self._logged = time.monotonic()

    def say(self, event: str, text: str, **values: Any) -> None:
        """One line on stderr: `text`, or the event with its values as JSON."""
        if self._log_json:
            print(json.dumps({"time": round(time.time(), 3), "event": event, **values}), file=sys.stderr, flush=True)
        else:
            print(f"mal: {text}", file=sys.stderr)

    def advance(self, objects: int, skipped: int) -> None:
        """So many more objects are finished, so many of them without a mask."""
        self._done += objects
        self._skipped += skipped
        now = time.monotonic()
        speed = (self._done - self._first) / max(now - self._started, 1e-6)
        if self._bar:
            self._bar.update(self._task, completed=self._done, speed=speed, skipped=self._skipped)
        if self._log_json and now - self._logged >= _LOG_SECONDS:
            self._logged = now
            left = (self._total - self._done) / speed if speed else None
            self.say(
                "progress", "", done=self._done, total=self._total, boxes_per_s=round(speed, 1),
                skipped=self._skipped, eta_s=None if left is None else round(left, 1),
            )  # fmt: skip
