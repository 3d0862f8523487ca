"""Where images are: a folder, tar shards, or any address of fsspec. One question: the bytes behind a file name.

    photos/                      a folder; names may lead into subfolders
    shard.tar, 'shards/*.tar'    tar files, also as WebDataset writes them; the members' names are the file names
    s3://bucket/photos           any file system that fsspec knows (its package must be installed); names are below it

A source may be read from several threads.
"""

import glob
import os
import posixpath
import tarfile
import weakref
from pathlib import Path
from typing import Any, Protocol

from mal.errors import ImageError, InputError, missing_package
from mal.images import MAX_BYTES, find_image, inner_name, read_bytes

Address = str | Path
"""A folder, tar files (`*` stands for any), or `scheme://…`."""


class ImageSource(Protocol):
    """Images by their file names."""

    @property
    def address(self) -> str:
        """What an unfinished run compares: the same address, the same images."""
        ...

    def read(self, file_name: str, *, allow_outside: bool = False) -> bytes:
        """Content of an image.

        Args:
            file_name: as in the box file; subfolders with `/`.
            allow_outside: accept names that leave the source.

        Raises:
            ImageError: there is none of this name, it leaves the source, or it cannot be read. One line.
        """
        ...


def open_source(address: Address) -> ImageSource:
    """Open a source of images.

    Raises:
        InputError: nothing there, a damaged or compressed tar file, an address that fsspec does not know.
        MissingPackageError: fsspec, or what it needs for this address, is not installed.
    """
    text = str(address)
    if "://" in text or "::" in text:
        return Remote(text)
    if text.lower().endswith(".tar"):
        return TarShards(text)
    if not Path(address).is_dir():
        raise InputError(
            f"image folder {text} is not there; expected a folder, tar files (shard.tar, 'shards/*.tar') or an address "
            "such as s3://bucket/folder"
        )
    return Folder(Path(address))


class Folder:
    """Images in a folder and below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def address(self) -> str:
        """The folder's absolute path."""
        return str(self.folder.resolve())

    def read(self, file_name: str, *, allow_outside: bool = False) -> bytes:
        """See `ImageSource.read`."""
        return read_bytes(find_image(file_name, self.folder, allow_outside=allow_outside))


class TarShards:
    """Images in tar files. Opening reads all headers and keeps a name, a place and a length for each member.

    Of two members with one name the later one counts within a file, as for tar itself; in two files they are one
    too many, and asking for it is an error. Links are not followed.

    Args:
        pattern: path of a tar file; `*`, `?` and `[…]` stand for several.
    """

    def __init__(self, pattern: str) -> None:
        files = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not files:
            raise InputError(f"no tar file at {pattern}")
        self.address = os.path.abspath(pattern)
        self._files = files
        self._descriptors: list[int] = []
        self._members: dict[str, tuple[int, int, int] | None] = {}  # name -> file, offset, bytes; None: in several
        weakref.finalize(self, _close, self._descriptors)
        for index, file in enumerate(files):
            self._index(index, file)

    def read(self, file_name: str, *, allow_outside: bool = False) -> bytes:
        """See `ImageSource.read`. Nothing lies outside of a tar file: a name that leads there is not found."""
        name = inner_name(file_name, allow_outside=True)
        if name not in self._members:
            raise ImageError(f"not found in {self.address}: no member of this name")
        member = self._members[name]
        if member is None:
            raise ImageError(f"several tar files of {self.address} have a member of this name")
        file, offset, size = member
        if size > MAX_BYTES:
            raise ImageError(f"file has {size} bytes, the limit is {MAX_BYTES}")
        try:
            data = os.pread(self._descriptors[file], size, offset)
        except OSError as error:
            raise ImageError(f"cannot read: {error.strerror}") from None
        if len(data) < size:
            raise ImageError(f"cannot read: {self._files[file]} is cut off")
        if not data:
            raise ImageError("file is empty")
        return data

    def _index(self, index: int, file: str) -> None:
        found: dict[str, tuple[int, int, int]] = {}
        try:
            self._descriptors.append(os.open(file, os.O_RDONLY))
            with tarfile.open(file, "r:") as archive:
                while (member := archive.next()) is not None:
                    if member.isreg() and not member.issparse():
                        found[posixpath.normpath(member.name)] = index, member.offset_data, member.size
                    archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  else it keeps them all
        except tarfile.TarError as error:
            raise InputError(
                f"{file} is no whole tar file ({error}); a compressed one must be unpacked first"
            ) from None
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror or error}") from None
        for name, place in found.items():
            self._members[name] = None if name in self._members else place


class Remote:
    """Images below an address of fsspec.

    Args:
        address: `scheme://…`, also chained ones (`zip://::s3://bucket/photos.zip`).
    """

    def __init__(self, address: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise missing_package("fsspec") from None
        self.address = address.rstrip("/")
        try:
            system, root = fsspec.core.url_to_fs(address)
        except ImportError as error:  # fsspec names the package of this scheme
            raise InputError(f"images {address}: {' '.join(str(error).split())}") from None
        except Exception as error:  # whatever the scheme's package raises
            raise InputError(f"images {address} cannot be opened: {_words(error)}") from None
        self._system: Any = system
        self._root = str(root).rstrip("/")

    def read(self, file_name: str, *, allow_outside: bool = False) -> bytes:
        """See `ImageSource.read`."""
        name = inner_name(file_name, allow_outside=allow_outside)
        path = posixpath.normpath(f"{self._root}/{name}")
        try:
            data: bytes = self._system.cat_file(path, end=MAX_BYTES + 1)
        except FileNotFoundError:
            raise ImageError(f"not found in {self.address}") from None
        except Exception as error:  # each file system has errors of its own
            raise ImageError(f"cannot read: {_words(error)}") from None
        if len(data) > MAX_BYTES:
            raise ImageError(f"file has more than {MAX_BYTES} bytes")
        if not data:
            raise ImageError("file is empty")
        return data


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _words(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
