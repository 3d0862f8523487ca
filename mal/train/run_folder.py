"""What a RUN folder remembers: settings and inputs, so that an interrupted run can go on with the same ones."""

import json
from pathlib import Path
from typing import Literal

from mal.config import TrainConfig
from mal.datasets import BoxFile, open_boxes
from mal.errors import OutputError, UsageError


def remember(out: Path, config: TrainConfig, files: list[BoxFile], folders: list[Path], start: str | Path) -> None:
    """Write what a resumed run needs to know."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        config.write(out / "config.yaml")
        story = {
            "boxes": [str(file.path.resolve()) for file in files],
            "sha256": [file.sha256 for file in files],
            "images": [str(folder.resolve()) for folder in folders],
            "start": str(start),
        }
        (out / "inputs.json").write_text(json.dumps(story, indent=1))
    except OSError as error:
        raise OutputError(f"cannot write into {out}: {error.strerror}") from None


def remembered(
    out: Path, config: TrainConfig, files: list[Path]
) -> tuple[TrainConfig, list[Path], list[Path], Literal["student", "none"] | Path]:
    """Settings, boxes, image folders and start of an interrupted run, checked against what is asked for now."""
    if not (out / "config.yaml").is_file() or not (out / "inputs.json").is_file():
        raise UsageError(f"nothing to resume in {out}: it has no config.yaml and inputs.json of a run")
    stored = TrainConfig.load(out / "config.yaml")
    for key in config.model_fields_set:
        if getattr(config, key) != getattr(stored, key):
            raise UsageError(f"{key}={getattr(config, key)} differs from the run in {out} ({getattr(stored, key)})")
    story = json.loads((out / "inputs.json").read_text())
    known = [Path(name) for name in story["boxes"]]
    if files and [file.resolve() for file in files] != known:
        raise UsageError(f"the run in {out} was started on {', '.join(story['boxes'])}; resume it without box files")
    for file, digest in zip(known, story["sha256"], strict=True):
        if open_boxes(file).sha256 != digest:
            raise UsageError(f"{file} has changed since the run in {out} began; start a new run")
    start = story["start"] if story["start"] in ("student", "none") else Path(story["start"])
    return stored, known, [Path(name) for name in story["images"]], start
