"""Several workers give the bytes of one, whatever becomes of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mal.errors import Interrupted, MalError, UsageError
from mal.runtime import crew as crew_module
from mal.runtime import label as label_module
from mal.runtime.blocks import Block, BlockWork, ImageRef
from mal.runtime.crew import DEATHS, Died, FarCrew, Todo
from mal.runtime.journal import ENTRY, Record
from mal.runtime.label import label_dataset
from mal.runtime.processes import split_devices
from mal.runtime.progress import Progress
from mal.runtime.stages import STAGES
from mal.runtime.worker import Closing, Labelled, Message, Ready, Stop


@pytest.mark.parametrize(
    ("word", "devices"),
    [
        (None, [None]),
        ("cpu", ["cpu"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:0,1,3", ["cuda:0", "cuda:1", "cuda:3"]),
        ("cuda:0,cuda:2", ["cuda:0", "cuda:2"]),
        ("cpu,cpu", ["cpu", "cpu"]),
    ],
)
def test_a_word_may_name_several_devices(word: str | None, devices: list[str | None]) -> None:
    assert split_devices(word) == devices


@pytest.mark.parametrize("word", ["cuda:0,cpu", "cpu,cuda:1", "cpu,1"])
def test_devices_of_several_kinds_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="of one kind"):
        split_devices(word)


@pytest.fixture
def many(tmp_path: Path, rng: np.random.Generator) -> Path:
    """200 images of 3 boxes each: four blocks."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in range(200):
        picture = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8))
        picture.resize((60, 50), Image.Resampling.BICUBIC).save(tmp_path / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 60, "height": 50})
        for x, y, w, h in rng.uniform(3, 28, (3, 4)).tolist():
            annotations.append({"id": len(annotations), "image_id": number, "bbox": [x, y, w, h]})
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return path


@pytest.fixture
def run(many: Path, model: Path, tmp_path: Path) -> Callable[..., Any]:
    def run(name: str, **options: Any) -> tuple[Any, bytes]:
        output = tmp_path / name
        report = label_dataset(many, model=model, output=output, batch=4, workers=2, **options)
        return report, output.read_bytes()

    return run


def at_result(monkeypatch: pytest.MonkeyPatch, number: int, what: Callable[[], None]) -> None:
    """Do something when so many results have come."""
    advance, count = Progress.advance, [0]

    def counted(self: Progress, *values: Any) -> None:
        count[0] += 1
        if count[0] == number:
            what()
        advance(self, *values)

    monkeypatch.setattr(label_module.Progress, "advance", counted)


