"""Versions of what is installed, without importing any of it."""

import platform
from importlib.metadata import PackageNotFoundError, version

from mal import __version__

LABELLING = ("numpy", "opencv-python-headless", "simplejpeg", "pillow", "onnxruntime")


def installed(package: str) -> str | None:
    """Version of a distribution, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions(packages: tuple[str, ...] = LABELLING) -> dict[str, str]:
    """Versions of mal, Python and those of `packages` that are installed."""
    found = {package: installed(package) for package in packages}
    return {"mal": __version__, "python": platform.python_version(), **{k: v for k, v in found.items() if v}}
