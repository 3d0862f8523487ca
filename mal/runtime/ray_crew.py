"""Workers as Ray actors: `mal label --ray [ADDRESS]`.

An actor holds a session. Ray decides where actors run and starts machines for those that find no room; a node that is
lost takes its actors with it, and their blocks are done elsewhere. Images are read where they are labelled: the image
folder and the model have to be there, under the same path, on every machine. Only records pass through Ray.
"""

import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, cast

from mal.errors import MalError, MissingPackageError
from mal.runtime.blocks import BlockWork
from mal.runtime.crew import PATIENCE, Died, FarCrew
from mal.runtime.worker import Job, Message, Stop, serve

try:
    import ray
    import ray.exceptions
except ImportError as _error:
    raise MissingPackageError(
        '--ray needs Ray, which is not installed; pip install "mask-auto-labeler[ray]"'
    ) from _error

MOST_ACTORS = 64  # asked for on a cluster that has room for fewer now and may grow
LOST = 20.0  # seconds without the head node; after 60 Ray would end this process itself


class _Actor:
    """What an actor runs: `run` in one of its threads, `give` in the other."""

    def __init__(self, job: Job, device: str) -> None:
        self._job, self._device = job, device
        self._given: SimpleQueue[BlockWork | Stop | None] = SimpleQueue()

    def give(self, message: BlockWork | Stop | None) -> None:
        self._given.put(message)

    def run(self) -> Iterator[Message]:
        yield from serve(self._job, self._device, self._given.get)


def open_ray(job: Job, device: str | None, address: str, blocks: int) -> "RayCrew":
    """Actors on a Ray cluster, the first of them ready.

    Args:
        job: the run's; an actor asks Ray for as many processors as it has host threads.
        device: "cuda": an actor a GPU; "cpu"; None: GPUs where the cluster has some.
        address: of the cluster; "": one that is found (RAY_ADDRESS, or started here), else one of this machine alone.
        blocks: how many there are: more actors have no use.

    Raises:
        MalError: no cluster at this address; a worker cannot work.
    """
    ours = not ray.is_initialized()
    if ours:
        try:
            _knock(address)
            ray.init(address=address or None, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise MalError(f"no Ray cluster at {address or 'this machine'}: {first}") from None
    try:
        return RayCrew(job, device, blocks, disconnect=ray.shutdown if ours else lambda: None)
    except BaseException:
        if ours:
            ray.shutdown()
        raise


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray would try for minutes, and then end the process."""
    if machine := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):
        socket.create_connection((machine[1].strip("[]"), int(machine[2])), timeout=10).close()


class RayCrew(FarCrew):
    """A crew of actors."""

    def __init__(self, job: Job, device: str | None, blocks: int, disconnect: Callable[[], None]) -> None:
        self._disconnect = disconnect
        self._head = head = _Head(ray.get_runtime_context().gcs_address)
        room = ray.cluster_resources()
        kind = (device or ("cuda" if room.get("GPU") else "cpu")).partition(":")[0]
        needs = {"num_cpus": job.workers, "num_gpus": 1 if kind == "cuda" else 0}
        now = room.get("GPU", 0) if kind == "cuda" else room.get("CPU", 0) // job.workers
        count = max(1, min(blocks, max(MOST_ACTORS, int(now))))
        actor = ray.remote(_Actor).options(max_concurrency=2, **needs)
        job = replace(job, threads=job.workers)
        hands = [_RayHand(number, lambda: actor.remote(job, kind)) for number in range(count)]

        def listen(seconds: float) -> tuple[int, Message | Died] | None:
            messages = [hand.messages for hand in hands if hand.messages is not None]
            ready, _ = ray.wait(messages, num_returns=1, timeout=seconds, fetch_local=False)
            if not ready:
                head.check()
                return None
            number = next(number for number, hand in enumerate(hands) if hand.messages is ready[0])
            return number, hands[number].receive()

        super().__init__(hands, listen, needed=1, patience=job.timeout + PATIENCE)

    def close(self) -> None:
        """See `Crew.close`."""
        if self._head.lost:  # Ray would wait for an answer
            return
        super().close()
        self._disconnect()


class _Head:
    """The cluster's head node, `machine:port`, without which Ray answers nothing and says nothing."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._there = False  # never, where only the door for Ray's clients is open
        self._missing_since: float | None = None
        self.lost = False
        self.check()

    def check(self) -> None:
        """Raise MalError if it was there once, and has not been for some time."""
        try:
            _knock(self._address)
            self._there, self._missing_since = True, None
        except OSError as error:
            now = time.monotonic()
            self._missing_since = now if self._missing_since is None else self._missing_since
            if self._there and now - self._missing_since > LOST:
                self.lost = True
                raise MalError(
                    f"the Ray cluster at {self._address} is lost ({error.strerror or error}); what is labelled is "
                    "kept, the same command goes on, also without --ray"
                ) from None


class _RayHand:
    """See `crew.Hand`."""

    def __init__(self, number: int, make: Callable[[], Any]) -> None:
        self.name = f"Ray actor {number}"
        self._make = make
        self.messages: Any = None

    def start(self) -> None:
        self._actor = self._make()
        self.messages = self._actor.run.options(num_returns="streaming").remote()

    def give(self, message: BlockWork | Stop | None) -> None:
        self._actor.give.remote(message)

    def receive(self) -> Message | Died:
        """Its next message; waits."""
        try:
            # It is there, says `ray.wait`; but the node that holds it may be lost meanwhile.
            return cast(Message, ray.get(next(self.messages), timeout=PATIENCE))
        except (StopIteration, ray.exceptions.RayError) as error:
            self.kill()
            return Died((str(error).splitlines() or ["it ended"])[0])

    def kill(self) -> None:
        """See `crew.Hand`."""
        self.messages = None
        ray.kill(self._actor)
