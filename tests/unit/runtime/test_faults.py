"""What can go wrong around a run: each fault ends in a clear line or is survived, and nothing is lost."""

import errno
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.errors import Interrupted, MalError, OutputError, SessionHungError, UsageError
from mal.runtime import blocks as blocks_module
from mal.runtime import label as label_module
from mal.runtime.label import label_dataset
from mal.runtime.labeler import MaskLabeler
from mal.runtime.session import open_session
from mal.runtime.session_threads import out_of_memory

BATCH = 4


@pytest.fixture
def run(dataset: Path, model: Path, tmp_path: Path) -> Callable[..., Any]:
    def run(name: str = "out.json", **changes: Any) -> tuple[Any, bytes]:
        output = tmp_path / name
        options: dict[str, Any] = {"model": model, "device": "cpu", "batch": BATCH, "workers": 2}
        report = label_dataset(dataset, output=output, **{**options, **changes})
        return report, output.read_bytes()

    return run


@pytest.fixture
def session_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any, np.ndarray], Any] | None], None]:
    """Put a function in place of `Session.run`; it gets the true session and the crops."""

    def use(run: Callable[[Any, np.ndarray], Any] | None) -> None:
        class Other:
            def __init__(self, session: Any) -> None:
                self._session = session

            def __getattr__(self, name: str) -> Any:
                return getattr(self._session, name)

            def run(self, crops: np.ndarray) -> Any:
                return run(self._session, crops) if run else self._session.run(crops)

        monkeypatch.setattr(label_module, "open_session", lambda *some, **more: Other(open_session(*some, **more)))

    return use


def test_out_of_memory_halves_and_is_remembered(run, session_of) -> None:
    _, whole = run("whole.json")
    calls: list[int] = []

    def small(session: Any, crops: np.ndarray) -> Any:
        calls.append(len(crops))
        if len(crops) > 1:
            raise RuntimeError("CUDA error: out of memory")
        return session.run(crops)

    session_of(small)
    report, found = run()
    assert found == whole
    assert [calls.count(size) for size in (4, 3, 2)] == [1, 0, 1]  # each size fails once, no more
    assert report.call_limit == 1
    assert "ran out of memory: calls of 1 instead of 4 crops" in report.text()


def test_no_room_for_one_crop_is_an_error(run, session_of) -> None:
    def none(session: Any, crops: np.ndarray) -> Any:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 512")

    session_of(none)
    with pytest.raises(MalError, match="no room even for one crop"):
        run()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA failure 2: cudaErrorMemoryAllocation"), True),
        (RuntimeError("Available memory of 12 is smaller than requested bytes of 24"), True),
        (RuntimeError("CUDNN_STATUS_EXECUTION_FAILED"), False),
        (ValueError("shape"), False),
    ],
)
def test_memory_is_told_from_other_trouble(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) == expected


def test_a_session_that_hangs_is_an_error_and_the_journal_stays(run, session_of) -> None:
    _, whole = run("whole.json")
    release, calls = threading.Event(), [0]

    def hang(session: Any, crops: np.ndarray) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            release.wait(60)
        return session.run(crops)

    session_of(hang)
    started = time.monotonic()
    with pytest.raises(SessionHungError, match=r"on cpu gave no answer for 0\.5 s: it hangs; what is labelled is kept"):
        run(session_timeout=0.5)
    assert time.monotonic() - started < 30
    release.set()
    session_of(None)
    report, found = run()
    assert report.resumed >= 2 * BATCH
    assert found == whole