def children() -> list[int]:
    """Processes of workers that this one has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if b"mal.runtime.processes" in words and parent == os.getpid():
                found.append(int(entry.name))
    return found


def test_two_processes_give_the_bytes_of_one_even_if_one_is_killed(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, whole = run("one.json", device="cpu")
    assert report.worker_deaths == 0
    killed: list[int] = []

    def kill() -> None:
        killed.extend(children())
        os.kill(killed[0], signal.SIGKILL)

    at_result(monkeypatch, 9, kill)
    report, found = run("two.json", device="cpu,cpu")
    assert found == whole
    assert len(killed) == 2
    assert (report.worker_deaths, report.device, report.labelled) == (1, "cpu,cpu", 600)
    assert not children()


def test_a_process_may_end_long_before_another(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def pause() -> None:
        slow = children()[0]
        os.kill(slow, signal.SIGSTOP)
        threading.Timer(2, os.kill, (slow, signal.SIGCONT)).start()

    at_result(monkeypatch, 150, pause)  # the last one: three blocks of 48 batches, one of 6
    report, _ = run("two.json", device="cpu,cpu")
    assert (report.worker_deaths, report.labelled) == (0, 600)


def test_workers_end_when_nobody_is_there_to_label_for(many: Path, model: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mal.cli", "label", many, "--engine", model, "-o", tmp_path / "out.json"]
    words += ["--device", "cpu,cpu", "--batch", "1", "--log-json"]
    with subprocess.Popen([str(word) for word in words], stderr=subprocess.PIPE) as driver:
        assert driver.stderr
        driver.stderr.readline()  # "start": the workers are ready
        workers = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if (entry.name.isdecimal() and f") S {driver.pid} " in _stat(entry)) or f") R {driver.pid} " in _stat(entry)
        ]
        driver.kill()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert workers


def _stat(entry: Path) -> str:
    try:
        return (entry / "stat").read_text()
    except OSError:
        return ""


READY = Ready("0" * 12, None, "fake", "cpu", 1, "numpy", 4, "0")  # pyright: ignore[reportArgumentType]


class FakeHand:
    """A worker of one result an object.

    Args:
        mail: where it says what it has to say.
        dies_at, silent_at: (block, object) at which it dies, or says nothing any more, instead.
        starts: how often it can be started.
    """

    name = "fake"

    def __init__(
        self,
        number: int,
        mail: list[tuple[int, Any]],
        dies_at: Collection[tuple[int, int]] = (),
        silent_at: Collection[tuple[int, int]] = (),
        starts: int = 1000,
    ) -> None:
        self._number, self._mail, self._dies_at, self._silent_at = number, mail, dies_at, silent_at
        self._starts = starts
        self.alive = False

    def start(self) -> None:
        self._starts -= 1
        self.alive = self._starts >= 0
        if self.alive:
            self._mail.append((self._number, READY))

    def give(self, message: BlockWork | Stop | None) -> None:
        if not self.alive:
            return
        if not isinstance(message, BlockWork):
            zeros = dict.fromkeys(STAGES, 0.0)
            self._mail.append((self._number, Closing(zeros, zeros, 4)))
            return
        for at in range(message.done, len(message.image)):
            if (message.index, at) in {*self._dies_at, *self._silent_at}:
                self.alive = False
                if (message.index, at) in self._dies_at:
                    self._mail.append((self._number, Died("killed by SIGKILL")))
                return
            entries = np.zeros(1, ENTRY)
            entries["kind"] = 1
            self._mail.append((self._number, Labelled(message.index, Record(at, at + 1, entries, b""), 1.0)))

    def kill(self) -> None:
        self.alive = False


Mail = list[tuple[int, Message | Died]]


def fake_crew(mail: Mail, hands: Sequence[FakeHand]) -> tuple[FarCrew, Todo]:
    """A crew, and five blocks of four objects."""
    blocks = [Block(index, 4 * index, 4 * index + 4) for index in range(5)]

    def work(block: Block, done: int) -> BlockWork:
        image = np.zeros(4, np.int32)
        return BlockWork(block.index, done, np.zeros((4, 4)), image, [ImageRef(f"{block.index}.jpg", 1, 1)], {})

    todo = Todo(blocks, dict.fromkeys(range(5), 0), work)
    return FarCrew(hands, lambda _: mail.pop(0) if mail else None, needed=1, patience=0.2), todo


def label_all(crew: FarCrew, todo: Todo) -> list[tuple[int, int]]:
    return [(some.block, some.record.start) for some in crew.run(todo, lambda: False)]


ALL = [(block, at) for block in range(5) for at in range(4)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_object_comes_once_and_in_the_order_of_its_block(count: int) -> None:
    mail: Mail = []
    found = label_all(*fake_crew(mail, [FakeHand(number, mail) for number in range(count)]))
    assert sorted(found) == ALL
    assert all([at for block, at in found if block == index] == [0, 1, 2, 3] for index in range(5))


def test_a_block_that_kills_its_workers_ends_the_run() -> None:
    mail: Mail = []
    crew, todo = fake_crew(mail, [FakeHand(number, mail, dies_at={(1, 2)}) for number in range(2)])
    found: list[tuple[int, int]] = []
    with pytest.raises(MalError, match=rf"died {DEATHS} times in the block of images '1.jpg' to '1.jpg': killed"):
        found.extend((some.block, some.record.start) for some in crew.run(todo, lambda: False))
    assert len(found) == len(set(found))
    assert (1, 2) not in found


@pytest.mark.parametrize("fault", ["dies_at", "silent_at"])
def test_a_worker_without_work_gets_what_a_lost_one_leaves(fault: str) -> None:
    """The other one is done with all blocks but these, and the lost one does not come back: no room for it."""
    mail: Mail = []
    lost = FakeHand(0, mail, **{fault: {(1, 2)}}, starts=1)
    crew, todo = fake_crew(mail, [lost, FakeHand(1, mail)])
    # The lost one's last words come when all others have been heard.
    crew._listen = lambda _: mail.pop(next((at for at, (hand, _) in enumerate(mail) if hand), 0)) if mail else None
    assert sorted(label_all(crew, todo)) == ALL
    assert crew.deaths == 1


def test_without_any_worker_the_run_ends() -> None:
    mail: Mail = []
    crew, todo = fake_crew(mail, [FakeHand(0, mail, dies_at={(1, 2)}, starts=1)])
    with pytest.raises(MalError, match=r"no worker got ready within 0\.2 s; what is labelled is kept"):
        label_all(crew, todo)
    with pytest.raises(MalError, match="no worker got ready"):
        fake_crew(mail, [FakeHand(0, mail, starts=0)])


def test_workers_that_differ_are_refused() -> None:
    mail: Mail = []
    crew, todo = fake_crew(mail, [FakeHand(number, mail) for number in range(2)])
    crew._ready[0] = READY._replace(backend="another")
    with pytest.raises(MalError, match="the workers differ"):
        label_all(crew, todo)


@pytest.mark.parametrize(("before", "after"), [("cpu,cpu", "cpu"), ("cpu", "cpu,cpu")])
def test_a_run_goes_on_with_another_number_of_workers(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    _, whole = run("whole.json", device="cpu")
    at_result(monkeypatch, 9, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        run("out.json", device=before)
    report, found = run("out.json", device=after)
    assert report.resumed > 0
    assert found == whole


def test_a_worker_that_is_stopped_is_replaced(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = run("one.json", device="cpu")

    def stop() -> None:
        pid, at = children()[0], time.monotonic()
        os.kill(pid, signal.SIGSTOP)

        def clock() -> float:  # from 2 s after that until the process is killed: as if it had said nothing for long
            now = time.monotonic()
            return now + 1000 if now > at + 2 and Path(f"/proc/{pid}").exists() else now

        monkeypatch.setattr(crew_module, "time", SimpleNamespace(monotonic=clock))

    at_result(monkeypatch, 9, stop)
    report, found = run("two.json", device="cpu,cpu")
    assert found == whole
    assert report.worker_deaths >= 1
    assert not children()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://localhost:1", "[::1]:1"])
def test_where_no_cluster_listens_it_is_said_at_once(many: Path, address: str) -> None:
    pytest.importorskip("ray")
    started = time.monotonic()
    with pytest.raises(MalError, match=r"no Ray cluster at .*:1: "):
        label_dataset(many, device="cpu", ray=address, quiet=True)
    assert time.monotonic() - started < 30


def test_a_cluster_without_its_head_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_crew = pytest.importorskip("mal.runtime.ray_crew", reason="needs Ray, the extra `ray`", exc_type=MalError)
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = ray_crew._Head(f"127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(ray_crew, "LOST", 0.0)
        head.check()
    monkeypatch.setattr(ray_crew, "LOST", 1000.0)
    head.check()  # it may come back
    assert not head.lost
    monkeypatch.setattr(ray_crew, "LOST", 0.0)
    with pytest.raises(MalError, match=r"is lost \(Connection refused\); what is labelled is kept"):
        head.check()
    assert head.lost


@pytest.mark.slow
def test_ray_gives_the_same_bytes_though_a_node_is_killed(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    _, whole = run("one.json", device="cpu")
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    size = {"num_cpus": 2, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "_system_config": quick})
    try:
        second = cluster.add_node(num_cpus=2, object_store_memory=80_000_000)
        ray.init(address=cluster.address, log_to_driver=False)
        at_result(monkeypatch, 40, lambda: second.kill_all_processes(check_alive=False, allow_graceful=False))
        report, found = run("ray.json", device="cpu", ray="")
        assert found == whole
        assert report.labelled == 600
    finally:
        ray.shutdown()
        cluster.shutdown()
