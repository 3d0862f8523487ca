"""The same images from a folder, from tar files and from an address; and what is not there."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mal.errors import ImageError, InputError, MissingPackageError
from mal.sources import ImageSource, open_source

FILES = {"a.jpg": b"one", "deep/er/b.png": b"two", "empty.jpg": b""}


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def folder(path: Path) -> ImageSource:
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return open_source(path)


def shards(path: Path) -> ImageSource:
    names = list(FILES)
    tar(path / "0.tar", {f"./{name}": FILES[name] for name in names[:1]})
    tar(path / "1.tar", {name: FILES[name] for name in names[1:]})
    return open_source(str(path / "*.tar"))


def remote(path: Path) -> ImageSource:
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec, the extra `remote`")
    system = fsspec.filesystem("memory")
    for name, data in FILES.items():
        system.pipe(f"/{path.name}/{name}", data)
    system.pipe("/secret.jpg", b"secret")
    return open_source(f"memory://{path.name}/")


@pytest.mark.parametrize("make", [folder, shards, remote])
def test_one_interface(tmp_path: Path, make: Callable[[Path], ImageSource]) -> None:
    source = make(tmp_path)
    assert source.read("a.jpg") == b"one"
    assert source.read("./deep//er/../er/b.png") == b"two"
    for name, reason in [
        ("b.jpg", "not found in "), ("", "no file name"), ("a\0", "NUL"), ("empty.jpg", "empty"), ("deep", "."),
        ("../secret.jpg", "leaves|not found"), ("/secret.jpg", "leaves|not found"),
        ("deep/../../x", "leaves|not found"),
    ]:  # fmt: skip
        with pytest.raises(ImageError, match=reason):
            source.read(name)
    assert source.address in (str(tmp_path), str(tmp_path / "*.tar"), f"memory://{tmp_path.name}")
    assert open_source(source.address).read("a.jpg") == b"one"


def test_outside_of_an_address(tmp_path: Path) -> None:
    assert remote(tmp_path).read("../secret.jpg", allow_outside=True) == b"secret"


def test_a_name_in_one_tar_file_twice_and_in_two(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"a": b"old", "b": b"0"})
    tar(tmp_path / "0.tar", {"a": b"new"}, "a")
    tar(tmp_path / "1.tar", {"b": b"1"})
    source = open_source(str(tmp_path / "?.tar"))
    assert source.read("a") == b"new"
    with pytest.raises(ImageError, match="several tar files"):
        source.read("b")


def test_tar_members_that_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ImageError, match="not found"):
        open_source(tmp_path / "0.tar").read("a.jpg")


@pytest.mark.parametrize("address", ["nothing", "nothing.tar", "*.tar", "no-such-scheme://a", "zip://::/nothing.zip"])
def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        open_source(address)


@pytest.mark.parametrize("cut", [700, -1500])
def test_a_damaged_tar_file(tmp_path: Path, cut: int) -> None:
    path = tar(tmp_path / "0.tar", {"a": bytes(5000), "b": bytes(5000)})
    path.write_bytes(path.read_bytes()[:cut] if cut > 0 else b"\x1f\x8b" + path.read_bytes())
    with pytest.raises(InputError, match="no whole tar file"):
        open_source(path)


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingPackageError, match=r"mask-auto-labeler\[remote\]"):
        open_source("s3://bucket/photos")


def test_labelling_from_each_gives_the_same_bytes(tmp_path: Path, dataset: Path, model: Path) -> None:
    from mal.runtime.label import label_dataset

    fsspec = pytest.importorskip("fsspec", reason="needs fsspec, the extra `remote`")
    pictures = sorted((dataset.parent / "images").iterdir())
    for picture in pictures:
        fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{picture.name}", picture.read_bytes())
    for index in range(2):
        tar(tmp_path / f"{index}.tar", {picture.name: picture.read_bytes() for picture in pictures[index::2]})
    outputs = []
    for index, images in enumerate([None, str(tmp_path / "?.tar"), f"memory://{tmp_path.name}"]):
        output = tmp_path / f"masks{index}.json"
        report = label_dataset(dataset, model=model, images=images, output=output)
        outputs.append((output.read_bytes(), report.exit_code, report.skipped_by_reason))
    assert outputs[1:] == outputs[:1] * 2
    assert outputs[0][1] == 3
    assert np.all([reason != "crowd" or count == 1 for reason, count in outputs[0][2].items()])
