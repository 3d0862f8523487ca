"""A worker: a session with its pipeline, and blocks in, records out. The same in this process, in another, on Ray."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mal.config import ModelConstants
from mal.errors import MalError
from mal.plugins.pixels import pixels
from mal.runtime.batches import Batch
from mal.runtime.blocks import BlockWork, cut_pieces, load_image
from mal.runtime.journal import Record
from mal.runtime.live import Live
from mal.runtime.objects import Piece
from mal.runtime.pipeline import DEFAULT_BUDGET, Pipeline
from mal.runtime.results import Format, record_of
from mal.runtime.session import Session, open_session
from mal.runtime.session_threads import SESSION_TIMEOUT
from mal.runtime.stages import Stages
from mal.runtime.versions import versions
from mal.sources import ImageSource, open_source

BLOCKS_AHEAD = 2  # a worker has: one in work, and the next, so that its session never waits for a block


@dataclass(frozen=True)
class Job:
    """What all workers of a run have in common."""

    model: str | Path
    images: str  # address of their source
    batch: int | None  # crops a call; None: what suits the session
    workers: int  # host threads of each
    threads: int | None  # CPU threads of each session; None: every processor
    format: Format
    allow_outside: bool
    trust: bool
    budget: float = DEFAULT_BUDGET
    timeout: float = SESSION_TIMEOUT


class Ready(NamedTuple):
    """A worker's first word: what it labels with."""

    model_id: str
    constants: ModelConstants
    backend: str
    device: str
    threads: int
    pixels: str  # body of crops and masks: compiled or numpy
    batch: int
    version: str  # of mal

    @property
    def device_kind(self) -> str:
        """Of one device or of several: "cuda" for cuda:0,cuda:1."""
        return self.device.partition(",")[0].partition(":")[0]

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides the bytes; alike for all workers of a run."""
        return (
            self.model_id,
            self.constants,
            self.backend,
            self.device_kind,
            self.pixels,
            self.batch,
            self.version,
        )


class Labelled(NamedTuple):
    """Results of consecutive objects of a block."""

    block: int
    record: Record
    fill: float  # of the pipeline


class Closing(NamedTuple):
    """A worker's last word."""

    seconds: dict[str, float]  # of each stage
    cpu_seconds: dict[str, float]
    limit: int  # crops that a call of the session took in the end


class Stop(NamedTuple):
    """To a worker: finish the batches in flight, and no more."""


Message = Ready | Labelled | Closing | MalError


class Worker:
    """Labels blocks. The session is the worker's, who closes it."""

    def __init__(self, session: Session, source: ImageSource, job: Job) -> None:
        self.stages = Stages()
        batch = job.batch or session.auto_batch
        self.ready = Ready(
            session.model_id, session.constants, session.backend, session.device, session.threads, pixels().name,
            batch, versions(())["mal"],
        )  # fmt: skip
        self._session, self._job = session, job
        self._load = partial(load_image, source=source, constants=session.constants, allow_outside=job.allow_outside)
        self._pipeline = Pipeline(
            session, batch=batch, workers=job.workers, stages=self.stages, budget=job.budget, timeout=job.timeout
        )
        self.wake = self._pipeline.wake

    def run(self, works: Iterable[BlockWork | None], stop: Callable[[], bool]) -> Iterator[Labelled]:
        """Label blocks, one after the other.

        Args:
            works: the blocks; None: none yet, `wake` will be called.
            stop: as for `Pipeline.run`.
        """
        for block, record in self._pipeline.run(self._pieces(works), self._finish, stop):
            yield Labelled(block, record, self._pipeline.fill)

    def closing(self) -> Closing:
        """The worker's last word."""
        return Closing(self.stages.seconds, self.stages.cpu_seconds, self._pipeline.limit)

    def _pieces(self, works: Iterable[BlockWork | None]) -> Iterator[Piece | None]:
        for work in works:
            if work is None:
                yield None
            else:
                yield from cut_pieces(work, self._load)

    def _finish(self, batch: Batch, logits: NDArray[np.float32], scores: NDArray[np.float32]) -> tuple[int, Record]:
        expansion = self._session.constants.expansion
        return batch.spans[0].piece.origin[0], record_of(batch, logits, scores, expansion, self._job.format)


def serve(job: Job, device: str | None, receive: Callable[[], "BlockWork | Stop | None"]) -> Iterator[Message]:
    """A worker far away: what it has to say.

    Args:
        job: the run's.
        device: this worker's.
        receive: waits for the next block; None: there will be no other.

    Yields:
        Ready, results as they come, Closing. Instead of any of these a MalError: it has failed.
    """
    try:
        source = open_source(job.images)  # every machine that labels needs the images
        session = open_session(job.model, device, job.threads, trust=job.trust)
        worker = Worker(session, source, job)
        yield worker.ready
        stopped = Event()

        def blocks() -> Iterator[BlockWork]:
            while (message := receive()) is not None:
                if isinstance(message, Stop):
                    stopped.set()
                    worker.wake()
                    return
                yield message

        yield from worker.run(Live(blocks(), worker.wake, BLOCKS_AHEAD), stopped.is_set)
        session.close()
        yield worker.closing()
    except MalError as error:
        yield error
    except Exception as error:
        yield MalError(f"a worker on {device or 'its device'} failed: {type(error).__name__}: {error}")