@contextmanager
def a_decoder_that_dies(monkeypatch: pytest.MonkeyPatch, death: BaseException) -> Generator[None]:
    """At the sixth image."""
    decode, calls = blocks_module.decode_image, [0]

    def dying(*words: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            raise death
        return decode(*words)

    with monkeypatch.context() as patch:
        patch.setattr(blocks_module, "decode_image", dying)
        yield


@pytest.mark.parametrize("death", [SystemExit(), MemoryError("no room"), KeyboardInterrupt()])
def test_a_decode_thread_that_dies_ends_the_run_and_the_journal_stays(
    run, monkeypatch: pytest.MonkeyPatch, death: BaseException
) -> None:
    _, whole = run("whole.json")
    with (
        a_decoder_that_dies(monkeypatch, death),
        pytest.raises((MalError, MemoryError), match=r"host thread died|no room"),
    ):
        run(workers=1)
    report, found = run()
    assert report.resumed > 0
    assert found == whole


def test_sigterm_is_like_ctrl_c(run, session_of) -> None:
    _, whole = run("whole.json")
    calls = [0]

    def stopped(session: Any, crops: np.ndarray) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return session.run(crops)

    session_of(stopped)
    with pytest.raises(Interrupted):
        run()
    session_of(None)
    report, found = run()
    assert report.resumed > 0
    assert found == whole


def test_a_clock_that_jumps_changes_nothing(run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = run("whole.json")
    jumps: Iterator[float] = iter(np.random.default_rng(0).uniform(-1e9, 4e9, 10_000).tolist())
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    report, found = run(log_json=True)
    assert found == whole
    assert 0 <= report.first_mask_seconds <= report.seconds < 60


def test_a_disk_that_fills_at_any_write_loses_nothing(run, tmp_path: Path) -> None:
    """Every file may grow to so many bytes and no more: the system refuses the write that goes beyond."""
    _, whole = run("whole.json")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = 0
    for room in [*range(0, len(whole), len(whole) // 9), *range(0, 2000, 331)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        said = ""
        try:
            run()
        except OutputError as error:
            said = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        full += "File too large; what is labelled is kept" in said
        assert bool(said) == (not (tmp_path / "out.json").exists()), said
        assert not (tmp_path / "out.json").exists() or (tmp_path / "out.json").read_bytes() == whole
        (tmp_path / "out.json").unlink(missing_ok=True)
    assert full > 10
    assert run()[1] == whole


def test_a_file_system_that_turns_read_only_loses_nothing(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From some moment on no file can be opened for writing or written to, as after `errors=remount-ro`."""
    _, whole = run("whole.json")
    left = [0]

    def touch(path: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            touch(self.name)
            return super().write(data)

    def opened(path: Path, mode: str = "r", *some: Any, **more: Any) -> Any:
        if mode == "ab":  # a segment
            touch(path)
            return File(path, mode)
        if "w" in mode:
            touch(path)
        return true_open(path, mode, *some, **more)

    true_open = Path.open
    refused = 0
    for writes in [*range(12), 16, 20, 24, 28, 10_000]:
        left[0] = writes
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", opened)
            try:
                run()
            except OutputError as error:
                refused += "Read-only file system; what is labelled is kept" in str(error)
        assert not (tmp_path / "out.json").exists() or (tmp_path / "out.json").read_bytes() == whole
        (tmp_path / "out.json").unlink(missing_ok=True)
    assert refused > 8
    assert run()[1] == whole


def test_a_read_only_file_system(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one: refused from the start, and for an unfinished run, which goes on when it can be written again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        _, whole = run("whole.json")
        with a_decoder_that_dies(monkeypatch, SystemExit()), pytest.raises(MalError, match="host thread died"):
            run("disk/out.json")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("disk/out.json", "disk/other.json"):
            with pytest.raises(OutputError, match="Read-only file system; what is labelled is kept"):
                run(name)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        report, found = run("disk/out.json")
        assert report.resumed > 0
        assert found == whole
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_must_be_some(run, model: Path, workers: int) -> None:
    with pytest.raises(UsageError, match=f"workers={workers}: expected at least 1"):
        run(workers=workers)
    with pytest.raises(UsageError, match=f"workers={workers}: expected at least 1"):
        MaskLabeler(model, "cpu", workers=workers)


def test_ctrl_c_while_the_command_starts_is_one_line() -> None:
    """The signal comes while typer is being imported, before `main` could catch anything."""
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import mal.cli\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "mal: interrupted\n")


def test_a_second_ctrl_c_does_not_wait_for_host_threads(dataset: Path, model: Path) -> None:
    script = (
        "import sys, time\n"
        "from mal.runtime import blocks\n"
        "def stuck(*_):\n"
        "    print('stuck', flush=True)\n"
        "    time.sleep(60)\n"
        "blocks.decode_image = stuck\n"
        "from mal.cli import main\n"
        f"sys.argv = ['mal', 'label', {str(dataset)!r}, '--engine', {str(model)!r}]\n"
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "Traceback" not in said
    assert said.endswith("mal: interrupted\n")
