"""The model repository: Triton's own schema reads it, `mal_label` answers like `MaskLabeler`."""

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from triton_parts import Request, load_model, server

import mal
from mal.config import ModelConstants
from mal.errors import ModelFileError, OutputError, UsageError
from mal.export.engine_options import EngineOptions, Profile
from mal.export.export import export_model
from mal.export.request import ExportRequest
from mal.export.triton import pbtxt, write_repository
from mal.masks import decode

ROOT = Path(__file__).resolve().parents[3]
STUDENT = Path(str(resources.files("mal"))) / "models" / "student.onnx"
PHOTO = STUDENT.parent / "photos" / "chelsea.jpg"
BOXES = np.array([[110, 30, 400, 290], [-20, 100, 80, 380], [500, 10, 600, 90], [30, 30, 30, 60]], np.float32)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    write_repository(folder, STUDENT.read_bytes())
    return folder


class Network:
    """`mal_student` by ONNX Runtime, in the shapes that its configuration promises."""

    def __init__(self, repository: Path) -> None:
        self._session = onnxruntime.InferenceSession(repository / "mal_student/1/model.onnx")
        self.batches: list[int] = []

    def __call__(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        self.batches.append(len(crops))
        logits, score = self._session.run(["logits", "score"], {"crops": crops})
        return {"logits": logits, "score": score[:, None]}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(PHOTO)), cv2.COLOR_BGR2RGB)


def read_config(repository: Path, model: str) -> Any:
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def ask(model: Any, *requests: Request) -> list[Any]:
    return asyncio.run(model.execute(requests))


def test_the_networks_configuration_says_what_the_onnx_file_says(repository: Path) -> None:
    from tritonclient.grpc import model_config_pb2 as pb

    config = read_config(repository, "mal_student")
    assert (config.name, config.backend, config.max_batch_size) == ("mal_student", "onnxruntime", 64)
    session = onnxruntime.InferenceSession(repository / "mal_student/1/model.onnx")
    for mine, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [tensor.name for tensor in mine] == [value.name for value in real]
        for tensor, value in zip(mine, real, strict=True):
            assert tensor.data_type == pb.TYPE_FP32
            given = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
            assert given == value.shape[1:]
            assert list(tensor.dims)  # Triton takes no tensor without dimensions
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    assert [group.kind for group in config.instance_group] == [pb.ModelInstanceGroup.KIND_AUTO]
    assert [warm.batch_size for warm in config.model_warmup] == [1, 64]
    for warm in config.model_warmup:
        assert list(warm.inputs["crops"].dims) == list(config.input[0].dims)


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "KIND_AUTO"), ("fp16", "KIND_AUTO"), ("int8", "KIND_CPU")])
def test_where_a_precision_runs(tmp_path: Path, precision: str, kind: str) -> None:
    write_repository(tmp_path, STUDENT.read_bytes(), precision=precision)
    (group,) = read_config(tmp_path, "mal_student").instance_group
    assert type(group).Kind.Name(group.kind) == kind
    assert f"({precision.upper()}, ONNX" in (tmp_path / "README.md").read_text()


def test_the_constants_travel_with_mal_label(repository: Path) -> None:
    config = read_config(repository, "mal_label")
    assert (config.backend, config.max_batch_size) == ("python", 0)
    found = {key: value.string_value for key, value in config.parameters.items()}
    with mal.MaskLabeler(STUDENT, "cpu") as labeler:
        assert mal.config.ModelConstants.from_metadata(found, "it") == labeler.constants


@pytest.mark.parametrize("repeat", [0, 1, 33])
def test_mal_label_answers_like_the_labeler(repository: Path, image: np.ndarray, repeat: int) -> None:
    network = Network(repository)
    model = load_model(repository, network)
    boxes = np.tile(BOXES, (repeat, 1))
    (response,) = ask(model, Request(image=image, boxes=boxes))
    assert not response.has_error()
    rle, scores, flags = (tensor.as_numpy() for tensor in response.tensors)
    assert [tensor.name() for tensor in response.tensors] == ["rle", "scores", "flags"]
    assert (rle.dtype, scores.dtype, flags.dtype) == (np.object_, np.float32, np.object_)
    assert len(rle) == len(scores) == len(flags) == len(boxes)
    assert network.batches == {0: [], 1: [2], 33: [64, 2]}[repeat]
    with mal.MaskLabeler(STUDENT, "cpu", batch=64) as labeler:
        expected = next(labeler.stream([(image, boxes)]))
    differ = 0
    for row, text in enumerate(rle):
        mask = decode(text, *image.shape[:2]) if text else np.zeros(image.shape[:2], bool)
        differ += int((mask != expected.masks[row]).sum())
    print(f"{differ} pixels differ")
    assert differ <= 1e-5 * image.shape[0] * image.shape[1] * len(boxes)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    assert [text.decode() for text in flags] == [",".join(words) for words in expected.flags]
    assert [bool(text) for text in rle] == [True, True, False, False] * repeat


