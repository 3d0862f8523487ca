"""The pipeline of one process: pieces in, finished batches out, in order, the session kept busy.

    pieces ─► prepare (threads) ─► cut batches ─► pack (threads) ─► session (this thread) ─► finish (threads) ─► out
              read, decode, crop   this thread    to float32                                 masks, RLE

Everything waits on futures, nothing polls. What is in flight is bounded in crops, images and bytes.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mal.errors import MalError, UsageError
from mal.runtime.batches import Batch, BatchCutter
from mal.runtime.objects import Piece, Prepared, prepare
from mal.runtime.session import CPU_BATCH, Session
from mal.runtime.stages import Stages

T = TypeVar("T")
Floats = NDArray[np.float32]

MAX_BATCH = 1024  # 1.8 GB of input buffers at 192 x 192
DEFAULT_BUDGET = 1_000_000_000  # bytes of images and crops in flight
BATCHES_AHEAD = 3  # prepared crops wait for the session, in batches
PACKED_AHEAD = 2  # batches converted and ready: one runs next, one absorbs jitter


def batch_size(batch: int | str, auto: int | None = None) -> int:
    """Crops a batch.

    Args:
        batch: a number, or "auto".
        auto: what "auto" means: what an unfinished run took for it, or what suits the session.

    Raises:
        UsageError: neither "auto" nor a number from 1 to 1024.
    """
    if isinstance(batch, int) and 1 <= batch <= MAX_BATCH:
        return batch
    if batch == "auto":
        return auto or CPU_BATCH
    raise UsageError(f"batch {batch!r}: expected auto or a number from 1 to {MAX_BATCH}")


class Pipeline:
    """A session with host threads around it. One `run` at a time.

    Args:
        session: runs in the thread that iterates over `run`.
        batch: crops a batch.
        workers: host threads.
        stages: where the time is added up.
        budget: bytes of images and crops in flight; one piece is always let through.
    """

    def __init__(
        self, session: Session, *, batch: int, workers: int, stages: Stages, budget: float = DEFAULT_BUDGET
    ) -> None:
        self._session = session
        self._batch = batch
        self._workers = workers
        self.stages = stages
        self._budget = budget

    def run(
        self,
        pieces: Iterable[Piece],
        finish: Callable[[Batch, Floats, Floats], T],
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[T]:
        """Label pieces.

        Args:
            pieces: in order; taken lazily.
            finish: (batch, logits (B, h, w), scores (B,)) -> what comes out; called in host threads. B may be 0.
            stop: asked before each batch; once true, batches in flight are finished and nothing more is begun.

        Yields:
            One result of `finish` a batch, in order.

        Raises:
            MalError: the session failed; all batches before it have been yielded.
        """
        finishing: deque[Future[T]] = deque()
        failure: Exception | None = None
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="mal")
        try:
            for batch, packed in _ahead(self._packed(self._prepared(pieces, pool), pool), PACKED_AHEAD):
                if stop():
                    break
                try:
                    logits, scores = self._infer(packed)
                except Exception as error:
                    failure = error
                    break
                finishing.append(pool.submit(self._finish, finish, batch, logits, scores))
                # Hand out what is done; wait only when masks pile up faster than they are made.
                while finishing and (finishing[0].done() or len(finishing) > self._workers + 1):
                    yield finishing.popleft().result()
            while finishing:
                yield finishing.popleft().result()
        finally:
            # Not waiting: after an error or a second Ctrl-C nobody wants what is still in the threads.
            pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(failure, MalError):
            raise failure
        if failure is not None:
            text = next(iter(str(failure).splitlines()), "") or type(failure).__name__
            raise MalError(f"{self._session.backend} on {self._session.device} failed: {text}") from failure

    def _prepared(self, pieces: Iterable[Piece], pool: ThreadPoolExecutor) -> Iterator[Prepared]:
        """Prepare pieces in threads, a bounded distance ahead of the one that is handed out."""
        source = iter(pieces)
        waiting: deque[tuple[Piece, Future[Prepared]]] = deque()
        cost = objects = 0
        while True:
            while not waiting or (
                cost < self._budget and (objects < BATCHES_AHEAD * self._batch or len(waiting) <= self._workers)
            ):
                piece = next(source, None)
                if piece is None:
                    break
                waiting.append((piece, pool.submit(prepare, piece, self._session.constants, self.stages)))
                cost, objects = cost + piece.cost, objects + len(piece.boxes)
            if not waiting:
                return
            piece, future = waiting.popleft()
            with self.stages.time("wait"):
                prepared = future.result()
            cost, objects = cost - piece.cost, objects - len(piece.boxes)
            yield prepared

    def _packed(
        self, prepared: Iterator[Prepared], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Batch, "Future[Floats] | None"]]:
        """Cut batches; convert each to the session's input in a thread. None: a batch without any crop."""
        cutter = BatchCutter(self._batch)
        side = self._session.constants.size
        # One for each batch ahead and one in the session, used in turn: fresh memory costs more than the conversion.
        buffers = [np.empty((self._batch, 3, side, side), np.float32) for _ in range(PACKED_AHEAD + 1)]
        turn = itertools.cycle(buffers)
        batches = itertools.chain.from_iterable(map(cutter.add, prepared))
        for batch in itertools.chain(batches, cutter.rest()):
            yield batch, pool.submit(self._pack, batch, next(turn)) if batch.crops else None

    def _pack(self, batch: Batch, buffer: Floats) -> Floats:
        with self.stages.time("pack"):
            return batch.to_input(buffer)

    def _infer(self, packed: "Future[Floats] | None") -> tuple[Floats, Floats]:
        if packed is None:
            return np.empty((0, 1, 1), np.float32), np.empty(0, np.float32)
        with self.stages.time("wait"):
            crops = packed.result()
        with self.stages.time("session"):
            return self._session.run(crops)

    def _finish(self, finish: Callable[[Batch, Floats, Floats], T], batch: Batch, logits: Floats, scores: Floats) -> T:
        with self.stages.time("mask"):
            return finish(batch, logits, scores)


def _ahead(source: Iterator[T], count: int) -> Iterator[T]:
    """The same items; the `count` that follow have already been asked for."""
    queue: deque[T] = deque(itertools.islice(source, count))
    for item in source:
        queue.append(item)
        yield queue.popleft()
    yield from queue
