"""An engine file and what is known about it: `model.plan` and its manifest `model.plan.json`.

A plan is code. Nothing looks into it, and no library or device is looked for, before its manifest has been read and
its bytes have been found to be those that the manifest describes. This tells damage, mix-ups and changed files; who can
write both files can still make both agree, so take engines only from where you take programs.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mal.config import ModelConstants
from mal.errors import ModelFileError
from mal.runtime.onnx_file import read_metadata
from mal.runtime.session import read_model

_RTX_MAGIC = b"vtrt"  # what plans of TensorRT-RTX begin with; those of TensorRT begin with "ftrt"


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest's part `engine`: what a plan was built from, by and for. Written by `mal.export`."""

    onnx: str
    """Name of the ONNX file that it was built from, in the same folder."""
    onnx_sha256: str
    tensorrt: str
    """Import name of the TensorRT that built it, a space, its version."""
    profile: str
    """Crops a call, min:best:max."""
    compute_capabilities: tuple[int, ...]
    """x 10; what it was built for."""
    hardware_compatible: bool = False
    """Runs on every chip from Ampere (80) on, not only on the one it was built on."""
    plugin: str | None = None
    """Name of the library with our plugin, in the same folder; None: needs none."""
    plugin_sha256: str | None = None
    workspace_gb: float | None = None
    chip: str | None = None
    """Name of the GPU it was built on; None: built without one."""
    driver: str | None = None
    cuda: str | None = None
    """Newest CUDA that this GPU's driver runs."""

    def __post_init__(self) -> None:
        for name in filter(None, (self.onnx, self.plugin)):
            if Path(name).name != name:
                raise ValueError(f"{name!r} is no name of a file in the same folder")

    @property
    def package(self) -> str:
        """Import name of its TensorRT."""
        return self.tensorrt.partition(" ")[0]

    @property
    def version(self) -> str:
        """Version of its TensorRT; empty: unknown."""
        return self.tensorrt.partition(" ")[2]


class Manifest(msgspec.Struct, frozen=True):
    """What a session needs of a manifest; it holds more."""

    sha256: str
    precision: str
    constants: dict[str, Any]
    engine: EngineFacts


@dataclass(frozen=True)
class Plan:
    """A checked engine file."""

    path: Path
    content: bytes
    model_id: str
    constants: ModelConstants
    facts: EngineFacts

    @property
    def onnx(self) -> Path:
        """The model it was built from, where it should lie."""
        return self.path.with_name(self.facts.onnx)


def manifest_path(model: Path) -> Path:
    """Where the manifest of a model lies."""
    return model.with_name(model.name + ".json")


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of an engine.

    Args:
        path: of the engine.

    Raises:
        ModelFileError: there is none, or it is none of an engine of ours.
    """
    file = manifest_path(path)
    try:
        return msgspec.json.decode(file.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise ModelFileError(
            f"{path} has no manifest {file.name}: an engine is code and runs only with the manifest that `mal export` "
            "wrote beside it; copy that too, or run the file unchecked with --trust"
        ) from None
    except OSError as error:
        raise ModelFileError(f"cannot read the manifest {file}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ModelFileError(f"{file} is no manifest of an engine: {error}; `mal export` writes one") from None


def read_plan(path: Path, trust: bool = False) -> Plan:
    """Read an engine file and hold it against its manifest.

    Args:
        path: of the engine.
        trust: take it unchecked, and say so on stderr; what its manifest does not tell is then read from the ONNX
            file of the same name.

    Raises:
        ModelFileError: unreadable, no manifest, or its sha256 is not the manifest's.
    """
    try:
        manifest = read_manifest(path)
    except ModelFileError as problem:
        if not trust:
            raise
        return _untold(path, problem)
    content, model_id = read_model(path)
    found = hashlib.sha256(content).hexdigest()
    if found != manifest.sha256:
        problem = f"{path}: its sha256 is {found[:12]}…, its manifest says {manifest.sha256[:12]}…"
        if not trust:
            raise ModelFileError(
                f"{problem}: the file was changed or damaged; copy both again, or build it again with --rebuild"
            )
        _say(problem)
    source = manifest_path(path).name
    constants = ModelConstants.from_metadata(
        {f"mal.{key}": msgspec.json.encode(value).decode() for key, value in manifest.constants.items()}, source
    )
    return Plan(path, content, model_id, constants, manifest.engine)


def check_file(path: Path, sha256: str | None, what: str) -> None:
    """Refuse a file that belongs to an engine and is not the one that its manifest names.

    Raises:
        ModelFileError: missing, unreadable or changed.
    """
    content, _ = read_model(path)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ModelFileError(
            f"{path}: its sha256 is {found[:12]}…, the engine's manifest says {str(sha256)[:12]}…: this is not the "
            f"{what} that the engine was built with; copy both from the same export"
        )


def _untold(path: Path, problem: ModelFileError) -> Plan:
    """A trusted plan without a manifest: built by trtexec, say."""
    onnx = path.with_suffix(".onnx")
    if not onnx.is_file():
        raise ModelFileError(f"{problem}; nor is there {onnx.name}, to read the model's constants from")
    content, model_id = read_model(path)
    original, _ = read_model(onnx)
    constants = ModelConstants.from_metadata(read_metadata(original, str(onnx)), str(onnx))
    _say(str(problem).partition(":")[0])
    plugins = sorted(path.parent.glob("libmal_crf_tensorrt*.so")) if constants.crf_iterations else []
    facts = EngineFacts(
        onnx=onnx.name,
        onnx_sha256=hashlib.sha256(original).hexdigest(),
        tensorrt="tensorrt_rtx" if content.startswith(_RTX_MAGIC) else "tensorrt",
        profile="",
        compute_capabilities=(),
        plugin=plugins[0].name if plugins else None,
        plugin_sha256=hashlib.sha256(plugins[0].read_bytes()).hexdigest() if plugins else None,
    )
    return Plan(path, content, model_id, constants, facts)


def _say(problem: str) -> None:
    print(f"mal: {problem}; it runs unchecked, as --trust asks: it can do anything that you can", file=sys.stderr)
