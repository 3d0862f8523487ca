"""`mal label --rebuild`: the engine once more, from the ONNX file beside it, for this machine and its TensorRT."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mal.errors import ModelFileError, UsageError
from mal.export.engine_from_onnx import Engine, build_engine, find_builder
from mal.export.engine_options import EngineOptions, Profile
from mal.export.files import write_all
from mal.export.manifest import code_revision, dump
from mal.plugins.crf_refine.tensorrt_library import build_plugin
from mal.runtime.machine import gpus
from mal.runtime.plan_file import EngineFacts, check_file, manifest_path, read_manifest


def rebuild_engine(path: Path) -> Engine:
    """Build the engine at `path` again, and write it and its manifest over the old ones.

    What was checked about the model stays in the manifest: the ONNX file is the same.

    Args:
        path: of the engine; the file itself may be damaged or missing.

    Raises:
        UsageError: not the file of an engine.
        ModelFileError: no manifest, or the ONNX file beside it is not the one that the engine was built from.
        DeviceError, EngineError, MissingPackageError: as `build_engine`.
        OutputError: cannot be written.
    """
    if path.suffix.lower() != ".plan":
        raise UsageError(f"--rebuild is for engines (.plan), got {path}")
    facts = read_manifest(path).engine
    onnx = path.with_name(facts.onnx)
    if not onnx.exists():
        raise ModelFileError(
            f"--rebuild needs {onnx}, the model that {path.name} was built from, and it is not there: copy it beside "
            "the engine, or export the engine again"
        )
    check_file(onnx, facts.onnx_sha256, "ONNX file")
    plugin = _plugin(path, facts)
    engine = build_engine(onnx.read_bytes(), package=facts.package, options=_options(facts), plugin=plugin)
    manifest: dict[str, Any] = json.loads(manifest_path(path).read_bytes())
    manifest |= {
        "sha256": hashlib.sha256(engine.plan).hexdigest(),
        "bytes": len(engine.plan),
        "engine": engine.to_json(facts.onnx),
        "rebuilt": {"revision": code_revision(), "from_plan_sha256": manifest["sha256"]},
    }
    files = [(manifest_path(path), dump(manifest)), (path, engine.plan)]
    if engine.plugin and engine.plugin.parent != path.parent:
        files.append((path.with_name(engine.plugin.name), engine.plugin.read_bytes()))
    write_all(files)
    return engine


def _plugin(path: Path, facts: EngineFacts) -> Path | None:
    """The library that lies beside the engine, so that this machine needs no compiler; else one compiled here."""
    if facts.plugin is None:
        return None
    beside = path.with_name(facts.plugin)
    if not beside.exists():
        return build_plugin()
    check_file(beside, facts.plugin_sha256, "plugin")
    return beside


def _options(facts: EngineFacts) -> EngineOptions:
    """As it was built; where the chips can be told, for those of this machine if it has any."""
    _, built_for = find_builder(facts.package)
    here = tuple(sorted({gpu.compute_capability for gpu in gpus()}))
    return EngineOptions(
        profile=Profile.parse(facts.profile),
        compute_capabilities=None if built_for else here or facts.compute_capabilities,
        workspace_gb=facts.workspace_gb,
        hardware_compatible=facts.hardware_compatible,
    )
