"""The CUDA kernel on a GPU: equal to the judge, clean under compute-sanitizer, how fast: python benchmarks/crf_gpu.py

Needs a GPU, nvcc, compute-sanitizer (both of the CUDA toolkit), NumPy and torch. Without a GPU it says so and exits 1.
How the bound comes about: docs/crf.md, "On a GPU".
"""

import argparse
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from crf_gpu import SCENES, Gpu, driver_version, scene  # noqa: E402

from mal.plugins.compile import find_nvcc  # noqa: E402
from mal.plugins.crf_refine import reference  # noqa: E402
from mal.plugins.crf_refine.contract import HIGH, LIMIT, LOW  # noqa: E402
from mal.runtime.machine import gpu_count  # noqa: E402

WORK = ((128, 10, 4096), (128, 100, 1024), (48, 3, 16384))  # cells a side, iterations, crops a call
PEER_CROPS = 256  # unfold keeps nine planes a crop
WANTED = {(128, 10): 1_000_000, (128, 100): 100_000}  # crops a second on an H200. Source: issue 4
ZETA = 0.1
ROUNDS = 10
CELLS = 1e-4  # share of cells that rounding may carry over the boundary (docs/numerics.md)

# Shared-memory wavefronts (128 B, one a clock and SM) that a warp needs to take 32 pixels one iteration further:
# states 3 + 6/16 (a strip of 16 pixels begins with two rows), own weights, three neighbours' weights, the weight
# above once a strip, one store. Weights lie 4 x 2 or 4 x 4 B apart, so a load of one of them takes 2 or 4.
WAVEFRONTS = {"u16": 3.375 + 2 + 3 * 2 + 2 / 16 + 1, "f32": 3.375 + 4 + 3 * 4 + 4 / 16 + 1}
FMAS = 8  # a pixel and iteration; 128 a clock and SM
BYTES = 20  # of global memory a pixel: logits, guide, out


def bound(size: int, iterations: int, shared: int, sms: int, clock: float, memory: float) -> tuple[str, float]:
    """What limits the kernel on paper, and crops a second there. Whole crops only; clock in Hz, memory in B/s."""
    weights = "f32" if ((size + 2) * (size + 1) + 2) * 20 <= shared else "u16"
    steps = sms * clock / (size * size * max(1, iterations))
    limits = {
        f"shared memory ({weights} weights)": steps * 32 / WAVEFRONTS[weights],
        "FMA": steps * 128 / FMAS,
        "global memory": memory / (BYTES * size * size),
    }
    return min(limits.items(), key=lambda limit: limit[1])


def equality(gpu: Gpu) -> list[dict]:
    rows = []
    for name in SCENES:
        *arrays, iterations = scene(name)
        ours, judged = gpu.refine(*arrays, iterations, ZETA), reference.crf_refine(*arrays, iterations, ZETA)
        differ = int(((ours > 0) != (judged > 0)).sum())
        apart = float(np.abs(ours - judged).max())
        print(f"{name:22} {differ} of {ours.size} cells differ from the judge's, max|dL| {apart:.1e}", flush=True)
        rows.append({"scene": name, "iterations": iterations, "cells": ours.size, "differ": differ, "max_dl": apart})
    return rows


def sanitize(tool: str) -> str:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).is_file():
        return "compute-sanitizer is not installed"
    words = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, str(ROOT / "tests" / "crf_gpu.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    said = [line.strip("= ") for line in done.stdout.splitlines() if "SUMMARY" in line]
    return "clean" if done.returncode == 0 else "; ".join(said) or (done.stderr.strip().splitlines() or ["failed"])[-1]


def unfold_version(logits, guide, inside, iterations: int):
    """The step as one writes it down in torch: nine neighbours unfolded, weighted and summed."""
    import torch
    from torch.nn.functional import pad, unfold

    start = (inside * torch.sigmoid(logits)).clamp(LOW, HIGH).logit()
    constant = inside.log().clamp_min(-1e4).flatten(2)
    # Beyond the border lies a colour so far away that its weight is 0.
    around = unfold(pad(guide, (1, 1, 1, 1), value=1e4), 3).view(len(guide), 3, 9, -1)
    weights = torch.exp((around - guide.view(len(guide), 3, 1, -1)).square().sum(1) * (-0.5 / ZETA**2))
    state = start
    for _ in range(iterations):
        total = (unfold(state, 3, padding=1) * weights).sum(1, keepdim=True) + constant
        state = total.clamp(-LIMIT, LIMIT).view_as(start)
    return state


def crops_per_s(call, crops: int) -> float:
    import torch

    call()
    torch.cuda.synchronize()
    best = float("inf")
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3)
    return crops / best


