"""Calls of a session in threads of their own: smaller ones after an out-of-memory, given up when one never returns."""

import re
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock, Thread, get_ident
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mal.errors import MalError, SessionHungError
from mal.runtime.device_crops import Crops
from mal.runtime.session import Session
from mal.runtime.stages import Stages

Floats = NDArray[np.float32]

SESSION_TIMEOUT = 600.0  # seconds a call may take; a first call may compile for minutes

# ONNX Runtime (its CPU and its CUDA arena), torch, the CUDA runtime and driver, TensorRT, C++.
_OUT_OF_MEMORY = re.compile(
    "out of memory|outofmemory|out_of_memory|failed to allocate memory|smaller than requested bytes"
    "|memoryallocation|bad_alloc|bad allocation",
    re.IGNORECASE,
)


class _Call(NamedTuple):
    cuts: "Sequence[Future[None]]"  # crops that are perhaps still being cut
    crops: Crops
    answer: "Future[tuple[Floats, Floats]]"


class SessionThreads:
    """A session behind threads, one for each of its lanes. After a call has failed, none is made in this run.

    Attributes:
        limit: crops that one call takes at most; halved each time the device has no room for more.
    """

    def __init__(self, session: Session, batch: int, stages: Stages, timeout: float = SESSION_TIMEOUT) -> None:
        self.session = session
        self.limit = batch
        self._stages = stages
        self._timeout = timeout
        self._stop: Callable[[], bool] = lambda: False
        self._failed = False
        self._lock = Lock()
        self._busy_since: dict[int, float] = {}  # by the thread's number; monotonic
        self._changed = 0.0  # when the first call began, or the last one ended
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()

    def begin(self, stop: Callable[[], bool]) -> None:
        """A run begins: from here on, time without a call is time that the device waits.

        Args:
            stop: asked before each call; once true, the calls that follow are withdrawn.
        """
        self._stop, self._failed = stop, False
        self._changed = time.monotonic()
        self._calls = SimpleQueue()
        for _ in range(self.session.lanes):
            Thread(target=self._serve, args=(self._calls,), name="mal-session", daemon=True).start()

    def end(self) -> None:
        """The run is over: the threads end, once they are back from their calls."""
        for _ in range(self.session.lanes):
            self._calls.put(None)

    def call(self, cuts: "Sequence[Future[None]]", crops: Crops) -> "Future[tuple[Floats, Floats]]":
        """Logits and scores of crops, some time. Cancel the future to withdraw a call that has not begun.

        Args:
            cuts: once they are done, the crops are whole; if one failed, the answer is its error.
            crops: the session's input.
        """
        answer: Future[tuple[Floats, Floats]] = Future()
        self._calls.put(_Call(cuts, crops, answer))
        return answer

    def seconds_left(self) -> float:
        """Until the call under way is given up.

        Raises:
            SessionHungError: it is over. The thread cannot be stopped: this object is of no use any more.
        """
        now = time.monotonic()
        left = min(self._busy_since.copy().values(), default=now) + self._timeout - now
        if left <= 0:
            session = self.session
            raise SessionHungError(
                f"{session.backend} on {session.device} gave no answer for {self._timeout:g} s: it hangs; "
                "what is labelled is kept, the same command goes on"
            )
        return left

    def _serve(self, calls: "SimpleQueue[_Call | None]") -> None:
        while (call := calls.get()) is not None:
            self._answer(call)

    def _answer(self, call: _Call) -> None:
        if self._failed or self._stop():
            call.answer.cancel()
        if not call.answer.set_running_or_notify_cancel():
            return
        try:
            for cut in call.cuts:
                cut.result()
            with self._busy():
                found = self._run(call.crops)
        except BaseException as error:  # whatever it is, the caller waits for it
            self._failed = True
            died = error if isinstance(error, Exception) else MalError(f"the session's thread died: {error!r}")
            call.answer.set_exception(died)
        else:
            call.answer.set_result(found)

    @contextmanager
    def _busy(self) -> Generator[None]:
        """Time without any call is `wait`, all other `session`, in however many lanes."""
        me, cpu = get_ident(), time.thread_time()
        self._change("wait", me, True)
        try:
            yield
        finally:
            self._change("session", me, False)
            self._stages.add("session", 0.0, time.thread_time() - cpu)

    def _change(self, stage: str, me: int, begins: bool) -> None:
        with self._lock:
            now = time.monotonic()
            if not begins:
                del self._busy_since[me]
            if not self._busy_since:
                self._stages.add(stage, now - self._changed)
                self._changed = now
            if begins:
                self._busy_since[me] = now

    def _run(self, crops: Crops) -> tuple[Floats, Floats]:
        logits: list[Floats] = []
        scores: list[Floats] = []
        at = 0
        while at < len(crops):
            part = crops[at : at + self.limit]
            try:
                some_logits, some_scores = self.session.run(part)
            except Exception as error:
                if not out_of_memory(error) or len(part) == 1:
                    raise
                self.limit = (len(part) + 1) // 2  # and once more, with what fits
                continue
            if len(part) == len(crops):
                return some_logits, some_scores
            logits.append(some_logits)
            scores.append(some_scores)
            at += len(part)
        return np.concatenate(logits), np.concatenate(scores)


def out_of_memory(error: BaseException) -> bool:
    """Whether a session's error says that memory ran out; backends share no exception, so their words are read."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"))
