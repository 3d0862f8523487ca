"""Real TensorRT-RTX engines without a GPU: the shipped student and a ViT-S at 512, and what is in them.

    python benchmarks/engines.py --json benchmarks/results/engines.json

FP16 with the CRF plugin, an engine for each chip and one for all. The ViT-S has random weights; what counts is that its
attention stays fused, in FP16 and in INT8: kernels that hold softmax and both matrix products, by name in the plan. The
same ViT in FP32 has none, and stands beside it to show that the count counts. No gate and no search among ranges:
`mal export` has both, and they are not what is measured.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import onnx  # noqa: E402

from mal.export.engine_from_onnx import build_engine  # noqa: E402
from mal.export.engine_options import EngineOptions  # noqa: E402
from mal.export.precision import to_fp16  # noqa: E402
from mal.plugins.crf_refine.tensorrt_library import build_plugin  # noqa: E402
from mal.runtime.machine import cpu_count  # noqa: E402
from mal.runtime.versions import versions  # noqa: E402

STUDENT, VIT = (75, 86, 89, 120), (86, 89, 120)
# A fused multi-head attention as a plan names its kernel, once for each layer and chip.
FUSED = rb"_gemm_mha_v2_0x[0-9a-f]{32}"


def row(name: str, precision: str, content: bytes, chips: tuple[int, ...], plugin: Path) -> dict:
    started = time.perf_counter()
    engine = build_engine(content, options=EngineOptions(compute_capabilities=chips), plugin=plugin)
    seconds = time.perf_counter() - started
    found = {
        "model": name, "precision": precision, "chips": chips, "onnx_mb": round(len(content) / 1e6, 2),
        "plan_mb": round(len(engine.plan) / 1e6, 2), "build_s": round(seconds, 1),
        "plugin": engine.plugin is not None and b"CRFRefine" in engine.plan,
        "fused_attention_per_chip": len(re.findall(FUSED, engine.plan)) / len(chips),
    }  # fmt: skip
    print(json.dumps(found), flush=True)
    return found


def vit() -> dict[str, onnx.ModelProto]:
    """A ViT-S student at 512 with random weights by seed, refined like the shipped one, in each precision."""
    import torch

    from mal.calibration.quantise import FOR_TENSORRT, quantise
    from mal.calibration.ranges import measure
    from mal.config import ModelConstants
    from mal.export.gate_crops import gate_crops
    from mal.export.onnx_file import set_constants
    from mal.export.onnx_from_torch import export_onnx
    from mal.export.refinement import refine_graph
    from mal.network.student import Student

    torch.manual_seed(0)
    constants = ModelConstants(backbone="vit_small_patch16_224", size=512, crf_iterations=3, crf_zeta=0.05)
    model = export_onnx(Student(constants), constants)
    set_constants(model, constants)
    int8 = quantise(model, measure(model, gate_crops(constants).pixels[:2], "min-max"), FOR_TENSORRT)
    for each in (model, int8):
        refine_graph(each, constants, "vit")
    return {"fp16": to_fp16(model), "int8": to_fp16(int8), "fp32": model}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Write the result here too.")
    to = parser.parse_args().json
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # built, not found
        plugin = build_plugin((86,), Path(folder))  # no kernel runs here: the code of one chip will do
        student = onnx.load(ROOT / "mal" / "models" / "student.onnx")
        half = to_fp16(student).SerializeToString()
        rows = [row("student", "fp16", half, chips, plugin) for chips in (*((chip,) for chip in STUDENT), STUDENT)]
        for precision, large in vit().items():
            chips = VIT if precision != "fp32" else VIT[:1]
            rows.append(row("vit-s/16 at 512", precision, large.SerializeToString(), chips, plugin))
    result = {
        "machine": f"{cpu_count()} processors, no GPU; loaded with other work, so the seconds say little",
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "benchmarks/engines.py", *sys.argv[1:]]),
        "versions": versions(("tensorrt-rtx-cu13", "torch", "timm", "onnx", "onnxruntime")), "rows": rows,
    }  # fmt: skip
    if to:
        to.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
