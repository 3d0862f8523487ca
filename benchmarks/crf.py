"""Crops a second of every body of CRF refinement, beside each other, on one core: python benchmarks/crf.py

The scene is smooth noise: the speed does not depend on the pixels.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

# One core for everyone, before anything reads it.
os.environ["OMP_NUM_THREADS"] = "1"
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from crf_bodies import find_body, smooth_scene  # noqa: E402

SECONDS = 1.0  # of measuring for each figure; the best call counts


def crops_per_s(body, scene, iterations: int) -> float:
    body(*scene, iterations, 0.1)
    best, until = float("inf"), time.monotonic() + SECONDS
    while time.monotonic() < until:
        begin = time.process_time()  # of this process: other work on the machine does not count
        body(*scene, iterations, 0.1)
        best = min(best, time.process_time() - begin)
    return len(scene.logits) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Write the figures here too.")
    to = parser.parse_args().json
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows = []
    for size, batch in ((48, 16), (128, 8)):
        scene = smooth_scene(rng, batch, size, size)
        for iterations in (3, 10, 100):
            figures = {
                name: crops_per_s(find_body(name), scene, iterations) for name in ("judge", "torch", "onnx", "kernel")
            }
            rows.append({"size": size, "iterations": iterations, "crops_per_s": figures})
            line = "  ".join(f"{name} {figure:8.0f}" for name, figure in figures.items())
            to_onnx, to_judge = (figures["kernel"] / figures[name] for name in ("onnx", "judge"))
            ratios = f"kernel = {to_onnx:.1f} x onnx, {to_judge:.0f} x judge"
            print(f"{size:4} x {size:<4} {iterations:3} iterations   {line}   {ratios}", flush=True)
    if to:
        versions = {"numpy": np.__version__, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        cpu = next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            "?",
        )
        head = {
            "cpu": cpu,
            "cores_used": 1,
            "python": platform.python_version(),
            "versions": versions,
            "date": time.strftime("%Y-%m-%d"),
            "command": " ".join(["python", "benchmarks/crf.py", *sys.argv[1:]]),
        }
        to.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
