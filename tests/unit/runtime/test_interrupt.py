"""Signals while the main thread is in a wait that nothing else would end."""

import os
import signal
import threading
import time

import pytest

from mal.runtime.interrupt import stop_requested

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def press(*pauses: float, number: int = signal.SIGINT) -> None:
    """A signal after each pause, to a thread other than the main one: the system does not wake that for it.

    So it is for a signal that comes in the moment before the main thread begins to wait.
    """

    def run() -> None:
        for pause in pauses:
            time.sleep(pause)
            signal.pthread_kill(threading.get_ident(), number)

    threading.Thread(target=run, daemon=True).start()


def wait_long() -> None:
    threading.Event().wait(20)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("pauses", [(0.1, 0.3), (0.1, 0.0)])
def test_the_second_ends_a_wait(number: int, pauses: tuple[float, float]) -> None:
    started = time.monotonic()
    with stop_requested() as stop:
        press(*pauses, number=number)
        with pytest.raises(KeyboardInterrupt):
            wait_long()
    assert stop()
    assert time.monotonic() - started < 10


def test_the_first_asks_and_is_heard_in_the_middle_of_a_call_of_the_main_thread() -> None:
    with stop_requested() as stop:
        press(0.05)
        watcher = threading.Thread(target=lambda: [time.sleep(0.01) for _ in iter(stop, True)])
        watcher.start()
        watcher.join(20)
        assert not watcher.is_alive()
        time.sleep(0.3)  # no KeyboardInterrupt


def test_a_third_ends_what_swallowed_the_second() -> None:
    with stop_requested():
        press(0.1, 0.1, 0.7)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                wait_long()


def test_nothing_is_left_behind() -> None:
    def state() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in SIGNALS]
        return handlers, sorted(os.listdir("/proc/self/fd")), threading.active_count()

    before = state()
    for _ in range(3):
        with stop_requested() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + 20
            while not stop():
                assert time.monotonic() < deadline
    assert state() == before


def test_outside_the_main_thread_it_stays_false() -> None:
    found: list[bool] = []

    def run() -> None:
        with stop_requested() as stop:
            found.append(stop())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
