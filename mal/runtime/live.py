"""Sources that may have nothing yet: a camera, a connection."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Live(Generic[T], Iterator[T | None]):
    """The items of a source, without ever waiting for it: None while it has nothing.

    A thread of its own reads the source, so whatever that does happens there.

    Args:
        source: any iterable; what it raises is raised here, behind its last item.
        wake: called whenever there is something after there was nothing, and at the end.
        ahead: items read before they are asked for.
    """

    def __init__(self, source: Iterable[T], wake: Callable[[], None], ahead: int) -> None:
        self._source = source
        self._wake = wake
        self._items: Queue[T | _End] = Queue(ahead)
        self._closed = Event()
        Thread(target=self._read, name="mal-source", daemon=True).start()

    def __next__(self) -> T | None:
        try:
            item = self._items.get_nowait()
        except Empty:
            return None
        if not isinstance(item, _End):
            return item
        if item.error:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """Read no more. A source that is waiting for its next item is left alone; its thread ends behind it."""
        self._closed.set()
        with suppress(Empty):
            self._items.get_nowait()  # room for the thread that waits for it

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                self._put(item)
                if self._closed.is_set():
                    return
        except BaseException as caught:
            error = caught
        self._put(_End(error))

    def _put(self, item: "T | _End") -> None:
        self._items.put(item)
        self._wake()
