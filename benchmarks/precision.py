"""What FP16 and INT8 cost the shipped student, and what INT8 brings on this CPU, in one command.

    python -m benchmarks.precision            # writes benchmarks/results/precision.md; half an hour on two cores
    python -m benchmarks.precision --folder KEPT      # leaves models and masks there, and takes the exports it finds

Exports through `mal export`, masks through `mal label`, figures through `mal eval` on coco-val, which no range was
measured on: INT8 is calibrated on coco-train. Another student wants a fresh folder. Speed: `benchmarks.int8_cpu`,
rounds of both models in turn.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.int8_cpu import race
from mal.export.precision_gate import BUDGETS
from mal.runtime.session import read_model, resolve_model
from mal.runtime.versions import versions

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "precision.md"
EXPORTS = {
    "fp16": ("--fp16", "--target", "onnx", "-o", "fp16.onnx"),
    "int8": ("--int8", "--calibrate", "{data}/coco-train/boxes.json", "--target", "onnx", "-o", "int8.onnx"),
    "rtx": ("--int8", "--calibrate", "{data}/coco-train/boxes.json", "--target", "tensorrt-rtx", "-o", "rtx.plan"),
}
MODELS = {"FP32": "student", "FP16": "fp16.onnx", "INT8": "int8.onnx", "INT8 for TensorRT": "rtx.onnx"}
FIGURES = ("miou_object", "miou_class", "miou_small", "miou_medium", "miou_large", "boundary_iou", "mask_ap")


def mal(*words: str, folder: Path) -> str:
    """Run `mal` in a folder; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "mal.cli", *words], cwd=folder,
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"mal {' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.replace(f"{ROOT}/", "").replace(f"{folder}/", "")


def figures(model: str, data: Path, folder: Path) -> dict[str, Any]:
    """`mal eval` of what `mal label` makes of coco-val with a model."""
    masks = f"{Path(model).stem}.json"
    mal("label", f"{data}/coco-val/boxes.json", "--engine", model, "--fresh", "-o", masks, folder=folder)
    return json.loads(mal("eval", masks, f"{data}/coco-val/instances.json", "--json", folder=folder))


def measure(data: Path, folder: Path) -> str:
    """Everything, as the page to be written."""
    student = resolve_model("student")
    told: dict[str, str] = {}
    for name, words in EXPORTS.items():
        said = folder / f"{name}.txt"
        if not said.is_file():
            said.write_text(mal("export", *(word.format(data=data) for word in words), folder=folder))
        told[name] = said.read_text()
        print(told[name], flush=True)
    found = {model: figures(model, data, folder) for model in MODELS.values()}
    speed = race(student, folder / "int8.onnx")

    rows: list[str] = []
    truth = found["student"]["miou_object"]
    for name, model in MODELS.items():
        budget = BUDGETS.get(name[:4].lower())
        loss = "" if budget is None else f"{truth - found[model]['miou_object']:.4f}"
        size = (student if budget is None else folder / model).stat().st_size / 1e6
        cells = [name, *(f"{found[model][key]:.4f}" for key in FIGURES[:1]), loss]
        cells += [f"{budget.miou_loss}" if budget else "", *(f"{found[model][key]:.4f}" for key in FIGURES[1:])]
        rows.append(f"| {' | '.join([*cells, f'{size:.1f}'])} |")
    return PAGE.format(
        date=datetime.date.today().isoformat(),
        machine=speed["machine"],
        versions=", ".join(f"{k} {v}" for k, v in versions(("onnxruntime", "onnx", "tensorrt-rtx-cu13")).items()),
        student=read_model(student)[1],
        objects=found["student"]["objects"],
        commands="\n".join("mal export " + " ".join(words).format(data="../shared/data") for words in EXPORTS.values()),
        rows="\n".join(rows),
        load=os.getloadavg()[1],
        **told,
        **{key: speed[key] for key in ("fp32_crops_per_s", "int8_crops_per_s", "ratio", "threads", "batch")},
        least=min(speed["ratios"]),
        most=max(speed["ratios"]),
        rounds=len(speed["ratios"]),
    )


PAGE = """\
# FP16 and INT8 of the shipped student

Written by `python -m benchmarks.precision` on {date}: {machine}; {versions}; student.onnx {student}.

```
{commands}
mal label ../shared/data/coco-val/boxes.json --engine MODEL -o masks.json
mal eval masks.json ../shared/data/coco-val/instances.json --json
```
coco-val, {objects} objects; calibrated on coco-train's boxes. ONNX Runtime's CPU made all masks; "INT8 for TensorRT" is
the file that the engine is built from.

| | mIoU objects | loss | budget | classes | small | medium | large | boundary | AP | MB |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

## Speed of INT8 on this CPU
FP32 {fp32_crops_per_s} crops/s, INT8 {int8_crops_per_s} crops/s, **{ratio} times** as fast: the median of {rounds}
rounds in turn ({least} to {most}), batch {batch}, {threads} threads. The machine's load was {load:.1f} over five
minutes; only the ratio counts.

## What `mal export` said
FP16:
```
{fp16}```
INT8 for ONNX Runtime's CPU:
```
{int8}```
INT8 for TensorRT-RTX, all its chips:
```
{rtx}```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="Holds coco-train and coco-val.")
    parser.add_argument("--folder", type=Path, help="Keep models and masks here.")
    parser.add_argument("--to", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        options.to.write_text(measure(options.data.resolve(), folder))


if __name__ == "__main__":
    main()
