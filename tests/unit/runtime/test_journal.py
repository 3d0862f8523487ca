import errno
import os
import stat
import subprocess
import sys
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest

from mal.errors import JournalError, OutputError
from mal.runtime.journal import ENTRY, LABELLED, SKIPPED, Journal, Record, open_journal, whole_file

KEY = {"boxes": "abc", "batch": 16}


def record(start: int, texts: list[bytes]) -> Record:
    rows = [(LABELLED if index % 2 else SKIPPED, index, index / 8, 70_000, len(t)) for index, t in enumerate(texts)]
    return Record(start, start + len(texts), np.array(rows, ENTRY), b"".join(texts))


RECORDS = [record(0, [b"one", b""]), record(2, [b"three" * 9]), record(3, [b"4", b"5", b"666"])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "out.json.journal"
    with closing(open_journal(folder)) as journal:
        journal.start(KEY, fresh=False)
        for block in (0, 1):
            for some in RECORDS:
                journal.append(block, some)
    return folder


def contents(journal: Journal, block: int) -> list[tuple[int, int, bytes, bytes]]:
    return [(some.start, some.stop, some.entries.tobytes(), some.text) for some, _ in journal.records(block)]


def test_what_was_written_is_read_back(folder: Path) -> None:
    with closing(open_journal(folder)) as journal:
        assert contents(journal, 0) == [(some.start, some.stop, some.entries.tobytes(), some.text) for some in RECORDS]
        offsets = [at for _, at in journal.records(1)]
        assert journal.read(1, offsets[2] + 2, 3) == b"666"
        with pytest.raises(JournalError, match="lost what was written"):
            journal.read(1, offsets[2], 10**6)
        assert journal.resume(0) == journal.resume(1) == 6
        assert journal.resume(2) == 0


def test_any_broken_tail_is_cut_off_and_the_rest_goes_on(folder: Path) -> None:
    segment = folder / "000001.seg"
    whole = segment.read_bytes()
    with closing(open_journal(folder)) as journal:
        ends = [at + len(some.text) for some, at in journal.records(1)]
        for length in range(len(whole)):
            for tail in (b"", bytes(9)):
                segment.write_bytes(whole[:length] + tail)
                kept = sum(end <= length for end in ends)
                assert journal.resume(1) == sum(len(some.entries) for some in RECORDS[:kept])
                assert segment.read_bytes() == whole[: ends[kept - 1] if kept else 0]
                for some in RECORDS[kept:]:
                    journal.append(1, some)
                assert segment.read_bytes() == whole
                journal.append(0, record(6, [b"x"]))  # another block in between: the segment is opened anew


def test_a_flipped_bit_ends_the_segment_there(folder: Path, rng: np.random.Generator) -> None:
    segment = folder / "000000.seg"
    whole = segment.read_bytes()
    with closing(open_journal(folder)) as journal:
        good = contents(journal, 0)
        for at in range(len(whole)):
            segment.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1 :])
            found = contents(journal, 0)
            assert len(found) < len(good)
            assert found == good[: len(found)]


def test_another_run_is_refused_with_the_difference(folder: Path) -> None:
    with (
        closing(open_journal(folder)) as journal,
        pytest.raises(JournalError, match=r"batch: 16 then, 8 now\); .*--fresh"),
    ):
        journal.start({**KEY, "batch": 8}, fresh=False)
    with closing(open_journal(folder)) as journal:
        journal.start({**KEY, "batch": 8}, fresh=True)
        assert journal.resume(0) == 0


def test_a_damaged_key_is_an_error_not_a_new_run(folder: Path) -> None:
    (folder / "run.json").write_text("{")
    with closing(open_journal(folder)) as journal, pytest.raises(JournalError, match="cannot be read"):
        journal.start(KEY, fresh=False)


def test_segments_without_a_key_are_not_trusted(folder: Path) -> None:
    (folder / "run.json").unlink()
    with closing(open_journal(folder)) as journal:
        journal.start(KEY, fresh=False)
        assert journal.resume(0) == 0


def test_two_processes_cannot_have_one_journal(folder: Path) -> None:
    script = (
        f"from mal.runtime.journal import open_journal; from pathlib import Path; open_journal(Path({str(folder)!r}))"
    )
    with closing(open_journal(folder)):
        second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "OutputError: process " in second.stderr
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_full_disk_is_an_output_error_and_keeps_what_was_there(folder: Path) -> None:
    (folder / "000002.seg").symlink_to("/dev/full")
    with closing(open_journal(folder)) as journal:
        before = contents(journal, 1)
        with pytest.raises(OutputError, match="No space left on device; what is labelled is kept"):
            journal.append(2, RECORDS[0])
        assert contents(journal, 1) == before


def test_remove_leaves_nothing(folder: Path) -> None:
    with closing(open_journal(folder)) as journal:
        journal.remove()
    assert not folder.exists()


def test_remove_leaves_the_journal_of_whoever_comes_at_that_moment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, others = Path.unlink, list[Journal]()

    def unlink_and_come(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.name == "lock":
            others.append(open_journal(folder))
            others[0].start(KEY, fresh=False)

    monkeypatch.setattr(Path, "unlink", unlink_and_come)
    with closing(open_journal(folder)) as journal:
        journal.remove()
    monkeypatch.undo()
    with closing(others[0]) as other:
        other.append(0, RECORDS[0])
        assert contents(other, 0) == [(0, 2, RECORDS[0].entries.tobytes(), RECORDS[0].text)]


@pytest.mark.parametrize(("number", "whole"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_flush_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, whole: bool
) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with nullcontext() if whole else pytest.raises(OSError, match="Input/output"), whole_file(tmp_path / "a") as file:
        file.write(b"x")
