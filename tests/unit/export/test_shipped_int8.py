"""`student-int8`, the second shipped model: made from the shipped student, and within its budget."""

import hashlib
import json
from importlib import resources
from pathlib import Path

import onnx
import pytest

from mal.config import ModelConstants
from mal.export.gate_crops import gate_crops
from mal.export.parity import onnx_model
from mal.export.precision_gate import compare_precision
from mal.runtime import machine
from mal.runtime.doctor import diagnose
from mal.runtime.session import open_session, resolve_model

MODELS = Path(str(resources.files("mal"))) / "models"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_was_made_from_the_shipped_student() -> None:
    int8 = resolve_model("student-int8")
    manifest = json.loads(int8.with_name(f"{int8.name}.json").read_text())
    assert manifest["sha256"] == sha256(int8)
    assert manifest["precision"] == "int8"
    assert manifest["source"]["sha256"] == sha256(MODELS / manifest["source"]["name"])
    assert "accepted" not in manifest
    student = json.loads((MODELS / "student.onnx.json").read_text())
    assert manifest["constants"] == student["constants"]


def test_it_is_within_its_budget() -> None:
    """By the file alone, node by node: on a processor without VNNI, ONNX Runtime's kernels may saturate."""
    int8, fp32 = (onnx.load(resolve_model(name)) for name in ("student-int8", "student"))
    constants = ModelConstants.from_metadata({pair.key: pair.value for pair in fp32.metadata_props}, "student")
    gate = gate_crops(constants)
    parity = compare_precision(onnx_model(int8, optimised=False), onnx_model(fp32), gate, constants.expansion, "int8")
    assert parity.problems() == []


def test_it_labels() -> None:
    session = open_session("student-int8", "cpu")
    logits, scores = session.run(gate_crops(session.constants).pixels[:2])
    assert (logits > 0).any()
    assert ((scores > 0) & (scores < 1)).all()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("flags : fpu avx512f avx512_vnni", "about 1.6 times as fast on this CPU (avx512_vnni): --engine student-int8"),
        ("flags : fpu avx2", "has no VNNI; keep to --engine student"),
    ],
)
def test_the_doctor_tells_for_whom_it_is(
    flags: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(machine, "_CPU", tmp_path / "cpuinfo")
    check = next(check for check in diagnose().checks if check.name == "shipped INT8 student")
    assert check.state == "ok"
    assert told in check.detail
