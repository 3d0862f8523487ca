"""`mal export`: what comes out, what is refused, and that the gate closes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mal.config import ModelConstants
from mal.errors import ModelFileError, OutputError, ParityError, UsageError
from mal.export import parity
from mal.export.export import export_model
from mal.export.gate_crops import gate_crops
from mal.export.refinement import box_coverage
from mal.export.request import ExportReport, ExportRequest
from mal.network.checkpoint import save_student
from mal.network.deploy import DeployStudent
from mal.network.score import inside_map
from mal.network.student import Student
from mal.plugins.crf_refine import reference

# timm's smallest network; the threshold is not 0.5, so that a lost one shows.
CONSTANTS = ModelConstants(
    backbone="test_efficientnet", size=64, threshold=0.3, crf_iterations=4, crf_zeta=0.2, licence="CC0-1.0"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    student = Student(CONSTANTS)
    with torch.no_grad():
        student.head.value.weight.mul_(40)  # an untrained head says next to nothing
    save_student(folder / "student.safetensors", student, CONSTANTS)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> ExportReport:
    return export_model(ExportRequest(run, output=run / "refined.onnx"))


@pytest.fixture(scope="module")
def plain(run: Path, exported: ExportReport) -> Path:
    return export_model(ExportRequest(exported.output, refine=0, output=run / "plain.onnx")).output


def session(path: Path):
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


def test_contract_of_the_file(exported: ExportReport) -> None:
    model = onnx.load(exported.output)
    onnx.checker.check_model(model, full_check=True)
    assert {(domain.domain, domain.version) for domain in model.opset_import} == {("", 20), ("mal", 1)}
    assert [onnx.helper.printable_type(value.type) for value in model.graph.input] == ["FLOAT, batchx3x64x64"]
    assert {value.name: onnx.helper.printable_type(value.type) for value in model.graph.output} == {
        "logits": "FLOAT, batchx1x16x16",
        "score": "FLOAT, batch",
    }
    metadata = {pair.key: pair.value for pair in model.metadata_props}
    assert ModelConstants.from_metadata(metadata, "test") == CONSTANTS


def test_graph_is_clean(exported: ExportReport) -> None:
    model = onnx.load(exported.output)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Shape", "Gather", "Constant", "Identity", "BatchNormalization", "If"}
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    casts = [made_by[node.input[0]] for node in model.graph.node if node.op_type == "Cast"]
    assert set(casts) <= {"Greater", "LessOrEqual", "Not"}  # the score counts cells; nothing else changes its type
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert all(not node.doc_string and not node.metadata_props for node in model.graph.node)
    assert str(Path(parity.__file__).parents[2]).encode() not in exported.output.read_bytes()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_answers_like_torch_at_any_batch(plain: Path, run: Path, batch: int) -> None:
    from mal.network.checkpoint import load_student

    network = DeployStudent(*load_student(run / "student.safetensors"))
    crops = gate_crops(CONSTANTS).pixels[:batch]
    logits, score = session(plain).run(["logits", "score"], {"crops": crops})
    with torch.inference_mode():
        true_logits, true_score = network(torch.from_numpy(crops))
    assert np.abs(logits).max() > 0.5
    assert np.allclose(logits, true_logits, rtol=0, atol=2e-4)
    assert np.allclose(score, true_score, rtol=0, atol=1e-4)


def test_refined_logits_are_the_judges_and_the_score_stays(exported: ExportReport, plain: Path, run: Path) -> None:
    from mal.network.checkpoint import load_student

    crops = gate_crops(CONSTANTS).pixels
    logits, score = session(plain).run(["logits", "score"], {"crops": crops})
    refined, refined_score = session(exported.output).run(["logits", "score"], {"crops": crops})
    student, _ = load_student(run / "student.safetensors")
    with torch.inference_mode():
        guide = torch.nn.functional.interpolate(
            (torch.from_numpy(crops) - student.mean) / student.std, (16, 16), mode="area"
        )
    inside = inside_map(CONSTANTS.expansion, 16).numpy()
    expected = reference.crf_refine(logits, guide.numpy(), inside, 4, 0.2)
    assert ((refined > 0) != (logits > 0)).any()
    assert np.allclose(refined, expected, rtol=0, atol=1e-3)
    assert np.allclose(score, refined_score, rtol=0, atol=1e-6)


def test_box_coverage_is_the_networks_own() -> None:
    assert np.allclose(box_coverage(0.3, 48, 48), inside_map(0.3, 48).numpy(), rtol=0, atol=1e-5)


def test_refinement_goes_in_and_out(exported: ExportReport, plain: Path, run: Path) -> None:
    again = export_model(ExportRequest(plain, refine=4, output=run / "again.onnx")).output
    assert again.read_bytes() == exported.output.read_bytes()
    assert onnx.load(plain).functions == []


def test_refinement_stays_within_the_budget_where_a_network_knows_nothing(plain: Path, run: Path) -> None:
    # Ten iterations: at 100 the undecided fronts of an untrained network move by rounding alone (parity.py).
    report = export_model(ExportRequest(plain, refine=10, output=run / "ten.onnx"))
    refined = report.manifest["parity"]["refinement"]
    assert (refined["iterations"], refined["budget"]) == (10, 1e-4)
    assert refined["cells_differ"] <= 1e-4 * refined["cells"]


def test_same_source_same_bytes(exported: ExportReport, run: Path) -> None:
    again = export_model(ExportRequest(run / "student.safetensors", output=run / "b.onnx")).output
    assert again.read_bytes() == exported.output.read_bytes()


def test_manifest(exported: ExportReport) -> None:
    manifest = json.loads(exported.output.with_name("refined.onnx.json").read_text())
    assert manifest["sha256"] == hashlib.sha256(exported.output.read_bytes()).hexdigest()
    assert manifest["constants"] == CONSTANTS.model_dump(mode="json")
    assert (manifest["precision"], manifest["target"], manifest["refine"]) == ("fp32", "onnx", 4)
    assert manifest["licence"] == "CC0-1.0"
    assert manifest["parity"]["network"]["max_probability"] <= 1e-4
    assert manifest["parity"]["refinement"]["iterations"] == 4
    assert exported.text().splitlines()[0].startswith(f"source  {exported.source}")
    assert json.loads(json.dumps(exported.to_json()))["path"] == str(exported.output)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"output": Path("x.plan")}, "contradicts target onnx"),
        ({"output": Path("x.onnx"), "target": "tensorrt-rtx"}, "contradicts target tensorrt-rtx"),
        ({"output": Path(), "target": "tensorrt-rtx"}, "is a folder; .* model.plan"),
        ({"precision": "int8"}, "--int8 needs --calibrate"),
        ({"precision": "int4"}, "unknown precision"),
        ({"calibrate": Path("boxes.json")}, "go with --int8 or --fp16"),
        ({"accept": "why not"}, "go with --int8 or --fp16"),
        ({"precision": "fp16", "accept": " "}, "--accept needs a reason"),
        ({"precision": "fp16", "images": Path()}, "--images goes with --calibrate"),
        ({"target": "coffee"}, "unknown target"),
        ({"refine": -1}, "--refine -1"),
        ({"output": Path()}, "is a folder"),
    ],
)
def test_contradictory_wishes(run: Path, wish: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_model(ExportRequest(run, **wish))


def test_output_is_not_the_source(exported: ExportReport) -> None:
    with pytest.raises(UsageError, match="would overwrite the source"):
        export_model(ExportRequest(exported.output, output=exported.output))


def test_no_folder_to_write_to(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        export_model(ExportRequest(run, output=tmp_path / "missing" / "m.onnx"))


@pytest.mark.parametrize(
    "name",
    ["missing.onnx", "truncated.onnx", "noise.onnx", "foreign.onnx", "outputs.onnx", "half.onnx", "a.pt", "run"],
)
def test_sources_that_are_none(name: str, tmp_path: Path, plain: Path) -> None:
    source = tmp_path / name
    if name == "truncated.onnx":
        source.write_bytes(plain.read_bytes()[:-1000])
    elif name == "noise.onnx":
        source.write_bytes(bytes(range(256)) * 8)
    elif name == "foreign.onnx":
        model = onnx.load(plain)
        del model.metadata_props[:]
        onnx.save(model, source)
    elif name == "outputs.onnx":
        model = onnx.load(plain)
        del model.graph.output[1]
        onnx.save(model, source)
    elif name == "half.onnx":
        model = onnx.load(plain)
        weight = model.graph.initializer[0]
        weight.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), weight.name)
        )
        onnx.save(model, source)
    elif name == "a.pt":
        source.write_bytes(b"x")
    elif name == "run":
        source.mkdir()
    with pytest.raises(ModelFileError):
        export_model(ExportRequest(source, output=tmp_path / "out.onnx"))
    assert not (tmp_path / "out.onnx").exists()


def test_what_fails_the_gate_is_not_written(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mal.export import refinement

    # The box is put in the wrong place: only a comparison with the judge can see it.
    monkeypatch.setattr(refinement, "box_coverage", lambda *_: np.roll(box_coverage(0.3, 16, 16), 3, axis=3))
    with pytest.raises(ParityError, match="nothing was written"):
        export_model(ExportRequest(plain, refine=4, output=tmp_path / "out.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_gate_sees_a_probability_moved_by_little_more_than_the_budget(rng: np.random.Generator) -> None:
    crops = np.zeros((9, 3, 8, 8), np.float32)

    def truth(crops: parity.Floats) -> tuple[parity.Floats, parity.Floats]:
        return np.full((len(crops), 1, 2, 2), 0.1, np.float32), np.full(len(crops), 0.5, np.float32)

    def moved(logit: float, score: float) -> parity.Model:
        return lambda crops: (truth(crops)[0] + np.float32(logit), truth(crops)[1] + np.float32(score))

    assert parity.compare(moved(2e-4, 5e-5), truth, crops).cells == 36
    for logit, score in ((5e-4, 0), (-0.2, 0), (0, 2e-4), (np.nan, 0), (0, np.nan)):
        with pytest.raises(ParityError):
            parity.compare(moved(logit, score), truth, crops)


def test_gate_counts_ties(rng: np.random.Generator) -> None:
    near = np.float32(1e-5)

    def sided(side: float) -> parity.Model:
        return lambda crops: (np.full((len(crops), 1, 1, 1), side * near, np.float32), np.ones(len(crops), np.float32))

    figures = parity.compare(sided(-1), sided(1), np.zeros((4, 3, 8, 8), np.float32))
    assert (figures.cells_differ, figures.cells_differ_beyond_tie) == (4, 0)


def test_gate_sees_a_batch_that_is_mixed_up() -> None:
    crops = np.arange(11, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 8, 8), np.float32)

    def truth(crops: parity.Floats) -> tuple[parity.Floats, parity.Floats]:
        return crops[:, :1, :2, :2] - 5, crops[:, 0, 0, 0] / 20

    with pytest.raises(ParityError):
        parity.compare(lambda crops: tuple(values[::-1] for values in truth(crops)), truth, crops)
