"""Every mistake a user can make, as one tree.

    MalError                 exit 1   something failed
    ├── UsageError           exit 2   contradictory or unknown options, keys, suffixes
    ├── InputError           exit 2   an input that cannot be used
    │   ├── BoxFileError              boxes: no file, broken JSON, wrong top level
    │   ├── ModelFileError            a model that is missing, damaged or not ours
    │   └── JournalError              an unfinished run that belongs to other inputs or settings
    ├── ShapeError           exit 2   an array of the wrong shape, dtype or range (also a ValueError)
    ├── ImageError           exit 1   one image that cannot be read; labelling skips its objects and says so
    ├── DeviceError          exit 1   a device or provider that was asked for and is not there
    ├── MissingPackageError  exit 1   an optional package is not installed; names the line that installs it
    ├── EngineError          exit 1   TensorRT cannot build an engine, or the engine does not fit this machine
    ├── ParityError          exit 1   two implementations of one model disagree beyond their tolerance
    ├── SessionHungError     exit 1   a session that does not return from a call
    ├── OutputError          exit 1   cannot write: no permission, no space left
    └── Interrupted          exit 130 stopped by the user; can be resumed

A message is one line: what came, what was expected, what to do.
"""

from typing import ClassVar


class MalError(Exception):
    """Base of all errors that a user can act on; `exit_code` is what `mal` returns."""

    exit_code: ClassVar[int] = 1


class UsageError(MalError):
    """Options or settings that contradict each other or do not exist."""

    exit_code = 2


class InputError(MalError):
    """An input that cannot be used."""

    exit_code = 2


class BoxFileError(InputError):
    """A file of boxes that is missing, malformed or of an unknown format."""


class ModelFileError(InputError):
    """A model file that is missing, damaged or not one of ours."""


class JournalError(InputError):
    """A journal that belongs to other inputs, another model or other settings."""


class ShapeError(MalError, ValueError):
    """An array whose shape, dtype or range is not what the function takes."""

    exit_code = 2


class ImageError(MalError):
    """One image that cannot be used; the message is the reason, without the file's name."""


class DeviceError(MalError):
    """A device, provider or precision that was asked for and cannot be had here."""


class MissingPackageError(MalError):
    """An optional package that the requested work needs; the message names the install line."""


class EngineError(MalError):
    """TensorRT cannot build an engine (its own words are quoted), or the engine was built for another machine."""


class ParityError(MalError):
    """Two implementations of the same model disagree beyond the stated tolerance; `table` holds all figures, or ""."""

    def __init__(self, message: str, table: str = "") -> None:
        super().__init__(message)
        self.table = table


class SessionHungError(MalError):
    """A call of a session did not return in time; its thread cannot be stopped, only the process."""


class OutputError(MalError):
    """Output that cannot be written: no permission, no space, a folder in the way."""


class Interrupted(MalError):  # noqa: N818  it is no error, it is the user's wish
    """The user stopped the run; what was done is kept and the run can be resumed."""

    exit_code = 130


# Which extra of this distribution brings which package.
EXTRA_OF = {
    "onnxruntime": "cpu",
    "torch": "train",
    "timm": "train",
    "lightning": "train",
    "safetensors": "train",
    "onnx": "export",
    "onnxscript": "export",
    "matplotlib": "report",
    "faster_coco_eval": "eval",
    "tensorrt_rtx": "tensorrt-rtx",
    "fsspec": "remote",
    "zstandard": "zstd",
    "cuda": "tensorrt",
    "ray": "ray",
    "av": "video",
}


def missing_package(module: str) -> MissingPackageError:
    """The error for a package that is not installed, with the line that installs it."""
    package = module.partition(".")[0]
    return MissingPackageError(
        f'this needs {package}, which is not installed: pip install "mask-auto-labeler[{EXTRA_OF[package]}]"'
    )
