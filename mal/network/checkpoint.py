"""The file of a trained student: safetensors, stored as fp16, with its constants as metadata."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mal.config import ModelConstants
from mal.errors import ModelFileError, OutputError
from mal.network.student import Student


def save_student(path: Path, student: Student, constants: ModelConstants) -> None:
    """Write a student; the file appears whole or not at all.

    Numbers are stored as fp16 (half the bytes; what that costs is measured by tests/unit/network).

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {
        key: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in student.state_dict().items()
    }
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(_in_order(save(tensors, constants.to_metadata())))
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its header sorted: the library shuffles the metadata, so that each save would differ.

    Layout: 8 bytes little-endian length, JSON header padded with spaces to 8 bytes, tensors.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def read_constants(path: Path) -> ModelConstants:
    """Constants of a student's file, without its tensors. Raises ModelFileError as `load_student` does."""
    if not path.is_file():
        raise ModelFileError(f"no model file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a readable safetensors file: {error}") from None
    return ModelConstants.from_metadata(metadata, str(path))


def load_student(path: Path) -> tuple[Student, ModelConstants]:
    """Read a student, in fp32 and evaluation mode, on the CPU.

    Raises:
        ModelFileError: missing, truncated, not ours, or its tensors do not fit its constants.
    """
    constants = read_constants(path)
    student = Student(constants)
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, torch.Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    own = student.state_dict()
    wrong = [
        key
        for key in own.keys() | tensors.keys()
        if key not in own or key not in tensors or own[key].shape != tensors[key].shape
    ]
    if wrong:
        raise ModelFileError(
            f"{path}: {len(wrong)} tensors do not fit backbone {constants.backbone!r}, e.g. {sorted(wrong)[0]}; "
            "the file is damaged or of another version"
        )
    student.load_state_dict({key: value.to(own[key].dtype) for key, value in tensors.items()})
    return student.eval(), constants
