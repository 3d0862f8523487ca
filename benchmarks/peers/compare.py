"""Everyone on the same objects: quality, time, size; a table and a plot of quality over speed.

    python -m benchmarks.peers.compare ../shared/data/coco-val -o FOLDER [--plot docs/pictures/peers.png]

Masks are judged by `mal eval`. Time is processor time (all threads together), of the peer's `masks` on decoded images;
ours is the whole command, decoding and writing included. Each one's file stays in FOLDER and is not made again.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.peers.__main__ import write_peer
from benchmarks.peers.peers import NAMES
from mal.evaluation.metrics import evaluate
from mal.runtime.label import label_dataset
from mal.runtime.session import resolve_model

OURS = "mal"
SIZES_MB = {"u2netp": 4.6, "mobilesam": 44.6}
SEEN_MASKS = {"u2netp", "mobilesam"}
FIGURES = ("miou_object", "miou_class", "miou_small", "miou_medium", "miou_large", "share_75", "boundary_iou")


def measure(name: str, data: Path, folder: Path, threads: int) -> dict[str, float]:
    """Label with one of them; objects, images and seconds of processor time."""
    noted = folder / f"{name}.time.json"
    if noted.is_file():
        return json.loads(noted.read_text())
    started = time.process_time()
    if name == OURS:
        report = label_dataset(data / "boxes.json", output=folder / f"{OURS}.json", device="cpu", fresh=True)
        count, seconds = report.labelled, time.process_time() - started
    else:
        found = write_peer(name, data / "boxes.json", None, folder, threads)
        count, seconds = int(found["objects"]), found["seconds"]
    images = len(json.loads((data / "boxes.json").read_text())["images"])
    values = {"objects": count, "images": images, "seconds": seconds}
    noted.write_text(json.dumps(values))
    return values


def rows_of(names: list[str], data: Path, folder: Path, threads: int) -> list[dict[str, Any]]:
    """One row for each labeler, a second one where clipping its masks to the box changes them."""
    rows: list[dict[str, Any]] = []
    for name in names:
        spent = measure(name, data, folder, threads)
        for suffix in [".json"] if name in (OURS, "box", "ellipse", "grabcut") else [".json", ".clipped.json"]:
            figures = evaluate(folder / (name + suffix), data / "instances.json").to_json()
            row: dict[str, Any] = {"peer": name + (", clipped" if "clipped" in suffix else "")}
            row |= {key: figures[key] for key in FIGURES} | {"interval_95": figures["interval_95"]}
            row["s_per_image"] = spent["seconds"] / spent["images"]
            row["ms_per_box"] = 1000 * spent["seconds"] / spent["objects"]
            model = resolve_model("student") if name == OURS else None
            row["size_mb"] = model.stat().st_size / 1e6 if model else SIZES_MB.get(name)
            row["seen_masks"] = name in SEEN_MASKS
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| | objects (95 %) | classes | small | medium | large | IoU > .75 | boundary | s an image | ms a box | MB |",
        "| --- " * 11 + "|",
    ]
    for row in rows:
        low, high = row["interval_95"]
        shown = [f"{row['miou_object']:.3f} ({low:.3f} .. {high:.3f})"]
        shown += [f"{row[key]:.3f}" for key in FIGURES[1:]]
        shown += [f"{row['s_per_image']:.3f}", f"{row['ms_per_box']:.1f}"]
        shown.append("–" if row["size_mb"] is None else f"{row['size_mb']:.1f}")
        lines.append(f"| {row['peer']}{' ²' if row['seen_masks'] else ''} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", "² has seen masks, of other data; the student and its teacher never have."])


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Quality over speed; the floors, which cost nothing, as lines."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for row in rows:
        if row["peer"] in ("box", "ellipse"):
            axes.axhline(row["miou_object"], color="grey", linewidth=0.8, linestyle=":")
            axes.annotate(row["peer"], (0.01, row["miou_object"]), xycoords=("axes fraction", "data"), va="bottom")
            continue
        speed = 1000 / row["ms_per_box"]
        low, high = row["interval_95"]
        axes.errorbar(
            speed,
            row["miou_object"],
            yerr=[[row["miou_object"] - low], [high - row["miou_object"]]],
            fmt="*" if row["peer"] == OURS else "o",
            markersize=12 if row["peer"] == OURS else 6,
            capsize=3,
        )
        axes.annotate(row["peer"], (speed, row["miou_object"]), xytext=(6, 4), textcoords="offset points")
    axes.set(xscale="log", xlabel="boxes a second of one processor", ylabel="mIoU, objects (95 %)")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with boxes.json, instances.json and images/")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--peers", nargs="*", default=[*NAMES, OURS], choices=[*NAMES, OURS])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--plot", type=Path, help="default: FOLDER/peers.png")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = rows_of(options.peers, options.data, options.output, options.threads)
    (options.output / "peers.json").write_text(json.dumps(rows, indent=1))
    print(table(rows))
    plot(rows, options.plot or options.output / "peers.png")


if __name__ == "__main__":
    main()
