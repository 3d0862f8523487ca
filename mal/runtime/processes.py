"""One worker a device, each in a process of its own: `--device cuda:0,1,2,3`.

python -m mal.runtime.processes FD      what a worker's process runs; FD is its end of the pipe
"""

import os
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe, wait

from mal.errors import UsageError
from mal.runtime.blocks import BlockWork
from mal.runtime.crew import PATIENCE, Died, FarCrew
from mal.runtime.machine import cpu_count
from mal.runtime.worker import Job, Message, Stop, serve


def split_devices(device: str | None) -> list[str | None]:
    """Devices that a word names: "cuda:0,1" -> ["cuda:0", "cuda:1"]; "cpu,cpu" are two processes on the CPU.

    Raises:
        UsageError: devices of several kinds: these do not give the same bytes.
    """
    devices: list[str | None] = []
    for word in device.split(",") if device else [None]:
        kind = (devices[-1] or "").partition(":")[0] if devices else ""
        devices.append(f"{kind}:{word}" if word and word.isdecimal() and kind != "cpu" else word)
    kinds = {(each or "").partition(":")[0] for each in devices}
    if len(kinds) > 1:
        raise UsageError(f"--device {device}: devices of one kind give the same bytes, these are of several")
    return devices


def open_processes(job: Job, devices: Sequence[str | None]) -> FarCrew:
    """A worker for each device, ready; they share this machine's processors and the memory budget.

    Raises:
        MalError: one of them cannot open its session.
    """
    count = len(devices)
    share = replace(
        job, workers=max(1, job.workers // count), threads=max(1, cpu_count() // count), budget=job.budget / count
    )
    hands = [_Process(share, device) for device in devices]
    heard: deque[int] = deque()

    def listen(seconds: float) -> tuple[int, Message | Died] | None:
        if not heard:
            # One that has ended is not heard again; the others may still be closing their sessions.
            ends = {hand.connection: number for number, hand in enumerate(hands) if not hand.connection.closed}
            heard.extend(ends[end] for end in wait(list(ends), seconds) if isinstance(end, Connection))
        if not heard:
            return None
        number = heard.popleft()
        return number, hands[number].receive()

    return FarCrew(hands, listen, needed=count, patience=job.timeout + PATIENCE)


class _Process:
    """See `crew.Hand`."""

    def __init__(self, job: Job, device: str | None) -> None:
        self.name = str(device)
        self._job, self._device = job, device

    def start(self) -> None:
        self.connection, theirs = Pipe()
        _never_wait_longer(self.connection, PATIENCE)
        # Not the multiprocessing module's own way of starting: that runs the caller's script again.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mal.runtime.processes", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
        )
        theirs.close()
        self.give((self._job, self._device))

    def give(self, message: "BlockWork | Stop | tuple[Job, str | None] | None") -> None:
        with suppress(OSError):  # it died: `receive` will tell
            self.connection.send(message)

    def receive(self) -> Message | Died:
        """Its next message; waits."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.kill()
            code = self._process.wait()
            return Died(f"killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}")

    def kill(self) -> None:
        """See `crew.Hand`."""
        self._process.kill()
        self._process.wait()
        self.connection.close()


def _never_wait_longer(connection: Connection, seconds: float) -> None:
    """Let a message that is stuck half-way (its process is stopped) be an OSError."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), 0))


def _main(connection: Connection) -> None:
    # Ctrl-C and `kill` reach every process of a group; the one that labels decides what comes of it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def receive() -> BlockWork | Stop | None:
        try:
            return connection.recv()
        except (EOFError, OSError):
            os._exit(1)  # nobody is there to label for

    try:
        job, device = connection.recv()
        for message in serve(job, device, receive):
            connection.send(message)
    except (EOFError, OSError):
        os._exit(1)
    # At once: a session that hangs does not end its thread.
    connection.close()
    os._exit(0)


if __name__ == "__main__":
    _main(Connection(int(sys.argv[1])))
