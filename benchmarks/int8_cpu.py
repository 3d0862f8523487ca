"""INT8 against FP32 on ONNX Runtime's CPU, in one run.

    mal export --target onnx -o fp32.onnx
    mal export --int8 --calibrate BOXES.json --target onnx -o int8.onnx
    python -m benchmarks.int8_cpu fp32.onnx int8.onnx [--json OUT.json]

Rounds of both models alternate on the same crops (the built-in photographs), as the session of `mal label` runs them;
the ratio is the median of the rounds' ratios, so that a busy machine hurts both.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from mal.export.gate_crops import gate_crops
from mal.runtime.session import open_session

INSTRUCTIONS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8")


def cpu() -> str:
    """Name of the processor, and which of its instructions are for this."""
    text = Path("/proc/cpuinfo").read_text()
    found = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in text.splitlines() if ":" in line}
    helpful = [name for name in INSTRUCTIONS if name in found.get("flags", "").split()]
    return ", ".join([found.get("model name", "?"), *helpful])


def race(fp32_path: Path, int8_path: Path, rounds: int = 9, crops: int = 64, batch: int = 16) -> dict[str, Any]:
    """Speeds in crops/s, and the ratio INT8 / FP32 of each round of `crops`."""
    with closing(open_session(fp32_path, "cpu")) as fp32, closing(open_session(int8_path, "cpu")) as int8:
        photographs = gate_crops(fp32.constants).pixels
        given = np.ascontiguousarray(np.resize(photographs, (batch, *photographs.shape[1:])))
        calls = max(1, crops // batch)
        speeds: dict[str, list[float]] = {"fp32": [], "int8": []}
        for turn in range(rounds + 1):
            for name, session in (("fp32", fp32), ("int8", int8)):
                started = time.perf_counter()
                for _ in range(calls):
                    session.run(given)
                spent = time.perf_counter() - started
                if turn:  # the first round warms up
                    speeds[name].append(calls * batch / spent)
        ratios = [b / a for a, b in zip(speeds["fp32"], speeds["int8"], strict=True)]
        return {
            "fp32_crops_per_s": round(statistics.median(speeds["fp32"]), 1),
            "int8_crops_per_s": round(statistics.median(speeds["int8"]), 1),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(ratio, 2) for ratio in sorted(ratios)],
            "bytes": {"fp32": fp32_path.stat().st_size, "int8": int8_path.stat().st_size},
            "batch": batch,
            "threads": fp32.threads,
            "machine": cpu(),
            "backend": fp32.backend,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crops", type=int, default=64, help="a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = race(options.fp32, options.int8, options.rounds, options.crops, options.batch)
    result["command"] = " ".join(["python -m benchmarks.int8_cpu", *sys.argv[1:]])
    result["date"] = datetime.date.today().isoformat()
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
