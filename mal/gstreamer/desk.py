"""One labeler for all `malmask` elements of a process: frames of many streams share its batches."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mal.runtime.labeler import LabelResult, MaskLabeler


class Settings(NamedTuple):
    """What elements must agree on to share a desk."""

    model: str
    """Model file or name of a shipped student."""
    batch: int
    """Crops a batch."""
    max_wait_ms: int
    """A batch leaves when it is full, or when its oldest crop has waited this long."""


BATCHES = 2  # under way: one in the session, one filling; more would only add latency

_Job = tuple[NDArray[np.uint8], NDArray[np.float64]]  # frame and boxes


class Desk:
    """A loaded model and the thread that feeds it. Shared: get one by `Desk.open`, give it back by `close`.

    Attributes:
        model_id: first 12 hex digits of the model file's SHA-256.
        batch_seconds: what a full batch took when the desk was opened.
    """

    _opened: ClassVar[dict[Settings, "Desk"]] = {}
    _lock: ClassVar[Lock] = Lock()

    @classmethod
    def open(cls, settings: Settings) -> "Desk":
        """The desk with these settings: a new one, or the one that other elements work with.

        Raises: as `mal.MaskLabeler`.
        """
        with cls._lock:
            desk = cls._opened.get(settings) or cls(settings)
            cls._opened[settings] = desk
            desk._users += 1
            return desk

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._users = 0
        self._labeler = MaskLabeler(settings.model, batch=settings.batch)
        self.model_id = self._labeler.model_id
        self.batch_seconds = self._warm_up()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._waiting: deque[tuple[Future[LabelResult], int]] = (
            deque()
        )  # of the jobs, in their order, and their objects
        self._room = Condition()  # guards what follows; a job and its answer enter together, and none behind a failure
        self._objects = 0
        self._error: Exception | None = None
        self._thread = Thread(target=self._serve, name="malmask", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether so many objects are under way, of all elements, that a further frame has to wait."""
        return self._objects >= BATCHES * self._settings.batch

    def submit(self, frame: NDArray[np.uint8], boxes: NDArray[np.float64]) -> "Future[LabelResult]":
        """Label the boxes of a frame, once there is room; frames are answered in the order of these calls.

        Args:
            frame: (H, W, 3) uint8 RGB, not to be changed until the answer is there.
            boxes: (N, 4) x0, y0, x1, y1 in frame pixels.

        Returns:
            The result to come; it raises what the labeler raised, now and for every later frame.
        """
        answer: Future[LabelResult] = Future()
        with self._room:
            self._room.wait_for(lambda: self._error or not self.full)  # the labeler goes on whatever its callers do
            if self._error is None:
                self._waiting.append((answer, len(boxes)))
                self._objects += len(boxes)
                self._jobs.put((frame, boxes))
            else:
                answer.set_exception(self._error)
        return answer

    def close(self) -> None:
        """Give the desk back; the last one to do so ends it, behind the frames that are still under way."""
        with Desk._lock:
            self._users -= 1
            if self._users:
                return
            del Desk._opened[self._settings]
        self._jobs.put(None)
        self._thread.join()
        self._labeler.close()

    def _warm_up(self) -> float:
        frame = np.zeros((256, 256, 3), np.uint8)
        boxes = np.tile([64.0, 64.0, 192.0, 192.0], (self._settings.batch, 1))
        self._labeler(frame, boxes)  # the first call allocates, and compiles on some devices
        start = time.perf_counter()
        self._labeler(frame, boxes)
        return time.perf_counter() - start

    def _frames(self) -> Iterator[_Job]:
        while job := self._jobs.get():
            yield job

    def _serve(self) -> None:
        try:
            for result in self._labeler.stream(self._frames(), max_wait_ms=self._settings.max_wait_ms):
                answer, objects = self._waiting.popleft()
                answer.set_result(result)
                with self._room:
                    self._objects -= objects
                    self._room.notify_all()
        except Exception as error:
            with self._room:
                self._error = error
                self._jobs.put(None)  # the thread that reads the frames ends too
                for answer, _ in self._waiting:
                    answer.set_exception(error)
                self._room.notify_all()
