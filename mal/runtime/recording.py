"""The loop of a labelling run: what a crew finishes goes into the journal, and the progress is told."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mal.errors import Interrupted
from mal.runtime.blocks import Block, BlockWork
from mal.runtime.crew import Crew, Todo
from mal.runtime.interrupt import stop_requested
from mal.runtime.journal import SKIPPED, Journal
from mal.runtime.progress import Progress
from mal.runtime.stages import Stages
from mal.runtime.worker import Labelled

Check = Callable[[Labelled], None]


class Recording:
    """Has a crew label the blocks that a journal does not hold yet.

    Attributes:
        resumed: objects that an earlier, unfinished run had done.
        first_mask_at: `time.perf_counter` of the first mask.
        speed: objects/s of this process, from the first image to the last mask.
    """

    def __init__(self, journal: Journal, blocks: Sequence[Block], image_rows: NDArray[np.int32]) -> None:
        self._journal, self._blocks, self._image_rows = journal, blocks, image_rows
        self._done = {block.index: journal.resume(block.index) for block in blocks}
        self.resumed = sum(self._done.values())
        self.first_mask_at: float | None = None
        self.speed = 0.0

    def run(
        self,
        crew: Crew,
        work_of: Callable[[Block, int], BlockWork],
        stages: Stages,
        progress: Progress,
        check: Check | None = None,
    ) -> None:
        """Label.

        Args:
            crew: who.
            work_of: (block, objects of it that are done) -> what is left of it.
            stages: where the journal's time is added.
            progress: told of each result.
            check: called with each result before it is kept; may raise.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the journal keeps what is done.
            MalError: as the crew's.
        """
        total, objects = sum(map(len, self._blocks)), 0
        started = time.perf_counter()
        progress.begin(self.resumed)
        with stop_requested() as stop:
            for labelled in crew.run(Todo(self._blocks, self._done, work_of), stop):
                if check:
                    check(labelled)
                block, record = self._blocks[labelled.block], labelled.record
                with stages.time("journal"):
                    self._journal.append(block.index, record, last=record.stop == len(block))
                count, skipped = record.stop - record.start, int((record.entries["kind"] == SKIPPED).sum())
                if self.first_mask_at is None and count > skipped:
                    self.first_mask_at = time.perf_counter()
                objects += count
                first = block.start + record.start
                progress.advance(count, self._images(first, first + count), skipped, labelled.fill)
            if stop() and self.resumed + objects < total:
                raise Interrupted(
                    f"stopped after {self.resumed + objects:,} of {total:,} boxes; "
                    "the same command goes on, without --fresh"
                )
        self.speed = objects / (time.perf_counter() - started)

    def _images(self, first: int, stop: int) -> int:
        """Images whose last object is one of first..stop."""
        rows = self._image_rows[first : stop + 1]
        return int(np.count_nonzero(rows[1:] != rows[:-1])) + (stop == len(self._image_rows))
