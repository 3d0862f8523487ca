"""`PATH.json` beside an exported model: what it is, what it came from, how it was checked, with which versions."""

import hashlib
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mal
from mal.config import ModelConstants

_PACKAGES = ("numpy", "onnx", "onnxscript", "onnxruntime", "torch", "timm")


def make_manifest(
    content: bytes,
    constants: ModelConstants,
    *,
    target: str,
    precision: str,
    source: Path,
    parity: dict[str, Any],
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything worth knowing about a model file, as plain JSON values.

    Args:
        content: the file.
        constants: as in its metadata.
        target, precision: as asked for.
        source: what it was made from.
        parity: figures of the gate.
        facts: `calibration` of INT8; `accepted`: what the gate would have refused, and the user's reason.
    """
    return {
        "format": "mal-manifest/1",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "target": target,
        "precision": precision,
        "refine": constants.crf_iterations,
        "licence": constants.licence,
        "constants": constants.model_dump(mode="json"),
        "source": {"name": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()},
        "parity": parity,
        **(facts or {}),
        "versions": {"mal": mal.__version__, "python": platform.python_version(), **_versions()},
        "revision": code_revision(),
    }


def dump(manifest: dict[str, Any]) -> bytes:
    """The manifest's bytes."""
    return json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n"


def code_revision() -> str | None:
    """git revision of this checkout, with "+changes" if it has any; None for an installed package."""
    root = Path(mal.__file__).resolve().parents[1]
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return None
    try:
        revision = _git(root, "rev-parse", "HEAD").strip()
        return revision + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
    ).stdout


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
