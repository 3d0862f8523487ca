"""`mal export --fp16` and `--target tensorrt-rtx`: the files that come out, what they say, and when none do."""

import hashlib
import json
import sys
from pathlib import Path

import onnx
import pytest
import torch
from tensorrt_parts import need_plugin, need_rtx

from mal.config import ModelConstants
from mal.errors import EngineError, MissingPackageError, ParityError, UsageError
from mal.export import engine_from_onnx, precision_gate
from mal.export.engine_options import RTX_CHIPS
from mal.export.export import export_model
from mal.export.request import ExportRequest
from mal.network.checkpoint import save_student
from mal.network.student import Student
from mal.plugins.crf_refine import tensorrt_library

CONSTANTS = ModelConstants(backbone="test_efficientnet", size=64, crf_iterations=4, crf_zeta=0.2, licence="CC0-1.0")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP32 ONNX file of ours: exporting from it takes no torch."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("source")
    student = Student(CONSTANTS)
    with torch.no_grad():
        student.head.value.weight.mul_(40)  # an untrained head says next to nothing
    save_student(folder / "student.safetensors", student, CONSTANTS)
    return export_model(ExportRequest(folder, output=folder / "model.onnx")).output


@pytest.fixture
def one_chip(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin for one chip in place of the whole one, which takes a minute to compile."""
    need_rtx()
    plugin = need_plugin()
    monkeypatch.setattr(tensorrt_library, "build_plugin", lambda: plugin)
    return plugin


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_half_precision_onnx(source: Path, tmp_path: Path) -> None:
    report = export_model(ExportRequest(source, precision="fp16", output=tmp_path / "half.onnx"))
    assert report.manifest["precision"] == "fp16"
    assert report.manifest["parity"]["precision"]["mean_iou"] >= 0.995
    assert (tmp_path / "half.onnx").stat().st_size < 0.7 * source.stat().st_size
    model = onnx.load(tmp_path / "half.onnx")
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    assert {pair.key: pair.value for pair in model.metadata_props} == CONSTANTS.to_metadata()


def test_an_engine_its_onnx_and_what_they_are(source: Path, tmp_path: Path, one_chip: Path) -> None:
    report = export_model(ExportRequest(source, precision="fp16", target="tensorrt-rtx", output=tmp_path / "m.plan"))
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [one_chip.name, "m.onnx", "m.onnx.json", "m.plan", "m.plan.json"]

    manifest = json.loads((tmp_path / "m.plan.json").read_text())
    assert manifest == json.loads(json.dumps(report.manifest))
    assert manifest["sha256"] == sha256(tmp_path / "m.plan")
    assert (manifest["target"], manifest["precision"], manifest["refine"]) == ("tensorrt-rtx", "fp16", 4)
    assert manifest["constants"] == CONSTANTS.model_dump(mode="json")
    assert manifest["licence"] == "CC0-1.0"
    assert "revision" in manifest
    engine = manifest["engine"]
    assert (engine["onnx"], engine["onnx_sha256"]) == ("m.onnx", sha256(tmp_path / "m.onnx"))
    assert (engine["plugin"], engine["plugin_sha256"]) == (one_chip.name, sha256(one_chip))
    assert engine["compute_capabilities"] == list(RTX_CHIPS)
    assert engine["profile"] == "1:32:64"
    assert engine["tensorrt"].startswith("tensorrt_rtx 1.")

    beside = json.loads((tmp_path / "m.onnx.json").read_text())
    assert (beside["target"], beside["precision"], beside["sha256"]) == ("onnx", "fp16", engine["onnx_sha256"])
    assert f"needs {one_chip.name}" in report.text()


def test_unrefined_engines_need_no_plugin(source: Path, tmp_path: Path) -> None:
    need_rtx()
    report = export_model(ExportRequest(source, refine=0, target="tensorrt-rtx", output=tmp_path / "m.plan"))
    assert report.manifest["engine"]["plugin"] is None
    assert "needs" not in report.text()


def test_the_source_is_not_overwritten(source: Path) -> None:
    before = sha256(source)
    with pytest.raises(UsageError, match="would overwrite the source"):
        export_model(ExportRequest(source, target="tensorrt-rtx", output=source.with_suffix(".plan")))
    assert sha256(source) == before


def test_a_builder_that_fails_leaves_nothing(
    source: Path, tmp_path: Path, one_chip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EngineError("no")

    monkeypatch.setattr(engine_from_onnx, "build_engine", refuse)
    with pytest.raises(EngineError):
        export_model(ExportRequest(source, target="tensorrt-rtx", output=tmp_path / "m.plan"))
    assert list(tmp_path.iterdir()) == []


def test_half_precision_that_costs_too_much_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(precision_gate.BUDGETS, "fp16", precision_gate.Budget(1.1, 0, 1))
    with pytest.raises(ParityError, match="Nothing was written"):
        export_model(ExportRequest(source, precision="fp16", output=tmp_path / "m.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_missing_tensorrt_is_told_first(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingPackageError, match=r"mask-auto-labeler\[tensorrt-rtx\]"):
        export_model(ExportRequest(source, target="tensorrt-rtx", output=tmp_path / "m.plan"))
