import json
import sys
from pathlib import Path

import pytest
from fake_tensorrt import make_tensorrt

from mal.errors import InputError
from mal.runtime import bench, doctor
from mal.runtime.doctor import Check, diagnose
from mal.runtime.machine import Gpu
from mal.runtime.stages import STAGES


def test_bench_gives_the_keys_of_the_design(dataset: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUND_SECONDS", 0.01)
    report = bench.run_bench(dataset, model=model, device="cpu", batch=4, workers=1)
    values = json.loads(json.dumps(report.to_json()))
    keys = ("session_crops_per_s", "pipeline_crops_per_s", "efficiency", "host_ms_per_box", "peak_rss_mb")
    assert all(values[key] > 0 for key in keys)
    assert list(values["stages"]) == list(bench.HOST)
    assert values["host_ms_per_box"] == pytest.approx(sum(values["stages"].values()), abs=1e-3)
    assert values["efficiency"] == pytest.approx(
        values["pipeline_crops_per_s"] / values["session_crops_per_s"], 0.01, 1e-4
    )
    assert "of the session" in report.text()
    assert set(values["pipeline_stages"]) == set(STAGES)
    assert report.text().count("<- the bottleneck") == 1


def test_bench_needs_a_box(dataset: Path, model: Path) -> None:
    dataset.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(InputError, match="no box that can be labelled"):
        bench.run_bench(dataset, model=model, device="cpu")


def test_the_doctor_looks_at_everything_and_never_raises() -> None:
    diagnosis = diagnose()
    values = json.loads(json.dumps(diagnosis.to_json()))
    names = [check["name"] for check in values["checks"]]
    assert {"mal", "ONNX Runtime", "shipped student", "torch", "GPU", "C++ compiler"} <= set(names)
    assert all(check["state"] in ("ok", "missing", "broken") and check["detail"] for check in values["checks"])
    assert len(diagnosis.text().splitlines()) == len(names) + 2


def test_the_doctor_names_the_line_that_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mal.runtime.doctor.installed", lambda package: None)
    checks = {check.name: check for check in diagnose().checks}
    assert checks["ONNX Runtime"].state == "broken"
    assert checks["ONNX Runtime"].fix == 'pip install "mask-auto-labeler[cpu]"'
    assert checks["torch"].fix == 'pip install "mask-auto-labeler[train]"'


def test_two_onnxruntimes_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mal.runtime.doctor.installed", lambda package: "1.0")
    (check,) = (check for check in diagnose().checks if check.name == "ONNX Runtime")
    assert check.state == "broken"
    assert "pip uninstall onnxruntime onnxruntime-gpu" in check.fix


def test_the_doctor_shows_who_refines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def bodies() -> dict[str, Check]:
        return {check.name: check for check in diagnose().checks if "CRF" in check.name or "CPU" in check.name}

    monkeypatch.setattr("mal.runtime.doctor.installed", lambda package: "1.0" if package == "torch" else None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    nothing = bodies()
    assert [check.state for check in nothing.values()] == ["missing", "missing", "ok"]
    assert "torch operations on a CPU" in nothing["CRF refinement runs in"].detail
    shipped = tmp_path / "libmal_host.so"
    monkeypatch.setattr("mal.runtime.doctor.find_host", lambda: shipped)
    there = bodies()
    assert there["compiled for the CPU"].detail == str(shipped)
    assert "the kernel on a CPU" in there["CRF refinement runs in"].detail
    assert not list(tmp_path.iterdir())  # the doctor builds nothing


H200 = Gpu(0, "NVIDIA H200", 90)


@pytest.mark.parametrize(
    ("seen", "packages", "memory", "detail", "fix"),
    [
        ((), {"tensorrt_rtx": "rtx"}, "1.2", "run on a GPU only", ""),
        ((H200,), {}, "1.2", "no TensorRT loads", 'pip install "mask-auto-labeler[tensorrt]"'),
        ((H200,), {"tensorrt": None}, "1.2", "no TensorRT loads", 'pip install "mask-auto-labeler[tensorrt]"'),
        ((H200,), {"tensorrt": "full"}, None, "no cuda-core", 'pip install "mask-auto-labeler[tensorrt]"'),
        ((H200,), {"tensorrt": "full"}, "1.2", "run, with cuda-core 1.2", ""),
    ],
)
def test_the_one_thing_that_engines_miss(
    monkeypatch: pytest.MonkeyPatch, seen: tuple[Gpu, ...], packages: dict, memory: str | None, detail: str, fix: str
) -> None:
    made = {"full": make_tensorrt(), "rtx": make_tensorrt(rtx=True)}
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, made.get(packages.get(package)))
    monkeypatch.setattr(doctor, "find_spec", lambda package: package if package in packages else None)
    monkeypatch.setattr(doctor, "gpus", lambda: seen)
    monkeypatch.setattr(doctor, "installed", lambda package: memory if package == "cuda-core" else "1.0")
    monkeypatch.setattr(doctor, "_shipped_student", lambda: Check("shipped student", "ok", "fine"))
    checks = {check.name: check for check in diagnose().checks}
    assert checks["engines (.plan)"].detail.startswith(detail)
    assert checks["engines (.plan)"].fix == fix
    if seen:
        assert checks["GPU"].detail.startswith("NVIDIA H200, compute capability 90; driver")
    if packages == {"tensorrt": None}:
        assert checks["TensorRT"].state == "broken"
    if "tensorrt_rtx" in packages:
        assert "75, 86, 89, 120, without a GPU too" in checks["TensorRT-RTX"].detail
