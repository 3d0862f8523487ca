"""A small data set of ellipses on noise, and settings that train on it in seconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mal.config import TrainConfig

torch.set_num_threads(2)

MakeData = Callable[..., Path]
QUICK: dict[str, Any] = {
    "backbone": "mobilenetv2_035",
    "pretrained": "none",
    "size": 64,
    "width": 8,
    "cache_size": 96,
    "rounds": (8, 8),
    "epoch_crops": 4,
    "batch": 2,
    "precision": "32",
    "preview": 2,
}


@pytest.fixture
def quick() -> TrainConfig:
    return TrainConfig(**QUICK)


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    def make(count: int = 3, name: str = "data", **extra: Any) -> Path:
        """boxes.json of `count` photographs with one ellipse each; `extra` goes into each annotation."""
        folder, rng = tmp_path / name, np.random.default_rng(0)
        (folder / "images").mkdir(parents=True)
        images, annotations = [], []
        y, x = np.mgrid[:90, :120]
        for index in range(count):
            photo = rng.integers(0, 60, (90, 120, 3)).astype(np.uint8)
            photo[((x - 60) / 30) ** 2 + ((y - 45) / 25) ** 2 < 1] += 150
            Image.fromarray(photo).save(folder / "images" / f"{index}.png")
            images.append({"id": index, "file_name": f"{index}.png", "width": 120, "height": 90})
            annotations.append({"id": index, "image_id": index, "bbox": [30, 20, 60, 50], "category_id": 1} | extra)
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "egg"}]}
        (folder / "boxes.json").write_text(json.dumps(document))
        return folder / "boxes.json"

    return make
