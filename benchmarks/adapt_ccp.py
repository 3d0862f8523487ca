"""What adaptation to a data set's own boxes is worth: shipped student -> adapted -> MobileSAM, with CPU minutes.

    python -m benchmarks.adapt_ccp ../shared/data/ccp -o FOLDER [--images 150] [key=value …]

As a user would: the student is adapted to exactly the boxes whose masks are wanted, here all boxes of `--images` images
drawn at random, and then labels them. No mask is read but to measure. `key=value` are settings of `mal train`. Adapted
is what the command kept by its own judgement. Training and MobileSAM's masks stay in FOLDER and are not made again.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.__main__ import write_peer
from mal.evaluation.metrics import evaluate
from mal.export.export import export_model
from mal.export.request import ExportRequest
from mal.runtime.label import label_dataset

KEYS = ("miou_object", "miou_class", "miou_small", "miou_medium", "miou_large", "share_75", "boundary_iou")


def part(document: Path, images: set[int], target: Path) -> Path:
    """A COCO file with the annotations of some images only."""
    whole = json.loads(document.read_text())
    whole["images"] = [row for row in whole["images"] if row["id"] in images]
    whole["annotations"] = [row for row in whole["annotations"] if row["image_id"] in images]
    target.write_text(json.dumps(whole))
    return target


def adapt(boxes: Path, images: Path, run: Path, overrides: list[str]) -> dict[str, float]:
    """`mal train` in a process of its own; minutes of processor time, all threads together, and of the clock."""
    noted = run.parent / "time.json"
    if noted.is_file():
        return json.loads(noted.read_text())
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    words = ["train", str(boxes), "--images", str(images), "-o", str(run), *overrides]
    subprocess.run([sys.executable, "-m", "mal.cli", *words], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    minutes = {"cpu_minutes": cpu / 60, "wall_minutes": (time.perf_counter() - started) / 60}
    noted.write_text(json.dumps(minutes))
    return minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with boxes.json, instances.json and images/")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    out: Path = options.output
    out.mkdir(parents=True, exist_ok=True)
    images = json.loads((options.data / "boxes.json").read_text())["images"]
    chosen = np.random.default_rng(0).permutation(len(images))[: options.images]
    ids = {images[row]["id"] for row in chosen}
    wanted = part(options.data / "boxes.json", ids, out / "boxes.json")
    truth = part(options.data / "instances.json", ids, out / "instances.json")

    spent = adapt(wanted, options.data / "images", out / "run", options.overrides)
    if not (out / "adapted.onnx").is_file():
        # ONNX Runtime labels several times as fast as torch.
        export_model(ExportRequest(out / "run", output=out / "adapted.onnx"))
    models = {"shipped": "student", "adapted": str(out / "adapted.onnx")}
    files = {name: out / f"{name}.json" for name in models}
    for name, model in models.items():
        label_dataset(wanted, model=model, images=options.data / "images", output=files[name], fresh=True)
    if not (out / "mobilesam.clipped.json").is_file():  # it does not change from run to run
        write_peer("mobilesam", wanted, options.data / "images", out, os.cpu_count() or 1)
    files |= {"MobileSAM": out / "mobilesam.json", "MobileSAM, clipped": out / "mobilesam.clipped.json"}

    rows: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, file in files.items():
        values = evaluate(file, truth).to_json()
        rows[name] = {key: values[key] for key in KEYS} | {"interval_95": values["interval_95"]}
        print(f"{name:20s}" + "  ".join(f"{key.removeprefix('miou_')} {values[key]:.3f}" for key in KEYS), flush=True)
    rows["adapting"] = spent | {"objects_measured": values["objects"]}
    gain = rows["adapted"]["miou_object"] - rows["shipped"]["miou_object"]
    print(
        f"{values['objects']} objects of {len(ids)} images; adapting {gain:+.3f} in {spent['cpu_minutes']:.1f} minutes "
        f"of processor time ({spent['wall_minutes']:.1f} by the clock)"
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
