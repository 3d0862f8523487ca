"""`mal export --int8`: what comes out, what is refused, what a reason overrides."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from tensorrt_parts import SIZE, constants, layered_model, need_plugin, need_rtx

from mal.errors import BoxFileError, ParityError
from mal.export import make, precision_gate
from mal.export.engine_from_onnx import build_engine
from mal.export.engine_options import EngineOptions
from mal.export.export import export_model
from mal.export.gate_crops import gate_crops
from mal.export.parity import answers, onnx_model
from mal.export.precision_gate import Budget, mask_iou
from mal.export.request import ExportReport, ExportRequest
from mal.runtime.session import open_session

PHOTOS = Path(str(resources.files("mal"))) / "models" / "photos" / "boxes.json"
REASON = "its weights are random"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP32 ONNX file of ours: exporting from it takes no torch."""
    path = tmp_path_factory.mktemp("source") / "model.onnx"
    path.write_bytes(layered_model(refine=3).SerializeToString())
    return path


@pytest.fixture(scope="module")
def exported(source: Path) -> ExportReport:
    output = source.with_name("int8.onnx")
    return export_model(
        ExportRequest(source, precision="int8", calibrate=PHOTOS, output=output, target="onnx", accept=REASON)
    )


def nodes(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_the_file(exported: ExportReport, source: Path) -> None:
    model = onnx.load(exported.output)
    onnx.checker.check_model(model, full_check=True)
    assert {value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]} == {1}
    assert {pair.key: pair.value for pair in model.metadata_props} == constants(3).to_metadata()
    counts = nodes(exported.output)
    assert counts["QuantizeLinear"] > 0
    assert counts["CRFRefine"] == nodes(source)["CRFRefine"] == 1
    session = onnxruntime.InferenceSession(exported.output.read_bytes(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        logits, score = session.run(["logits", "score"], {"crops": np.zeros((batch, 3, SIZE, SIZE), np.float32)})
        assert (logits.dtype, logits.shape, score.shape) == (np.float32, (batch, 1, SIZE // 4, SIZE // 4), (batch,))


def test_what_the_manifest_tells(exported: ExportReport) -> None:
    manifest = json.loads(exported.output.with_name("int8.onnx.json").read_text())
    assert manifest["precision"] == "int8"
    parity = manifest["parity"]["precision"]
    assert parity["budget"] == {"mean_iou": 0.97, "size_iou": 0.95, "miou_loss": 0.005}
    assert sum(part["crops"] for part in parity["sizes"].values()) == parity["crops"]
    calibration = manifest["calibration"]
    assert calibration["method"] in calibration["cost_by_method"]
    assert set(calibration["kept_in_float"]) <= set(calibration["cost_by_layer"])
    sets = calibration["annotation_ids"]
    assert not set(sets["aside"]) & set(sets["ranges"] + sets["trials"])
    assert "mask-IoU" in exported.text()
    assert f"ranges  {calibration['method']}" in exported.text()


def test_a_reason_is_recorded_with_what_it_overrides(exported: ExportReport) -> None:
    accepted = exported.manifest.get("accepted")
    problems = exported.manifest["parity"]["precision"]["mean_iou"] < 0.97
    assert (accepted is not None) == problems
    if accepted:
        assert accepted["reason"] == REASON
        assert "mean mask-IoU" in accepted["problems"][0]


@pytest.mark.parametrize(
    ("target", "scheme", "model", "words"),
    [
        ("deepstream", "int8 around zero", "model.onnx", {
            "config_infer_secondary_mal.txt": "model-engine-file=model.onnx_b32_gpu0_int8.engine",
            "README.md": "Model: student, INT8,",
            "Makefile": "--stronglyTyped",
        }),
        ("triton", "uint8 with zero points", "mal_student/1/model.onnx", {
            "mal_student/config.pbtxt": "kind: KIND_CPU",
            "README.md": "(INT8, ONNX, on the CPU: for a GPU serve an engine)",
        }),
    ],
)  # fmt: skip
def test_a_folder_holds_the_form_that_its_program_runs(
    source: Path, tmp_path: Path, target: str, scheme: str, model: str, words: dict[str, str]
) -> None:
    output = tmp_path / "out"
    request = ExportRequest(
        source, precision="int8", calibrate=PHOTOS, output=output, target=target, accept=REASON, refine=2
    )
    export_model(request)
    manifest = json.loads((tmp_path / "out.json").read_text())
    assert (manifest["target"], manifest["precision"], manifest["refine"]) == (target, "int8", 2)
    assert manifest["calibration"]["scheme"] == scheme
    content = (output / model).read_bytes()
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    found = onnx.load_from_string(content)
    assert {value.type.tensor_type.elem_type for value in [*found.graph.input, *found.graph.output]} == {1}
    for name, text in words.items():
        assert text in (output / name).read_text()
    left = {path.name for path in tmp_path.iterdir()}
    assert left - {"out.calibration.png"} == {"out", "out.json"}


def test_it_repeats(exported: ExportReport, source: Path, tmp_path: Path) -> None:
    again = export_model(
        ExportRequest(
            source, precision="int8", calibrate=PHOTOS, output=tmp_path / "b.onnx", target="onnx", accept=REASON
        )
    )
    assert again.output.read_bytes() == exported.output.read_bytes()
    assert again.manifest["calibration"] == exported.manifest["calibration"]


def test_over_budget_nothing_is_written_but_the_table(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(precision_gate.BUDGETS, "int8", Budget(1.1, 0, 1))
    with pytest.raises(ParityError, match="Nothing was written") as refused:
        export_model(
            ExportRequest(source, precision="int8", calibrate=PHOTOS, output=tmp_path / "m.onnx", target="onnx")
        )
    assert "onnx int8 / fp32" in refused.value.table
    assert list(tmp_path.iterdir()) == []


def flat_boxes(folder: Path) -> Path:
    document: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "wall"}]}
    for image in range(8):
        Image.new("RGB", (80, 80), (30 * image, 20, 200)).save(folder / f"{image}.jpg")
        document["images"].append({"id": image, "file_name": f"{image}.jpg", "width": 80, "height": 80})
        document["annotations"].append({"id": image, "image_id": image, "bbox": [10, 10, 60, 60], "category_id": 1})
    (folder / "boxes.json").write_text(json.dumps(document))
    return folder / "boxes.json"


def test_flat_pictures_are_refused_by_command(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "mal.cli", "export", str(source), "--int8", "--calibrate", str(flat_boxes(tmp_path)),
         "--target", "onnx", "-o", str(tmp_path / "out" / "m.onnx")],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "100% of 4 calibration crops are flat" in done.stderr
    assert "medium       4     4" in done.stdout
    assert len(done.stderr.strip().splitlines()) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_boxes_that_are_not_there_are_told_before_the_network_is_traced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(make, "load_source")
    with pytest.raises(BoxFileError, match="no boxes at"):
        export_model(
            ExportRequest(
                source, precision="int8", calibrate=tmp_path / "none.json", output=tmp_path / "m.onnx", target="onnx"
            )
        )


def test_half_precision_is_held_against_the_users_crops_too(source: Path, tmp_path: Path) -> None:
    options = {"precision": "fp16", "target": "onnx", "accept": REASON}
    alone = export_model(ExportRequest(source, output=tmp_path / "a.onnx", **options))
    more = export_model(ExportRequest(source, output=tmp_path / "b.onnx", calibrate=PHOTOS, **options))
    assert more.manifest["parity"]["precision"]["crops"] > alone.manifest["parity"]["precision"]["crops"]
    assert "calibration" not in more.manifest


def test_an_int8_engine(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_rtx()
    plugin = need_plugin()
    monkeypatch.setattr("mal.plugins.crf_refine.tensorrt_library.build_plugin", lambda: plugin)
    report = export_model(
        ExportRequest(
            source, precision="int8", calibrate=PHOTOS, target="tensorrt-rtx", output=tmp_path / "m.plan", accept=REASON
        )
    )
    assert (report.manifest["precision"], report.manifest["target"]) == ("int8", "tensorrt-rtx")
    assert report.manifest["calibration"]["scheme"] == "int8 around zero"
    counts = nodes(tmp_path / "m.onnx")
    assert (counts["QuantizeLinear"] > 0, counts["Cast"] > 0, counts["CRFRefine"]) == (True, True, 1)
    # The same file runs where there is no TensorRT, and gives what it says.
    crops = gate_crops(constants(3)).pixels
    exact, _ = answers(onnx_model(onnx.load(tmp_path / "m.onnx"), optimised=False), crops)
    logits, _ = open_session(tmp_path / "m.onnx", "cpu").run(crops)
    assert mask_iou(logits[:, None], exact, 0.3).mean() > 0.99
    for chip in (75, 86, 89, 120):
        content, options = (tmp_path / "m.onnx").read_bytes(), EngineOptions(compute_capabilities=(chip,))
        assert build_engine(content, options=options, plugin=plugin).plan
