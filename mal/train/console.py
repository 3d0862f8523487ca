"""What a training tells while it runs: lines and progress bars on stderr."""

import sys
from collections.abc import Generator
from contextlib import contextmanager

from mal.train.samples import Tick


@contextmanager
def bar(title: str) -> Generator[Tick]:
    """A progress bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def tick(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield tick


def say(line: str) -> None:
    """One line for the user."""
    print(line, file=sys.stderr, flush=True)
