"""How far TensorRT is with an engine, as bars on a terminal; and Ctrl-C, which nothing else could hand to it."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from mal.runtime.interrupt import stop_requested


@contextmanager
def monitor_build(trt: Any, config: Any) -> Generator[Callable[[], bool]]:
    """Watch the build that is run with `config`.

    Yields:
        What tells whether Ctrl-C has stopped it.
    """
    bars = _bars()
    # A signal sets a flag here: KeyboardInterrupt out of a method that TensorRT calls would end the process.
    with stop_requested() as stop:
        monitor = _monitor(trt, bars, stop)
        config.progress_monitor = monitor
        try:
            yield stop
        finally:
            if bars:
                bars.stop()


def _bars() -> Any:
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    bars.start()
    return bars


def _monitor(trt: Any, bars: Any, stop: Callable[[], bool]) -> Any:
    class Monitor(trt.IProgressMonitor):
        """TensorRT calls it, from any of its threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._tasks: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if bars:
                self._tasks[phase_name] = bars.add_task(phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if bars and phase_name in self._tasks:
                bars.update(self._tasks[phase_name], completed=step + 1)
            return not stop()  # False ends the build

        def phase_finish(self, phase_name: str) -> None:
            if bars and phase_name in self._tasks:
                bars.remove_task(self._tasks.pop(phase_name))

    return Monitor()
