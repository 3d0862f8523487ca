"""Tell how far a run is: a bar on a terminal, JSON lines with `--log-json`, otherwise one line at the start."""

import json
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

_LOG_SECONDS = 5.0


class Progress:
    """Use as a context manager around the run.

    Args:
        total: objects of the input.
        log_json: events as JSON lines on stderr instead of a bar: `start`, `progress` every 5 s, and `end` with how it
            ended: "done", or the name of an error.
        quiet: nothing at all.
    """

    def __init__(self, total: int, log_json: bool, quiet: bool = False) -> None:
        self._total = total
        self._quiet = quiet
        self._first = self._done = self._images = self._skipped = 0
        self._fill = 0.0
        self._log_json = log_json
        self._started = self._logged = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not (self._log_json or self._quiet) and sys.stderr.isatty():
            # rich takes 0.1 s to import: only where it is seen.
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.completed:,}/{task.total:,} boxes"),
                BarColumn(),
                TextColumn("{task.fields[said]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("label", total=self._total, said="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self._log_json:
            self.say("end", "", how=kind.__name__ if kind else "done", message=str(error or ""), **self._state())

    def begin(self, done: int) -> None:
        """Work starts; an earlier run has finished so many objects."""
        self._first = self._done = done
        self._started = self._logged = time.monotonic()

    def say(self, event: str, text: str, **values: Any) -> None:
        """One line on stderr: `text`, or the event with its values as JSON."""
        if self._quiet:
            return
        if self._log_json:
            text = json.dumps({"time": round(time.time(), 3), "event": event, **values})
        else:
            text = f"mal: {text}"
        with suppress(OSError):  # nobody reads it any more, or its file is full: no reason to stop labelling
            print(text, file=sys.stderr, flush=True)

    def advance(self, objects: int, images: int, skipped: int, fill: float) -> None:
        """So many more objects and images are finished.

        Args:
            objects: how many.
            images: how many images had their last object among them.
            skipped: objects of them without a mask.
            fill: of the pipeline's queue, 0..1; 0: the session waits for the host.
        """
        self._done += objects
        self._images += images
        self._skipped += skipped
        self._fill = fill
        if self._bar:
            state = self._state()
            said = (
                f"{state['boxes_per_s']:,.0f} boxes/s  {state['images_per_s']:,.1f} images/s  queue {fill:.0%}  "
                f"{self._skipped:,} skipped  {_clock(state['eta_s'])} left"
            )
            self._bar.update(self._task, completed=self._done, said=said)
        if self._log_json and time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            self.say("progress", "", **self._state())

    def _state(self) -> dict[str, Any]:
        """Counts of the whole run; speeds, and the time left by them, of this process alone."""
        seconds = max(time.monotonic() - self._started, 1e-6)
        speed = (self._done - self._first) / seconds
        return {
            "done": self._done,
            "total": self._total,
            "resumed": self._first,
            "skipped": self._skipped,
            "boxes_per_s": round(speed, 1),
            "images_per_s": round(self._images / seconds, 2),
            "queue_fill": round(self._fill, 2),
            "eta_s": round((self._total - self._done) / speed, 1) if speed else None,
        }


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
