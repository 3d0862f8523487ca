"""How fast the networks run in torch on a GPU, and what share of the chip that is: python benchmarks/gpu.py

ViT-Ti, ViT-S and ViT-B at 512 (random weights: the speed is the same) and the shipped student, as `TorchSession` runs
them: float16, compiled, channels last, refinement by the CUDA kernel where it is built. Crops lie on the GPU; the best
of several rounds. The share is that of the chip's dense float16 rate, 790 TFLOP/s on an H200, with the operations that
torch counts (matrix products and convolutions, two for a multiply-add). Without a GPU it says so and exits 1.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from mal.config import ModelConstants  # noqa: E402
from mal.runtime.machine import cuda_version, driver_version, gpus  # noqa: E402

BOUND = 790e12  # FLOP/s, float16 with float32 sums, H200. Source: the workplace's notes on the device
WANTED = {"vit-s/16 at 512": 4100}  # crops a second on an H200. Source: issue 5
VITS = {"vit-ti/16": "vit_tiny_patch16_224", "vit-s/16": "vit_small_patch16_224", "vit-b/16": "vit_base_patch16_224"}
BATCHES = (32, 64, 128)
ROUNDS, CALLS = 5, 10


def students():
    """Name, student and constants of each network, made when it is its turn."""
    import torch

    from mal.export.source import find_source
    from mal.network.checkpoint import load_student
    from mal.network.student import Student

    yield ("shipped student", *load_student(find_source(None)))
    for name, backbone in VITS.items():
        torch.manual_seed(0)
        constants = ModelConstants(backbone=backbone, size=512)
        yield f"{name} at 512", Student(constants).eval(), constants


def flops_per_crop(model, size: int) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    return float(counter.get_total_flops())


def crops_per_s(call, batch: int) -> float:
    import torch

    best = float("inf")
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3)
    return CALLS * batch / best


def measure(name: str, student, constants: ModelConstants) -> list[dict]:
    import torch

    from mal.network.deploy import DeployStudent
    from mal.plugins.crf_refine.torch_body import body, crf_refine
    from mal.runtime.torch_session import half_precision

    flops = flops_per_crop(DeployStudent(student, constants).eval(), constants.size)
    student = student.to("cuda")
    model = DeployStudent(student, constants).eval()
    half_precision(model)
    rows = []
    for shapes, dynamic in (("any batch", True), ("one batch", False)):
        torch._dynamo.reset()
        compiled = torch.compile(model, dynamic=dynamic)
        for batch in BATCHES:
            crops = torch.rand(batch, 3, constants.size, constants.size, device="cuda") * 255

            def call(compiled=compiled, crops=crops) -> None:
                logits, _ = compiled(crops)
                if constants.crf_iterations:
                    guide = student.guide(crops)
                    crf_refine(logits, guide, student.inside, constants.crf_iterations, constants.crf_zeta)

            with torch.inference_mode():
                call()  # compiles
                call()
                speed = crops_per_s(call, batch)
            row = {
                "model": name, "compiled_for": shapes, "batch": batch, "crops_per_s": round(speed, 1),
                "gflop_per_crop": round(flops / 1e9, 3), "share_of_bound": round(speed * flops / BOUND, 4),
                "wanted": WANTED.get(name), "crf": body(torch.device("cuda")) if constants.crf_iterations else None,
            }  # fmt: skip
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Write the result here too.")
    to = parser.parse_args().json
    seen = gpus()
    if not seen:
        sys.exit("no CUDA GPU here: nothing was measured")
    import torch

    rows = [row for name, student, constants in students() for row in measure(name, student, constants)]
    result = {
        "machine": seen[0].name, "driver": driver_version(), "cuda": cuda_version(), "torch": torch.__version__,
        "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"), "bound_tflop_per_s": BOUND / 1e12,
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]), "rows": rows,
    }  # fmt: skip
    if to:
        to.write_text(json.dumps(result, indent=1) + "\n")
    best = {name: max(row["crops_per_s"] for row in rows if row["model"] == name) for name in WANTED}
    slow = [f"{name}: {best[name]:,.0f} crops/s, wanted {wanted:,}" for name, wanted in WANTED.items()
            if best[name] < wanted]  # fmt: skip
    if slow and "H200" in seen[0].name:
        sys.exit("; ".join(slow))


if __name__ == "__main__":
    main()