NAN = np.array([[1, 1, 9, np.nan]], np.float32)
# What comes for the image (None: the photograph), for the boxes, and what is answered.
BAD_REQUESTS = {
    "box not finite": (None, NAN, "box 0 is not finite"),
    "five numbers a box": (None, np.ones((2, 5), np.float32), "boxes must be (N, 4)"),
    "one box without its axis": (None, BOXES[0], "boxes must be (N, 4)"),
    "boxes of bytes": (None, np.array([[b"1", b"2", b"3", b"x"]], np.object_), "boxes must be numbers"),
    "grey": (np.zeros((20, 20), np.uint8), BOXES, "image must be (H, W, 3) uint8 RGB, got (20, 20) uint8"),
    "grey with its axis": (np.zeros((20, 20, 1), np.uint8), BOXES, "got (20, 20, 1) uint8"),
    "RGBA": (np.zeros((20, 20, 4), np.uint8), BOXES, "got (20, 20, 4) uint8"),
    "floats": (np.zeros((20, 20, 3), np.float32), BOXES, "got (20, 20, 3) float32"),
    "a batch of images": (np.zeros((1, 20, 20, 3), np.uint8), BOXES, "got (1, 20, 20, 3) uint8"),
    "no pixels": (np.zeros((0, 20, 3), np.uint8), BOXES, "got (0, 20, 3) uint8"),
    "encoded bytes": (np.array([b"\xff\xd8"], np.object_), BOXES, "got (1,) object"),
}


def test_bad_requests_are_their_own_errors_among_good_ones(repository: Path, image: np.ndarray) -> None:
    model = load_model(repository, Network(repository))
    requests = []
    for picture, boxes, _ in BAD_REQUESTS.values():
        bad = Request(image=image if picture is None else picture, boxes=boxes)
        requests += [Request(image=image, boxes=BOXES[:1]), bad, Request(image=image, boxes=BOXES[2:])]
    requests.append(Request(boxes=BOXES))
    responses = ask(model, *requests)
    assert responses.pop().has_error()  # no image at all
    for (name, (_, _, words)), good, failed, without in zip(
        BAD_REQUESTS.items(), responses[::3], responses[1::3], responses[2::3], strict=True
    ):
        assert words in failed.error().message(), name
        assert good.tensors[0].as_numpy()[0]
        assert not any(without.tensors[0].as_numpy())  # outside, and without area: no mask and no error


@pytest.mark.parametrize("failure", ["the model says so", "the call breaks"])
def test_a_network_that_fails_for_one_request_fails_no_other(repository: Path, image: np.ndarray, failure: str) -> None:
    network = Network(repository)

    def fail_second(crops: np.ndarray) -> dict[str, np.ndarray]:
        found = network(crops)
        if len(network.batches) == 2:
            return {} if failure == "the model says so" else {"logits": found["logits"], "score": found["score"][:1]}
        return found

    first, second, third = ask(load_model(repository, fail_second), *[Request(image=image, boxes=BOXES)] * 3)
    assert second.has_error()
    assert not first.has_error()
    assert not third.has_error()
    assert (first.tensors[0].as_numpy() == third.tensors[0].as_numpy()).all()


def test_logits_that_are_not_finite_are_told(repository: Path, image: np.ndarray) -> None:
    network = Network(repository)
    model = load_model(repository, lambda crops: network(crops) | {"logits": np.full((len(crops), 1, 48, 48), np.nan)})
    (response,) = ask(model, Request(image=image, boxes=BOXES[:1]))
    assert response.tensors[2].as_numpy().tolist() == [b"empty,not-finite"]


