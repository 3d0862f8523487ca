"""Runs killed (SIGKILL) at random moments and resumed: do all end in the bytes of a run that nobody touched?

    python -m benchmarks.kills --runs 200

Every second run labels with two processes; there the victim is the one that labels or one of its workers, by lot.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = 150
BOXES = 3


def make_data(folder: Path) -> Path:
    """Small images with boxes, the same every time."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for number in range(IMAGES):
        picture = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8))
        picture.resize((160, 120), Image.Resampling.BICUBIC).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 160, "height": 120})
        for x, y, w, h in rng.uniform((0, 0, 5, 5), (120, 90, 40, 30), (BOXES, 4)).tolist():
            annotations.append({"id": len(annotations), "image_id": number, "bbox": [x, y, w, h]})
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return path


def label(boxes: Path, output: Path, device: str) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "mal.cli", "label", boxes, "-o", output, "--device", device, "--batch", "4"]
    with (boxes.parent / "said").open("wb") as said:
        return subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=said)


def workers_of(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def prove(runs: int, seed: int = 0) -> dict[str, object]:
    """Kill and resume `runs` runs; counts of what happened, and whether all bytes were equal."""
    luck = random.Random(seed)
    names = ("killed", "workers_killed", "failed", "resumed_from_a_journal", "different")
    counts = {"runs": runs, **dict.fromkeys(names, 0)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        boxes, output = make_data(folder), folder / "out.json"
        seconds: dict[str, float] = {}
        for device in ("cpu", "cpu,cpu"):
            started = time.monotonic()
            assert label(boxes, folder / f"{device}.json", device).wait() == 0, (folder / "said").read_text()
            seconds[device] = time.monotonic() - started
        whole = (folder / "cpu.json").read_bytes()
        counts["different"] += (folder / "cpu,cpu.json").read_bytes() != whole
        for run in range(runs):
            device = ("cpu", "cpu,cpu")[run % 2]
            child = label(boxes, output, device)
            time.sleep(luck.uniform(0, seconds[device]))
            victims = workers_of(child.pid) if device != "cpu" and luck.random() < 0.5 else []
            for victim in victims[:1]:
                os.kill(victim, signal.SIGKILL)
            if not victims:
                child.kill()
            code = child.wait()
            counts["workers_killed"] += bool(victims)
            counts["killed"] += code == -signal.SIGKILL
            if code not in (0, -signal.SIGKILL):  # a worker that is killed is replaced
                counts["failed"] += 1
                print("\n" + (folder / "said").read_text(), file=sys.stderr)
            if code != 0:
                counts["resumed_from_a_journal"] += any((folder / "out.json.journal").glob("*.seg"))
                # By another number of workers than it was begun with: they only decide who labels what.
                code = label(boxes, output, ("cpu,cpu", "cpu")[run % 2] if run % 3 else device).wait()
            counts["different"] += code != 0 or output.read_bytes() != whole
            output.unlink(missing_ok=True)
            print(f"\rrun {run + 1} of {runs}: {counts}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    counts = prove(options.runs, options.seed)
    print(
        json.dumps(
            {**counts, "minutes": round((time.monotonic() - started) / 60, 1), "python": platform.python_version()}
        )
    )
    sys.exit(bool(counts["different"] or counts["failed"]))


if __name__ == "__main__":
    main()
