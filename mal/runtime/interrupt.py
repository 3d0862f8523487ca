"""Ctrl-C: the first asks to finish what is in flight, the second stops at once.

Python runs a signal's handler in the main thread, once that thread is back from what it waits for, and once for all
signals that came meanwhile. One that comes between its last look and its wait does not end the wait: it is not heard,
and the next is taken for the first. So a thread of its own hears them, which the system tells of each.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KNOCK = 0.05  # seconds between two attempts to get the main thread out of a wait
_DEAF = 0.2  # seconds in which such an attempt, a signal itself, is no further Ctrl-C


@contextmanager
def stop_requested() -> Generator[Callable[[], bool]]:
    """Within the block, SIGINT and SIGTERM make the given function return True; a second one raises KeyboardInterrupt.

    The function may be called in any thread, and is True even while the main one is in the middle of a long call.
    Outside the main thread, where Python delivers no signals, it stays False.
    """
    requested, insisted, over = threading.Event(), threading.Event(), threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    main, (told, tell) = threading.get_ident(), os.pipe()
    os.set_blocking(tell, False)

    def handle(number: int, frame: FrameType | None) -> None:
        if insisted.is_set() and not over.is_set():
            insisted.clear()
            raise KeyboardInterrupt

    def hear() -> None:
        deaf_until = 0.0
        while number := os.read(told, 1):
            if number[0] not in _SIGNALS or time.monotonic() < deaf_until:
                continue
            if not requested.is_set():
                requested.set()
                continue
            insisted.set()
            while insisted.is_set() and not over.is_set():
                signal.pthread_kill(main, signal.SIGINT)
                time.sleep(_KNOCK)
            deaf_until = time.monotonic() + _DEAF

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    wakeup_before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    ears = threading.Thread(target=hear, name="mal-signals", daemon=True)
    ears.start()
    try:
        yield requested.is_set
    finally:
        over.set()
        signal.set_wakeup_fd(wakeup_before)
        os.close(tell)
        ears.join()
        os.close(told)
        for number, handler in before.items():
            signal.signal(number, handler)
