"""What a training starts from: a trained student or a backbone, and the constants that say where weights come from."""

import subprocess
from pathlib import Path
from typing import Any

import torch

from mal.config import ModelConstants, TrainConfig
from mal.datasets import BoxFile
from mal.errors import UsageError
from mal.network.checkpoint import load_student
from mal.network.pretrained import PACKAGES, load_file, load_package
from mal.network.student import Student
from mal.train.console import say

SHIPPED = Path(__file__).parents[1] / "models" / "student.safetensors"
SHAPE = ("backbone", "size", "width", "expansion", "fill")  # what a trained student fixes


def start_student(config: TrainConfig, start: str | Path) -> tuple[Student, ModelConstants, int]:
    """The network to start from, its constants, and the round it starts at."""
    torch.manual_seed(config.seed)
    if start == "none":
        constants = ModelConstants(
            name=config.name,
            backbone=config.backbone,
            size=config.size,
            width=config.width,
            expansion=config.expansion,
            fill=config.fill,
            licence=config.licence,
        )
        student = Student(constants)
        _load_backbone(student, config)
        return student, constants, 0
    file = SHIPPED if start == "student" else Path(start)
    student, constants = load_student(file)
    for key in SHAPE:
        if key in config.model_fields_set and getattr(config, key) != getattr(constants, key):
            raise UsageError(
                f"{key}={getattr(config, key)} contradicts {file.name}, which has {getattr(constants, key)}; "
                "leave it out, or start with --from none"
            )
    return student, constants, min(1, len(config.rounds) - 1)


def _load_backbone(student: Student, config: TrainConfig) -> None:
    source = config.pretrained
    net = student.backbone.net.model if hasattr(student.backbone.net, "model") else student.backbone.net
    if source == "auto":
        known = [name for name, package in PACKAGES.items() if package.timm_name == student.backbone.name]
        if not known:
            raise UsageError(
                f"no weights known for backbone {student.backbone.name!r}; give pretrained=FILE, "
                "or pretrained=none to start from random numbers (much worse)"
            )
        source = known[0]
    if source == "none":
        return
    if source in PACKAGES:
        if PACKAGES[source].timm_name != student.backbone.name:
            raise UsageError(f"pretrained={source} is for backbone {PACKAGES[source].timm_name}, not {config.backbone}")
        say(str(load_package(source, net, config.pretrained_file)))
    else:
        say(str(load_file(Path(source), net)))


def origin(config: TrainConfig, files: list[BoxFile], before: ModelConstants | None) -> dict[str, Any]:
    """Constants that say where the weights come from."""
    names = ", ".join(f"{file.path.parent.name}/{file.path.name} (boxes)" for file in files)
    data = config.training_data or names
    if before:
        data = f"{before.training_data}; then {data}"
    return {
        "name": config.name,
        "licence": config.licence,
        "training_data": data,
        "revision": _revision(),
        "config_hash": config.digest(),
        "crf_iterations": config.refine_iterations,
        "crf_zeta": config.refine_zeta,
    }


def _revision() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
