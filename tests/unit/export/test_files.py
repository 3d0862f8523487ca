"""Files that belong together: all of them or none, and what stands in the way is named."""

import errno
import os
from pathlib import Path

import pytest

from mal.errors import OutputError
from mal.export.files import write_all


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.plan").write_bytes(b"before")
    synced: list[int] = []

    def fill(file: int) -> None:
        synced.append(file)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(OutputError, match=r"m\.plan: No space left on device"):
        write_all([(tmp_path / "m.plan.json", b"{}"), (tmp_path / "m.plan", b"after")])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"m.plan": b"before"}


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File name too long"):
        write_all([(tmp_path / ("m" * 252), b"")])


def test_a_rename_that_fails_half_way_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new manifest never lies beside an old plan."""
    before = {"m.plan": b"before", "m.plan.json": b"{}"}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    replace = os.replace

    def refuse(old: Path, new: Path) -> None:
        if old.name == "m.plan.part":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        replace(old, new)

    monkeypatch.setattr(os, "replace", refuse)
    files = [(tmp_path / name, b"after") for name in ("m.onnx", "m.plan.json", "m.plan")]
    with pytest.raises(OutputError, match=r"m\.plan: Operation not permitted"):
        write_all(files)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    write_all(files)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {path.name: b"after" for path, _ in files}
