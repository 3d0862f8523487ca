"""Who runs which block: one worker here, or several in other processes or on other machines.

Blocks are idempotent and the journal knows how far each is. So all that a crew does is hand blocks out and pass the
results on; a worker that dies gives its blocks back, and whoever gets them next goes on behind the last result.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from mal.errors import MalError, SessionHungError
from mal.runtime.blocks import Block, BlockWork
from mal.runtime.session import Session
from mal.runtime.stages import Stages
from mal.runtime.worker import BLOCKS_AHEAD, Closing, Job, Labelled, Message, Ready, Stop, Worker
from mal.sources import ImageSource

DEATHS = 3  # of workers with one block in work: then the block is what kills them
PATIENCE = 60.0  # seconds beyond a session's own timeout; then a worker that owes a word is no worker any more
_LISTEN = 1.0  # seconds between two looks at who says nothing, and at Ctrl-C, while nobody says anything


class Todo:
    """The blocks that are not finished, and how far each is.

    Args:
        blocks: those to do.
        done: objects that are done, by the index of the block.
        work_of: (block, done) -> what a worker is told.
    """

    def __init__(
        self, blocks: Sequence[Block], done: dict[int, int], work_of: Callable[[Block, int], BlockWork]
    ) -> None:
        self._blocks = {block.index: block for block in blocks}
        self._done = done
        self._work_of = work_of
        self._waiting = deque(block.index for block in blocks if done[block.index] < len(block))

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> BlockWork | None:
        """The next block, None if none is left."""
        if not self._waiting:
            return None
        index = self._waiting.popleft()
        return self._work_of(self._blocks[index], self._done[index])

    def give_back(self, indices: Sequence[int]) -> None:
        """Blocks of a worker that died, to be taken again before all others."""
        self._waiting.extendleft(reversed(indices))

    def note(self, labelled: Labelled) -> bool:
        """A result came; whether its block is finished."""
        self._done[labelled.block] = labelled.record.stop
        return labelled.record.stop == len(self._blocks[labelled.block])


class Crew(Protocol):
    """One worker or many.

    stages: their time, summed, once `run` is over.   limit: crops that a call of a session took in the end.
    deaths: workers that died.   ready: what they label with; devices of several workers with commas between.
    """

    stages: Stages
    limit: int
    deaths: int

    @property
    def ready(self) -> Ready:
        """What the workers label with."""
        ...

    def run(self, todo: Todo, stop: Callable[[], bool]) -> Iterator[Labelled]:
        """Label all blocks; once `stop` is true, batches in flight are finished and nothing more is begun.

        Raises:
            MalError: a worker failed.
        """
        ...

    def close(self) -> None:
        """Give sessions, processes, machines back, whatever they are doing."""
        ...


class Here:
    """A crew of one: a worker in this process."""

    def __init__(self, session: Session, source: ImageSource, job: Job) -> None:
        self._session = session
        self._hangs = False
        self._worker = Worker(session, source, job)
        self.stages = self._worker.stages
        self.limit = self.ready.batch
        self.deaths = 0

    @property
    def ready(self) -> Ready:
        """See `Crew`."""
        return self._worker.ready

    def run(self, todo: Todo, stop: Callable[[], bool]) -> Iterator[Labelled]:
        """See `Crew.run`."""
        try:
            yield from self._worker.run(iter(todo.take, None), stop)
        except SessionHungError:
            self._hangs = True
            raise
        self.limit = self._worker.closing().limit

    def close(self) -> None:
        """See `Crew.close`."""
        if not self._hangs:  # closing would wait for the call
            self._session.close()


class Hand(Protocol):
    """A worker somewhere else."""

    name: str  # for messages: "cpu", "cuda:1", "actor 3"

    def start(self) -> None:
        """Start it, or a new one in place of one that died. It says Ready, or dies."""
        ...

    def give(self, message: BlockWork | Stop | None) -> None:
        """Send a block, or the end. One that died meanwhile hears nothing."""
        ...

    def kill(self) -> None:
        """End it at once; it has been started."""
        ...


class Died(NamedTuple):
    """What is heard of a worker that cannot say anything any more."""

    why: str


class FarCrew:
    """A crew of hands. Starts them; `listen` is how they are heard.

    Args:
        hands: the workers.
        listen: seconds -> the next message of any hand with the hand's number; None: nobody said anything.
        needed: so many hands have to be ready before anything begins.
        patience: seconds. A hand with work that says nothing for longer has died; without any hand the run ends.

    Raises:
        MalError: one of them cannot work, or none came in time.
    """

    def __init__(
        self,
        hands: Sequence[Hand],
        listen: Callable[[float], tuple[int, Message | Died] | None],
        needed: int,
        patience: float,
    ) -> None:
        self.stages, self.deaths = Stages(), 0
        self._hands, self._listen, self._patience = hands, listen, patience
        self._started: list[Hand] = []
        self._at_work: dict[int, list[BlockWork]] = {}  # blocks of each hand that is ready, in their order
        self._deaths_at: dict[int | str, int] = {}  # without a result in between, by the block in work or the hand
        self._ready: dict[int, Ready] = {}
        self._heard_at = dict.fromkeys(range(len(hands)), 0.0)  # monotonic; or when it was given something to do
        self._manned_at = time.monotonic()  # when there was a hand, or some hope
        try:
            for hand in hands:
                hand.start()
                self._started.append(hand)
            while len(self._ready) < needed:
                if heard := self._hear(manned=False):
                    self._come_and_go(*heard)
        except BaseException:
            self.close()
            raise
        self.limit = self.ready.batch

    @property
    def ready(self) -> Ready:
        """See `Crew`."""
        first = next(iter(self._ready.values()))
        return first._replace(device=",".join(self._ready[number].device for number in sorted(self._ready)))

    def run(self, todo: Todo, stop: Callable[[], bool]) -> Iterator[Labelled]:
        """See `Crew.run`."""
        ended = False
        while self._at_work or (todo and not ended):
            if not ended:
                for number in self._at_work:  # all: a hand without work may get what another one leaves behind
                    self._top_up(number, todo)
                if stop() or not (todo or any(self._at_work.values())):
                    ended = True
                    for number in self._at_work:
                        self._give(number, Stop() if stop() else None)
            heard = self._hear(manned=bool(self._at_work), ended=ended)
            if heard is None:
                continue
            number, message = heard
            if isinstance(message, Labelled):
                finished = todo.note(message)
                self._deaths_at.pop(message.block, None)
                self._deaths_at.pop(self._hands[number].name, None)
                yield message
                if finished:
                    self._at_work[number].pop(0)
            elif isinstance(message, Closing):
                del self._at_work[number]
                self.stages.include(message.seconds, message.cpu_seconds)
                self.limit = min(self.limit, message.limit)
            else:
                todo.give_back(self._come_and_go(number, message, ended))

    def close(self) -> None:
        """See `Crew.close`."""
        for hand in self._started:
            hand.kill()

    def _hear(self, manned: bool, ended: bool = False) -> tuple[int, Message | Died] | None:
        """What a hand says, or that it has not said anything for too long; None: nobody said anything just now."""
        heard, now = self._listen(_LISTEN), time.monotonic()
        if heard:
            self._manned_at = self._heard_at[heard[0]] = now
            return heard
        if manned:
            self._manned_at = now
        elif now - self._manned_at > self._patience:
            raise MalError(
                f"no worker got ready within {self._patience:g} s; what is labelled is kept, the same command goes on"
            )
        for number, works in self._at_work.items():
            if (works or ended) and now - self._heard_at[number] > self._patience:
                self._hands[number].kill()
                return number, Died(f"it said nothing for {self._patience:g} s")
        return None

    def _give(self, number: int, message: BlockWork | Stop | None) -> None:
        self._heard_at[number] = time.monotonic()
        self._hands[number].give(message)

    def _top_up(self, number: int, todo: Todo) -> None:
        works = self._at_work[number]
        while len(works) < BLOCKS_AHEAD and (work := todo.take()):
            works.append(work)
            self._give(number, work)

    def _come_and_go(self, number: int, message: Message | Died, ended: bool = False) -> list[int]:
        """A hand is ready, or has died and is started again; the blocks that it leaves behind."""
        hand = self._hands[number]
        if isinstance(message, Ready):
            first = next(iter(self._ready.values()), message)
            if message.kind != first.kind:
                raise MalError(f"the workers differ: {hand.name} has {message.kind}, another one {first.kind}")
            self._ready[number] = message
            if ended:
                hand.kill()
            else:
                self._at_work[number] = []
            return []
        if not isinstance(message, Died):
            raise message if isinstance(message, MalError) else MalError(f"{hand.name} says {message!r} out of turn")
        works = self._at_work.pop(number, [])
        if not ended:
            self.deaths += 1
            place = works[0].index if works else hand.name
            self._deaths_at[place] = self._deaths_at.get(place, 0) + 1
            if self._deaths_at[place] == DEATHS:
                raise MalError(
                    f"the worker on {hand.name} died {DEATHS} times {_place(works)}: {message.why}; what is labelled "
                    "is kept, the same command goes on"
                )
            hand.start()
        return [work.index for work in works]


def _place(works: Sequence[BlockWork]) -> str:
    names = [image.file_name for image in works[0].images] if works else []
    return f"in the block of images {names[0]!r} to {names[-1]!r}" if names else "before it had any work"
