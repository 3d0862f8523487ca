"""Real TensorRT-RTX engines without a GPU: the shipped student and a ViT-S at 512, and what is in them.

    python benchmarks/engines.py --json benchmarks/results/engines.json

The student: FP16, one engine for each chip and one for all, with the plugin. The ViT-S has random weights; what counts
is that its attention stays fused in float16: kernels by name in the plan, 12 blocks of one attention each.
"""

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from mal.export.engine_options import EngineOptions  # noqa: E402
from mal.export.export import export_model  # noqa: E402
from mal.runtime.versions import versions  # noqa: E402

CHIPS = (75, 86, 89, 120)
# A fused multi-head attention: softmax and both matrix products in one kernel. Source: reference notes on TensorRT, 3.
FUSED = rb"_gemm_mha_v2[A-Za-z0-9_]*"


def fused_attention(plan: bytes) -> int:
    """Different fused attention kernels that a plan names."""
    return len(set(re.findall(FUSED, plan)))


def row(name: str, chips: tuple[int, ...], source: Path | None, folder: Path, precision: str) -> dict:
    output = folder / "model.plan"
    started = time.perf_counter()
    engine = EngineOptions(compute_capabilities=chips)
    report = export_model(source, precision=precision, target="tensorrt-rtx", output=output, engine=engine)
    seconds = time.perf_counter() - started
    manifest, plan = report.manifest, output.read_bytes()
    found = {
        "model": name, "precision": precision, "chips": chips, "plan_mb": round(len(plan) / 1e6, 2),
        "onnx_mb": round(output.with_suffix(".onnx").stat().st_size / 1e6, 2), "export_s": round(seconds, 1),
        "plugin": manifest["engine"]["plugin"] is not None, "fused_attention": fused_attention(plan),
        "mask_iou_with_fp32": manifest["parity"].get("precision", {}).get("mean_iou"),
    }  # fmt: skip
    print(json.dumps(found), flush=True)
    return found


def vit(folder: Path) -> Path:
    """A ViT-S student at 512 with random weights by seed."""
    import torch

    from mal.config import ModelConstants
    from mal.network.checkpoint import save_student
    from mal.network.student import Student

    torch.manual_seed(0)
    constants = ModelConstants(backbone="vit_small_patch16_224", size=512, crf_iterations=3, crf_zeta=0.05)
    student = Student(constants)
    with torch.no_grad():
        student.head.value.weight.mul_(40)  # an untrained head says next to nothing
    save_student(folder / "vit.safetensors", student, constants)
    return folder / "vit.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Write the result here too.")
    parser.add_argument("--only", choices=("student", "vit"), help="One of the two.")
    wish = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if wish.only != "vit":
            rows += [row("student", (chip,), None, folder, "fp16") for chip in CHIPS]
            rows.append(row("student", CHIPS, None, folder, "fp16"))
        if wish.only != "student":
            rows.append(row("vit-s/16 at 512", (86, 89, 120), vit(folder), folder, "fp16"))
    result = {
        "machine": platform.processor() or platform.machine(), "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "benchmarks/engines.py", *sys.argv[1:]]),
        "versions": versions(("tensorrt-rtx-cu13", "torch", "timm", "onnx", "onnxruntime")), "rows": rows,
    }  # fmt: skip
    if wish.json:
        wish.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
