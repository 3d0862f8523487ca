"""Peak memory of labelling: what an annotation costs, and that images, crops and masks in flight cost the same always.

    python benchmarks/memory.py [IMAGES] [--annotations 10000 10000000] [--a-image 1000]

Synthetic boxes over real photographs (default: the built-in ones; file names repeat), one process a size, the whole of
`mal label` but for the session: a fake one answers at once, because the model's memory is not the question and its
time would be days. Peaks are those of fresh processes; the slope between the sizes is what an annotation costs.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from mal.config import ModelConstants
from mal.runtime import label
from mal.runtime.label import label_dataset

PHOTOS = Path(label.__file__).parents[1] / "models" / "photos"


class FakeSession:
    """Answers at once: the same blob for every crop."""

    model_id, backend, device = "0" * 12, "fake", "cpu"
    threads, lanes, auto_batch = 1, 1, 16

    def __init__(self, size: int = 32) -> None:
        self.constants = ModelConstants(backbone="none", size=size)
        y, x = np.mgrid[-1:1:8j, -1:1:8j]
        self._logits = (0.6 - x * x - y * y).astype(np.float32)[None]

    def run(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An ellipse, and a score of a half."""
        return np.repeat(self._logits, len(crops), axis=0), np.full(len(crops), 0.5, np.float32)

    def allocate(self, batch: int) -> np.ndarray:
        """Room for a batch."""
        return np.empty((batch, 3, self.constants.size, self.constants.size), np.float32)

    def close(self) -> None:
        """Nothing to give back."""


def write_boxes(file: Path, photos: list[Path], annotations: int, per_image: int) -> None:
    """A COCO file as Python's json writes it; the images' annotations lie side by side in runs of ten."""
    rng = random.Random(0)
    sizes: dict[str, tuple[int, int]] = {}
    for path in photos:
        with Image.open(path) as photo:
            sizes[path.name] = photo.size
    names = [path.name for path in photos]
    count = -(-annotations // per_image)
    images = [
        {"id": i, "file_name": name, "width": sizes[name][0], "height": sizes[name][1]}
        for i, name in zip(range(count), itertools.cycle(names))
    ]

    def texts() -> Iterator[str]:
        for number in range(annotations):
            image = number // 10 % count
            width, height = sizes[names[image % len(names)]]
            x, y, side = rng.random() * (width - 24), rng.random() * (height - 24), rng.random() * 16 + 8
            yield (
                f'{{"id": {number}, "image_id": {image}, "category_id": 1, "bbox": [{x:.2f}, {y:.2f}, {side:.2f}, '
                f'{side:.2f}], "area": {side * side:.4f}, "iscrowd": 0}}'
            )

    with file.open("w") as stream:
        stream.write(json.dumps({"images": images, "categories": [{"id": 1, "name": "thing"}]})[:-1])
        stream.write(', "annotations": [')
        each = texts()
        separator = ""
        while some := list(itertools.islice(each, 10_000)):
            stream.write(separator + ", ".join(some))
            separator = ", "
        stream.write("]}")


def measure(photos: Path, annotations: int, per_image: int) -> dict[str, float]:
    """Label so many boxes in a fresh process and look at its report."""
    with tempfile.TemporaryDirectory() as name:
        boxes, output = Path(name) / "boxes.json", Path(name) / "masks.json"
        write_boxes(boxes, sorted(photos.glob("*.jpg")), annotations, per_image)
        started = time.perf_counter()
        subprocess.run([sys.executable, __file__, str(photos), "--worker", str(boxes), str(output)], check=True)
        seconds = time.perf_counter() - started
        report = json.loads(output.with_name("masks.json.report.json").read_bytes())
        assert report["labelled"] == annotations
        return {
            "annotations": annotations,
            "images": report["images"],
            "in_mb": round(boxes.stat().st_size / 1e6, 1),
            "out_mb": round(output.stat().st_size / 1e6, 1),
            "peak_mb": report["peak_rss_mb"],
            "seconds": round(seconds, 1),
            "scan_s": report["stages"]["scan"]["seconds"],
            "merge_s": report["stages"]["merge"]["seconds"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?", default=PHOTOS, metavar="IMAGES")
    parser.add_argument("--annotations", type=int, nargs="*", default=[10_000, 10_000_000])
    parser.add_argument("--a-image", type=int, default=1000, dest="per_image")
    parser.add_argument("--worker", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        boxes, output = options.worker
        with mock.patch.object(label, "open_session", return_value=FakeSession()):
            label_dataset(boxes, images=options.photos, output=output)
        return
    rows = []
    for annotations in options.annotations:
        rows.append(measure(options.photos, annotations, options.per_image))
        print(json.dumps(rows[-1]), flush=True)
    for one, other in itertools.pairwise(rows):
        slope = (other["peak_mb"] - one["peak_mb"]) * 1e6 / (other["annotations"] - one["annotations"])
        print(f"{slope:.1f} bytes an annotation from {one['annotations']:,} to {other['annotations']:,}")


if __name__ == "__main__":
    main()