def speeds(gpu: Gpu, chip: dict) -> list[dict]:
    import torch

    from mal.plugins.crf_refine.torch_body import crf_refine_torch

    rows = []
    for size, iterations, count in WORK:
        generator = torch.Generator("cuda").manual_seed(0)

        def noise(channels: int, crops: int = count, size: int = size, generator=generator):
            return torch.randn(crops, channels, size, size, device="cuda", generator=generator)

        logits, guide, refined = noise(1), 0.1 * noise(3), noise(1)
        inside = torch.ones(1, 1, size, size, device="cuda")
        inside[..., : size // 8, :] = 0.3
        stream = torch.cuda.current_stream().cuda_stream
        pointers = [tensor.data_ptr() for tensor in (logits, guide, inside, refined)]

        def kernel(pointers=pointers, shape=logits.shape, iterations=iterations, stream=stream) -> None:
            words = [ctypes.c_void_p(pointer) for pointer in pointers]
            code = gpu.call(*words, False, 1, shape, iterations, ZETA, ctypes.c_void_p(stream))
            if code:
                raise RuntimeError(f"cudaError {code}")

        few = (logits[:PEER_CROPS], guide[:PEER_CROPS], inside)
        figures = {
            "kernel": crops_per_s(kernel, count),
            "torch unfold": crops_per_s(lambda few=few, n=iterations: unfold_version(*few, n), PEER_CROPS),
            "torch body": crops_per_s(lambda few=few, n=iterations: crf_refine_torch(*few, n, ZETA), PEER_CROPS),
        }
        peer = unfold_version(*few, min(3, iterations))
        kernel(iterations=min(3, iterations))
        apart = float((refined[:PEER_CROPS] - peer).abs().max())
        name, limit = bound(size, iterations, gpu.shared_bytes, chip["sms"], chip["clock_hz"], chip["memory_b_s"])
        row = {
            "size": size, "iterations": iterations, "crops": count, "crops_per_s": figures, "bound": name,
            "bound_crops_per_s": limit, "fraction": figures["kernel"] / limit,
            "wanted": WANTED.get((size, iterations)), "max_dl_to_unfold_after_3": apart,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{size:4} x {size:<4} {iterations:3} iterations   "
            + "  ".join(f"{key} {figure:,.0f}" for key, figure in figures.items())
            + f"   kernel = {figures['kernel'] / figures['torch unfold']:.0f} x unfold, {row['fraction']:.0%} of {name}"
            + (f", wanted {row['wanted']:,}" if row["wanted"] else ""),
            flush=True,
        )
    return rows


def examine() -> dict:
    """The chip: SMs, largest clock, memory rate as the driver gives them."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "-i", "0", "--query-gpu=clocks.max.sm,clocks.max.mem", "--format=csv,noheader,nounits"]
    sm, memory = map(float, subprocess.run(query, capture_output=True, text=True, check=True).stdout.split(","))
    # Two transfers a clock over the bus; 6144 bits, the H200's, where torch does not tell.
    width = getattr(properties, "memory_bus_width", 6144)
    return {
        "name": properties.name, "sms": properties.multi_processor_count, "clock_hz": sm * 1e6,
        "memory_b_s": 2 * memory * 1e6 * width / 8,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Write the result here too.")
    to = parser.parse_args().json
    if not gpu_count():
        sys.exit("no CUDA GPU here: nothing was checked")
    import torch

    torch.cuda.init()
    gpu = Gpu()
    chip = examine()
    compiler = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    result = {
        "machine": chip, "driver": driver_version(), "nvcc": compiler.strip().splitlines()[-2],
        "python": platform.python_version(), "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"), "command": " ".join(["python", "benchmarks/crf_gpu.py", *sys.argv[1:]]),
        "equality": equality(gpu),
        "sanitizer": {tool: sanitize(tool) for tool in ("memcheck", "racecheck")},
        "speed": speeds(gpu, chip),
    }  # fmt: skip
    print(f"compute-sanitizer: {result['sanitizer']}")
    if to:
        to.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [row["scene"] for row in result["equality"] if row["differ"] > max(2, CELLS * row["cells"])]
    wrong += [tool for tool, said in result["sanitizer"].items() if said != "clean"]
    wrong += [f"{row['size']} x {row['iterations']}: not the unfold version's" for row in result["speed"]
              if not row["max_dl_to_unfold_after_3"] < 5e-2]  # fmt: skip
    if wrong:
        sys.exit(f"failed: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