def test_the_client_of_the_examples_gets_masks(repository: Path) -> None:
    model = load_model(repository, Network(repository))
    boxes = ["110,30,400,290", "500,10,600,90"]
    with server(lambda request: ask(model, request)[0]) as address:
        done = subprocess.run(
            [sys.executable, ROOT / "examples/triton/client.py", PHOTO, "--server", address, *boxes],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cat, nothing = map(json.loads, done.stdout.splitlines())
    mask = decode(cat["segmentation"]["counts"].encode(), *cat["segmentation"]["size"])
    assert 0.3 < mask[30:290, 110:400].mean() < 1
    assert mask.sum() == mask[30:290, 110:400].sum()
    assert (nothing["segmentation"], nothing["score"], nothing["flags"]) == (None, 0.0, "box outside the image")


def engine(folder: Path, **changes: Any) -> Path:
    """A file that claims to be an engine of the shipped student."""
    shutil.copyfile(STUDENT, folder / "x.onnx")
    (folder / "libplugin.so").write_bytes(b"library")
    (folder / "x.plan").write_bytes(b"ftrt")
    facts = {
        "onnx": "x.onnx", "onnx_sha256": "", "tensorrt": "tensorrt 10.16", "profile": "1:32:48",
        "plugin": "libplugin.so", "compute_capabilities": [90],
    }  # fmt: skip
    manifest = json.loads(STUDENT.with_name("student.onnx.json").read_text())
    manifest |= {"engine": facts | changes, "target": "tensorrt", "sha256": hashlib.sha256(b"ftrt").hexdigest()}
    (folder / "x.plan.json").write_text(json.dumps(manifest))
    return folder / "x.plan"


def test_an_engine_is_served_with_its_plugin(tmp_path: Path) -> None:
    from tritonclient.grpc import model_config_pb2 as pb

    report = export_model(ExportRequest(engine(tmp_path), target="triton", output=tmp_path / "out"))
    config = read_config(report.output, "mal_student")
    assert (config.backend, config.max_batch_size) == ("tensorrt", 48)
    assert list(config.dynamic_batching.preferred_batch_size) == [32]
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    assert (report.output / "mal_student/1/model.plan").read_bytes() == b"ftrt"
    assert (report.output / "mal_student/libplugin.so").read_bytes() == b"library"
    assert "LD_PRELOAD=$PWD/mal_student/libplugin.so tritonserver" in (report.output / "README.md").read_text()
    assert json.loads((tmp_path / "out.json").read_text())["target"] == "triton"
    assert read_config(report.output, "mal_label").parameters["batch"].string_value == "48"


@pytest.mark.parametrize(
    ("changes", "options", "error", "words"),
    [
        ({"tensorrt": "tensorrt_rtx 1.7"}, {}, ModelFileError, "Triton does not run"),
        ({"profile": "48"}, {}, UsageError, "min:opt:max"),
        ({"plugin": "gone.so"}, {}, ModelFileError, "needs gone.so beside it"),
        ({"onnx": "gone.onnx"}, {}, ModelFileError, "needs gone.onnx beside it"),
        ({}, {"refine": 2}, UsageError, "built already"),
        ({}, {"engine": EngineOptions(Profile(1, 8, 8))}, UsageError, "are for engines"),
        ({}, {"output": "full"}, UsageError, "something in it"),
        ({}, {"output": "x.onnx"}, UsageError, "is a file"),
        ({}, {"output": "no/where"}, OutputError, "there is no folder"),
    ],
)
def test_what_cannot_be_served_leaves_nothing_behind(
    tmp_path: Path, changes: dict, options: dict, error: type[Exception], words: str
) -> None:
    plan = engine(tmp_path, **changes)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    options = {"output": "out"} | options
    with pytest.raises(error, match=words):
        export_model(ExportRequest(plan, target="triton", **{**options, "output": tmp_path / options["output"]}))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_is_exported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a source that needs exporting to the folder; the export itself has its own tests."""
    from mal.export import triton
    from mal.export.make import Made
    from mal.runtime.onnx_file import read_metadata

    def fake(request: ExportRequest, source: Path, *, for_tensorrt: bool) -> Made:
        assert (request.refine, source.name, for_tensorrt) == (1, "student.safetensors", False)
        content = STUDENT.read_bytes()
        constants = ModelConstants.from_metadata(read_metadata(content, "student"), "student")
        return Made(source, content, constants, "fp32", {}, {}, b"PNG", ())

    monkeypatch.setattr(triton, "make_model", fake)
    monkeypatch.chdir(tmp_path)
    report = export_model(ExportRequest("student", target="triton", refine=1))
    assert report.output == Path("triton")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["triton", "triton.calibration.png", "triton.json"]
    assert (tmp_path / "triton").stat().st_mode & 0o777 == 0o777 & ~0o022


def test_text_form_escapes_what_protobuf_would_misread() -> None:
    from tritonclient.grpc import model_config_pb2 as pb

    hard = 'a "quoted" \\ line\nbreak \t é 日本 \x07'
    text = pbtxt({"parameters": [{"key": hard, "value": {"string_value": hard}}]})
    parsed = text_format.Parse(text, pb.ModelConfig())
    assert dict(parsed.parameters.items())[hard].string_value == hard
