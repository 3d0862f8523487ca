"""The pipeline of one session: pieces in, finished batches out, in order, the session kept busy.

    pieces ─► prepare (threads) ─► cut batches ─► pack (threads) ─► session (a thread) ─► finish (threads) ─► out
              read, decode, crop   the caller     to float32                              masks, RLE

The caller's thread moves everything that can move, then sleeps until a thread has done something: nothing polls.
What is in flight is bounded in crops, images and bytes.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mal.errors import MalError, SessionHungError, UsageError
from mal.runtime.batches import Batch, BatchCutter
from mal.runtime.objects import Piece, Prepared, prepare
from mal.runtime.session import Session
from mal.runtime.session_threads import SESSION_TIMEOUT, SessionThreads, out_of_memory
from mal.runtime.stages import Stages

T = TypeVar("T")
U = TypeVar("U")
Floats = NDArray[np.float32]

MAX_BATCH = 1024  # 1.8 GB of input buffers at 192 x 192
DEFAULT_BUDGET = 1_000_000_000  # bytes of images and crops in flight
BATCHES_AHEAD = 3  # prepared crops wait for the session, in batches
PACKED_AHEAD = 2  # batches converted and ready: one runs next, one absorbs jitter

_NO_LOGITS, _NO_SCORES = np.empty((0, 1, 1), np.float32), np.empty(0, np.float32)


def batch_size(batch: int | str, auto: T) -> int | T:
    """Crops a batch.

    Args:
        batch: a number, or "auto".
        auto: what "auto" stands for.

    Raises:
        UsageError: neither "auto" nor a number from 1 to 1024.
    """
    if isinstance(batch, int) and 1 <= batch <= MAX_BATCH:
        return batch
    if batch == "auto":
        return auto
    raise UsageError(f"batch {batch!r}: expected auto or a number from 1 to {MAX_BATCH}")


class Pipeline:
    """A session with host threads around it. One `run` at a time.

    Args:
        session: called in as many threads as it has lanes.
        batch: crops a batch.
        workers: host threads.
        stages: where the time is added up.
        budget: bytes of images, crops and input buffers in flight; one piece and one batch are always let through.
        timeout: seconds after which a call of the session is given up.

    Attributes:
        fill: how many of the places in front of the session are taken, 0..1: at 0 it waits for the host.
    """

    def __init__(
        self,
        session: Session,
        *,
        batch: int,
        workers: int,
        stages: Stages,
        budget: float = DEFAULT_BUDGET,
        timeout: float = SESSION_TIMEOUT,
    ) -> None:
        self.stages = stages
        self.fill = 0.0
        self._batch = batch
        self._workers = workers
        self._budget = budget
        self._thread = SessionThreads(session, batch, stages, timeout)
        self._event = Event()
        self._buffers: list[Floats] = []  # of the session's input, kept from run to run

    @property
    def limit(self) -> int:
        """Crops that a call of the session takes at most: the batch, or less once the device ran out of memory."""
        return self._thread.limit

    def wake(self) -> None:
        """Look again: a source that had nothing has something, or `stop` has changed its mind. From any thread."""
        self._event.set()

    def run(
        self,
        pieces: Iterable[Piece | None],
        finish: Callable[[Batch, Floats, Floats], T],
        stop: Callable[[], bool] = lambda: False,
        max_wait: float | None = None,
    ) -> Iterator[T]:
        """Label pieces.

        Args:
            pieces: in order; taken lazily. None: there is nothing yet, `wake` will be called.
            finish: (batch, logits (B, h, w), scores (B,)) -> what comes out; called in host threads. B may be 0.
            stop: asked before each batch; once true, batches in flight are finished and nothing more is begun.
            max_wait: seconds after which a batch leaves though it is not full; None: it waits until it is.

        Yields:
            One result of `finish` a batch, in order.

        Raises:
            MalError: the session failed; all batches before it have been yielded.
            SessionHungError: a call of the session did not return.
            Exception: what the pieces raised, after all that came before it has been yielded; what `finish` raised.
        """
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="mal")
        flow = _Flow(
            self._thread, pool, iter(pieces), finish, batch=self._batch, buffers=self._buffers, workers=self._workers,
            budget=self._budget, max_wait=max_wait, stages=self.stages, wake=self.wake,
        )  # fmt: skip
        buffers, self._buffers = self._buffers, []  # theirs again only if no thread can have hold of one
        self._thread.begin(stop)
        try:
            while not flow.over:
                self._event.clear()
                yield from flow.advance(stop())
                self.fill = flow.fill
                if not (flow.over or self._event.is_set()):
                    self._event.wait(flow.seconds_to_sleep())
            self._buffers = buffers
            if flow.error:
                raise flow.error
        except (KeyboardInterrupt, SessionHungError):
            raise  # nobody wants to wait for what is still in the threads
        except BaseException:
            flow.close()
            raise
        finally:
            self._thread.end()
            pool.shutdown(wait=False, cancel_futures=True)


class _Flow(Generic[T]):
    """One run of a pipeline: what is where. The queues stand in the order in which the data travels."""

    def __init__(
        self,
        thread: SessionThreads,
        pool: ThreadPoolExecutor,
        pieces: Iterator[Piece | None],
        finish: Callable[[Batch, Floats, Floats], T],
        *,
        batch: int,
        buffers: list[Floats],
        workers: int,
        budget: float,
        max_wait: float | None,
        stages: Stages,
        wake: Callable[[], None],
    ) -> None:
        self._thread, self._pool, self._finish, self._max_wait = thread, pool, finish, max_wait
        self._batch, self._workers, self._stages = batch, workers, stages
        self._wake: Callable[[Future[Any]], None] = lambda _: wake()
        self._constants = thread.session.constants
        self._source: Iterator[Piece | None] | None = pieces
        self._preparing: deque[tuple[Piece, Future[Prepared]]] = deque()
        self._cutter = BatchCutter(self._batch)
        self._cut: deque[Batch] = deque()
        self._running: deque[tuple[Batch, Future[tuple[Floats, Floats]], Floats | None]] = deque()
        self._finishing: deque[tuple[Batch, Future[T]]] = deque()
        self._objects = 0  # in _preparing
        self._bytes = 0  # of images and crops in flight
        self._deadline: float | None = None  # when the open batch has to leave
        self.error: Exception | None = None
        self._crop_bytes = 3 * self._constants.size**2
        # One for each batch ahead and in the session, used again: fresh memory costs more than the conversion.
        # Half of the budget at most is theirs.
        size = 4 * self._crop_bytes * self._batch
        self._places = int(min(max(1, budget / 2 // size), PACKED_AHEAD + thread.session.lanes))
        self._buffers = buffers
        self._buffers += [thread.session.allocate(batch) for _ in range(self._places - len(buffers))]
        self._budget = budget - self._places * size

    @property
    def over(self) -> bool:
        """Nothing is left to do."""
        return self._source is None and not self._busy()

    @property
    def fill(self) -> float:
        """See `Pipeline.fill`."""
        return min(1.0, len(self._running) / self._places)

    def advance(self, stop: bool) -> Iterator[T]:
        """Move everything that can move; yield what is done."""
        if stop:
            self._begin_nothing_more()
        moved = True
        while moved:
            moved = self._take() | self._cut_batches() | self._pack() | self._collect()
            while self._finishing and self._finishing[0][1].done():
                batch, future = self._finishing.popleft()
                self._bytes -= batch.crops * self._crop_bytes
                moved = True
                yield future.result()

    def seconds_to_sleep(self) -> float | None:
        """Until something has to be done though no thread has finished; None: for ever.

        Raises:
            SessionHungError: a call of the session takes too long.
        """
        left = [self._deadline - time.monotonic()] if self._deadline is not None else []
        if self._running:
            left.append(self._thread.seconds_left())
        return max(0.0, min(left)) if left else None

    def close(self) -> None:
        """Give up what is left, and wait for the session: whoever comes next may use or close it."""
        self._begin_nothing_more()
        if self._running:
            wait([answer for _, answer, _ in self._running], self._thread.seconds_left())

    def _busy(self) -> bool:
        return bool(self._preparing or self._cut or self._running or self._finishing)

    def _room(self) -> bool:
        ahead = self._objects < BATCHES_AHEAD * self._batch or len(self._preparing) <= self._workers
        # However little the budget: without another piece the open batch would wait for ever.
        return (self._bytes < self._budget and ahead) or not self._busy()

    def _take(self) -> bool:
        """Pieces from the source to the host threads, as far as there is room."""
        moved = False
        while self._source is not None and self._room():
            try:
                piece = next(self._source)
            except StopIteration:
                self._source = None
                return True
            except Exception as error:  # raised to the caller once all that came before is out
                self.error, self._source = error, None
                return True
            if piece is None:
                return moved
            future = self._submit(prepare, piece, self._constants, self._stages)
            self._preparing.append((piece, future))
            self._objects += len(piece.boxes)
            self._bytes += piece.cost + len(piece.boxes) * self._crop_bytes
            moved = True
        return moved

    def _cut_batches(self) -> bool:
        """Prepared pieces to batches, in order."""
        moved = False
        while not self._cut and self._preparing and self._preparing[0][1].done():
            piece, future = self._preparing.popleft()
            if error := future.exception():
                self._fail(error if isinstance(error, Exception) else MalError(f"a host thread died: {error!r}"))
                return True
            prepared = future.result()
            self._objects -= len(piece.boxes)
            self._bytes -= piece.cost + (len(piece.boxes) - len(prepared.which)) * self._crop_bytes
            self._cut.extend(self._cutter.add(prepared))
            moved = True
        if not self._cutter.open:
            self._deadline = None
        elif self._deadline is None and self._max_wait is not None:
            self._deadline = time.monotonic() + self._max_wait
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if self._cutter.open and (late or (self._source is None and not self._preparing)):
            self._cut.extend(self._cutter.rest())
            self._deadline, moved = None, True
        return moved

    def _pack(self) -> bool:
        """Batches to the session's input, and to the session: it never waits for this thread."""
        moved = False
        while self._cut and (self._buffers or not self._cut[0].crops):
            batch = self._cut.popleft()
            if batch.crops:
                buffer = self._buffers.pop()
                answer = self._thread.call(self._submit(self._to_input, batch, buffer))
                answer.add_done_callback(self._wake)
            else:
                buffer, answer = None, Future[tuple[Floats, Floats]]()
                answer.set_result((_NO_LOGITS, _NO_SCORES))
            self._running.append((batch, answer, buffer))
            moved = True
        return moved

    def _collect(self) -> bool:
        """The session's answers to the host threads; not while masks pile up faster than they are made."""
        moved = False
        while self._running and self._running[0][1].done() and len(self._finishing) <= self._workers + 1:
            batch, answer, buffer = self._running.popleft()
            moved = True
            if buffer is not None:
                self._buffers.append(buffer)
            if answer.cancelled():  # asked to stop
                continue
            if error := answer.exception():
                self._fail(_session_error(self._thread.session, error))
                return True
            self._finishing.append((batch, self._submit(self._masks, batch, *answer.result())))
        return moved

    def _begin_nothing_more(self) -> None:
        """What is in the session or behind it is finished; the rest is forgotten."""
        close = getattr(self._source, "close", None)
        if close:
            close()
        self._source = self._deadline = None
        for _, future in self._preparing:
            future.cancel()
        self._preparing.clear()
        self._cut.clear()
        self._cutter = BatchCutter(self._batch)
        self._running = deque(entry for entry in self._running if entry[1].done() or not entry[1].cancel())

    def _fail(self, error: Exception) -> None:
        self._begin_nothing_more()
        self.error = error

    def _submit(self, work: Callable[..., U], *values: Any) -> "Future[U]":
        future = self._pool.submit(work, *values)
        future.add_done_callback(self._wake)
        return future

    def _to_input(self, batch: Batch, buffer: Floats) -> Floats:
        with self._stages.time("pack"):
            return batch.to_input(buffer)

    def _masks(self, batch: Batch, logits: Floats, scores: Floats) -> T:
        with self._stages.time("mask"):
            return self._finish(batch, logits, scores)


def _session_error(session: Session, error: BaseException) -> Exception:
    if isinstance(error, MalError):
        return error
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if out_of_memory(error):
        text += " (no room even for one crop; use another device, or a smaller model)"
    failure = MalError(f"{session.backend} on {session.device} failed: {text}")
    failure.__cause__ = error
    return failure
