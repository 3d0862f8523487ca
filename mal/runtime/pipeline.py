"""The pipeline of one session: pieces in, finished batches out, in order, the session kept busy.

    pieces ─► prepare (threads) ─► batches ─────► crop (threads) ─► session (a thread) ─► finish (threads) ─► out
              read, decode         the caller     into its input                          masks, RLE

The caller's thread moves everything that can move, then sleeps until a thread has done something: nothing polls.
What is in flight is bounded in crops, images and bytes. A crop is cut to its place in the session's input as soon as
that is known, and then its image may go.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mal.boxes import Boxes
from mal.errors import MalError, SessionHungError, UsageError
from mal.images import Picture
from mal.runtime.batches import Batch, BatchCutter
from mal.runtime.device_crops import Crops
from mal.runtime.objects import Piece, Prepared, cut_boxes, prepare
from mal.runtime.session import Session
from mal.runtime.session_threads import SESSION_TIMEOUT, SessionThreads, out_of_memory
from mal.runtime.stages import Stages

T = TypeVar("T")
U = TypeVar("U")
Floats = NDArray[np.float32]

MAX_BATCH = 1024  # 1.8 GB of input buffers at 192 x 192
DEFAULT_BUDGET = 1_000_000_000  # bytes of images and crops in flight
BATCHES_AHEAD = 3  # so many batches of objects are being read
INPUTS_AHEAD = 2  # inputs of the session beside those in it: one is being filled, one runs next

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
        self._buffers: list[Crops] = []  # of the session's input, kept from run to run

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


@dataclass(slots=True)
class _Load:
    """A batch and its way into the session's input."""

    batch: Batch
    buffer: Crops | None = None  # (N, 3, S, S), from its first crop on
    placed: int = 0  # spans whose crops are cut or being cut
    cuts: list[Future[None]] = field(default_factory=list[Future[None]])


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
        buffers: list[Crops],
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
        self._loads: deque[_Load] = deque()  # the last one may not be full
        self._cutting: deque[tuple[Future[None], int]] = deque()  # and bytes of images that nobody needs then
        self._running: deque[tuple[_Load, Future[tuple[Floats, Floats]]]] = deque()
        self._finishing: deque[Future[T]] = deque()
        self._objects = 0  # in _preparing
        self._bytes = 0  # of images in flight
        self._deadline: float | None = None  # when the open batch has to leave
        self.error: Exception | None = None
        # One for each batch ahead and in the session, used again: fresh memory costs as much as cutting.
        # Half of the budget at most is theirs.
        size = 12 * self._constants.size**2 * self._batch
        self._places = int(min(max(1, budget / 2 // size), INPUTS_AHEAD + thread.session.lanes))
        self._buffers = buffers
        self._buffers += [thread.session.allocate(batch) for _ in range(self._places - len(buffers))]
        self._budget = budget - self._places * size

    @property
    def over(self) -> bool:
        """Nothing is left to do."""
        return self._source is None and not self._busy() and not self._loads

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
            moved = self._take() | self._fill_batches() | self._call() | self._collect()
            while self._finishing and self._finishing[0].done():
                moved = True
                yield self._finishing.popleft().result()

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
            wait([answer for _, answer in self._running], self._thread.seconds_left())

    def _busy(self) -> bool:
        return bool(self._preparing or self._cutting or self._running or self._finishing)

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
            self._preparing.append((piece, self._submit(prepare, piece, self._stages)))
            self._objects += len(piece.boxes)
            self._bytes += piece.cost
            moved = True
        return moved

    def _fill_batches(self) -> bool:
        """Prepared pieces to batches, in order, and their crops to the host threads."""
        moved = False
        while self._cutting and self._cutting[0][0].done():
            self._bytes -= self._cutting.popleft()[1]
            moved = True
        while self._place() and self._preparing and self._preparing[0][1].done():
            piece, future = self._preparing.popleft()
            if error := future.exception():
                self._fail(_host_error(error))
                return True
            prepared = future.result()
            self._objects -= len(piece.boxes)
            if prepared.picture is None:
                self._bytes -= piece.cost
            self._loads += map(_Load, self._cutter.add(prepared))
            moved = True
        if not self._cutter.open:
            self._deadline = None
        elif self._deadline is None and self._max_wait is not None:
            self._deadline = time.monotonic() + self._max_wait
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if self._cutter.open and (late or (self._source is None and not self._preparing)):
            self._cutter.end()
            self._deadline, moved = None, True
        return moved

    def _place(self) -> bool:
        """Give what has come to the batches its place in the session's input; False: there is none for some of it."""
        for load in self._loads:
            for span in load.batch.spans[load.placed :]:
                if span.crops and load.buffer is None:
                    if not self._buffers:
                        return False
                    load.buffer = self._buffers.pop()
                cost = span.piece.cost if span.ends_piece else 0
                if (picture := span.take_picture()) and load.buffer is not None:
                    cut = self._submit(self._cut, picture, span.boxes(), span.place(load.buffer))
                    load.cuts.append(cut)
                    self._cutting.append((cut, cost))
                load.placed += 1
        return True

    def _call(self) -> bool:
        """Full batches to the session: it never waits for this thread."""
        moved = False
        while self._loads and (load := self._loads[0]).batch.full and load.placed == len(load.batch.spans):
            self._loads.popleft()
            if load.buffer is not None:
                answer = self._thread.call(load.cuts, load.buffer[: load.batch.crops])
                answer.add_done_callback(self._wake)
            else:
                answer = Future[tuple[Floats, Floats]]()
                answer.set_result((_NO_LOGITS, _NO_SCORES))
            self._running.append((load, answer))
            moved = True
        return moved

    def _collect(self) -> bool:
        """The session's answers to the host threads; not while masks pile up faster than they are made."""
        moved = False
        while self._running and self._running[0][1].done() and len(self._finishing) <= self._workers + 1:
            load, answer = self._running.popleft()
            moved = True
            if load.buffer is not None:
                self._buffers.append(load.buffer)
            if answer.cancelled():  # asked to stop
                continue
            if error := answer.exception():
                spoilt = next((reason for cut in load.cuts if cut.done() and (reason := cut.exception())), None)
                self._fail(_host_error(spoilt) if spoilt else _session_error(self._thread.session, error))
                return True
            self._finishing.append(self._submit(self._masks, load.batch, *answer.result()))
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
        cuts = [cut for load in self._loads for cut in load.cuts]
        wait([cut for cut in cuts if not cut.cancel()])  # then nobody writes to the buffers any more
        self._loads.clear()
        self._cutting.clear()
        self._cutter = BatchCutter(self._batch)
        self._running = deque(entry for entry in self._running if entry[1].done() or not entry[1].cancel())

    def _fail(self, error: Exception) -> None:
        self._begin_nothing_more()
        self.error = error

    def _submit(self, work: Callable[..., U], *values: Any) -> "Future[U]":
        future = self._pool.submit(work, *values)
        future.add_done_callback(self._wake)
        return future

    def _cut(self, picture: Picture, boxes: Boxes, out: Crops) -> None:
        with self._stages.time("crop"):
            cut_boxes(picture, boxes, self._constants, out)

    def _masks(self, batch: Batch, logits: Floats, scores: Floats) -> T:
        with self._stages.time("mask"):
            return self._finish(batch, logits, scores)


def _host_error(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else MalError(f"a host thread died: {error!r}")


def _session_error(session: Session, error: BaseException) -> Exception:
    if isinstance(error, MalError):
        return error
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if out_of_memory(error):
        text += " (no room even for one crop; use another device, or a smaller model)"
    failure = MalError(f"{session.backend} on {session.device} failed: {text}")
    failure.__cause__ = error
    return failure
