"""Real TensorRT-RTX engines of the shipped student, as `mal export` makes them. More: benchmarks/engines.py."""

import hashlib
from importlib import resources
from pathlib import Path

import pytest
from tensorrt_parts import need_plugin, need_rtx

from mal.errors import DeviceError
from mal.export.engine_options import EngineOptions
from mal.export.export import export_model
from mal.export.request import ExportRequest
from mal.plugins.crf_refine import tensorrt_library
from mal.runtime.machine import gpu_count
from mal.runtime.plan_file import read_plan
from mal.runtime.session import open_session

CHIPS = (75, 86, 89, 120)


@pytest.mark.slow
def test_half_precision_for_every_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_rtx()
    plugin = need_plugin()
    monkeypatch.setattr(tensorrt_library, "build_plugin", lambda: plugin)
    student = Path(str(resources.files("mal"))) / "models" / "student.onnx"  # from here it takes no torch
    output = tmp_path / "student.plan"
    options = EngineOptions(compute_capabilities=CHIPS)
    report = export_model(
        ExportRequest(student, precision="fp16", target="tensorrt-rtx", output=output, engine=options)
    )
    assert report.manifest["parity"]["precision"]["mean_iou"] >= 0.995

    plan = read_plan(output)  # manifest and sha256 belong to it
    facts = plan.facts
    assert facts.compute_capabilities == CHIPS
    assert (facts.package, facts.profile, facts.plugin) == ("tensorrt_rtx", "1:32:64", plugin.name)
    for name, sha256 in ((facts.onnx, facts.onnx_sha256), (facts.plugin, facts.plugin_sha256)):
        assert hashlib.sha256((tmp_path / str(name)).read_bytes()).hexdigest() == sha256
    assert b"CRFRefine" in plan.content
    assert 6e6 < len(plan.content) < 11e6  # 8.6 MB; two kinds of code, for Turing and for what came after
    assert plan.onnx.stat().st_size < 5e6
    if not gpu_count():
        with pytest.raises(DeviceError, match="runs on a GPU"):
            open_session(output)
