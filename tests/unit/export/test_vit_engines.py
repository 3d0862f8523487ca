"""A vision transformer from checkpoint to engine: one node for what is one operation, attention fused in every engine.

timm's smallest, random weights. A ViT-S at 512: benchmarks/engines.py.
"""

import re
from collections import Counter
from importlib import resources
from pathlib import Path

import onnx
import pytest
import torch
from tensorrt_parts import need_plugin, need_rtx

from mal.config import ModelConstants
from mal.export.engine_from_onnx import build_engine
from mal.export.engine_options import EngineOptions
from mal.export.export import export_model
from mal.export.request import ExportRequest
from mal.network.checkpoint import save_student
from mal.network.student import Student
from mal.plugins.crf_refine import tensorrt_library

PHOTOS = Path(str(resources.files("mal"))) / "models" / "photos" / "boxes.json"
BLOCKS = 6
# A fused multi-head attention, as a plan names its kernel.
FUSED = rb"_gemm_mha_v2_0x[0-9a-f]{32}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FP32 ONNX file, from the checkpoint."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    constants = ModelConstants(backbone="test_vit", size=96, crf_iterations=3, crf_zeta=0.05)
    student = Student(constants)
    with torch.no_grad():
        student.head.value.weight.mul_(40)  # an untrained head says next to nothing
    save_student(folder / "student.safetensors", student, constants)
    return export_model(ExportRequest(folder, output=folder / "model.onnx", target="onnx")).output


def fused(onnx_file: Path, chip: int) -> int:
    """Fused attentions in the engine for one chip, by the names of its kernels."""
    options = EngineOptions(compute_capabilities=(chip,))
    return len(re.findall(FUSED, build_engine(onnx_file.read_bytes(), options=options, plugin=need_plugin()).plan))


def test_one_node_for_what_is_one_operation(source: Path) -> None:
    nodes = Counter(node.op_type for node in onnx.load(source).graph.node)
    blocks = {"LayerNormalization": 2 * BLOCKS, "Gelu": BLOCKS, "Softmax": BLOCKS, "MatMul": 6 * BLOCKS}
    assert {name: nodes[name] for name in blocks} == blocks
    assert not nodes.keys() & {"Erf", "Pow", "ReduceMax", "Exp", "Gather", "Identity", "Constant", "Where"}
    # Static: no shape is computed but the batch's, for the class token; the head's own normalisation is not a block's.
    assert nodes["Shape"] <= 1
    assert sum(nodes.values()) <= 50 + 45 * BLOCKS


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "chips"), [("fp16", (75, 86, 89, 120)), ("int8", (86, 89, 120))])
def test_attention_stays_fused(
    source: Path, precision: str, chips: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_rtx()
    plugin = need_plugin()
    monkeypatch.setattr(tensorrt_library, "build_plugin", lambda: plugin)
    output = tmp_path / "m.plan"
    report = export_model(
        ExportRequest(
            source, precision=precision, target="tensorrt-rtx", output=output, accept="its weights are random",
            engine=EngineOptions(compute_capabilities=chips), calibrate=PHOTOS if precision == "int8" else None,
        )
    )  # fmt: skip
    assert tuple(report.manifest["engine"]["compute_capabilities"]) == chips
    assert all(fused(output.with_suffix(".onnx"), chip) >= BLOCKS for chip in (86, 89, 120))
    assert b"CRFRefine" in output.read_bytes()
    if precision == "int8":
        graph = onnx.load(output.with_suffix(".onnx")).graph
        by_output = {name: node.op_type for node in graph.node for name in node.output}
        products = [[by_output.get(name) for name in node.input] for node in graph.node if node.op_type == "MatMul"]
        in_int8 = sum(inputs == ["DequantizeLinear"] * 2 for inputs in products)
        kept = report.manifest["calibration"]["kept_in_float"]
        assert 4 * BLOCKS - len(kept) <= in_int8 <= 4 * BLOCKS  # the linear layers; attention's products never


def test_without_half_precision_nothing_is_fused(source: Path) -> None:
    """What the count counts."""
    need_rtx()
    assert fused(source, 86) == 0
