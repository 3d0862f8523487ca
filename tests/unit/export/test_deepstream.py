"""`mal export --target deepstream`: the folder, and the checker that reads its configs as nvinfer does."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from tensorrt_parts import tiny_model

import mal
from mal.config import ModelConstants
from mal.errors import InputError, MalError, OutputError, UsageError
from mal.export.deepstream import CONFIG, LIBRARY, write_folder
from mal.export.export import export_model
from mal.export.nvinfer_config import check_config, find_problems
from mal.export.request import ExportRequest
from mal.plugins.crf_refine import names
from mal.runtime.onnx_file import read_metadata

STUDENT = Path(mal.__file__).parent / "models" / "student.onnx"
PREPROCESS = "config_preprocess_mal.txt"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small conforming model."""
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_model()
    onnx.save(model, str(folder / "model.onnx"))
    constants = ModelConstants.from_metadata(read_metadata((folder / "model.onnx").read_bytes(), "tiny"), "tiny")
    write_folder(folder, constants, "fp32")
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_the_shipped_student_becomes_a_whole_folder(tmp_path: Path) -> None:
    report = export_model(ExportRequest(STUDENT, target="deepstream", output=tmp_path / "ds"))
    made = tmp_path / "ds"
    assert {path.name for path in made.iterdir()} == {
        "model.onnx", CONFIG, PREPROCESS, "Makefile", "README.md", "pipeline.cpp", "pipeline.py",
        "nvdsinfer_custom_impl_mal",
    }  # fmt: skip
    assert report.manifest["target"] == "deepstream"
    assert {path.name for path in tmp_path.iterdir()} == {"ds", "ds.json"}
    check_config(made / CONFIG)
    constants = ModelConstants.from_metadata(read_metadata(STUDENT.read_bytes(), "student"), "student")
    assert f"infer-dims=3;{constants.size};{constants.size}" in (made / CONFIG).read_text()
    assert f"fill={constants.fill}" in (made / PREPROCESS).read_text()
    for name in ("README.md", "Makefile", CONFIG, PREPROCESS):
        assert "${" not in (made / name).read_text().replace("$(", "")
    assert "--stronglyTyped" in (made / "README.md").read_text()
    assert f"--staticPlugins={LIBRARY}" in (made / "README.md").read_text()
    compile((made / "pipeline.py").read_text(), "pipeline.py", "exec")
    with pytest.raises(UsageError, match="something in it"):
        export_model(ExportRequest("student", target="deepstream", output=made))


@pytest.mark.parametrize("target", ["deepstream", "triton"])
@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("missing/ds", "there is no folder"),
        ("file", "is a file"),
        ("model.onnx", "is a file's name"),
        ("full", "something in it"),
        ("/proc/ds", "cannot write /proc/ds"),
        ("/", "name a folder"),
    ],
)
def test_an_output_that_cannot_be_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, words: str, target: str
) -> None:
    monkeypatch.delattr(f"mal.export.{target}.make_model")
    (tmp_path / "file").touch()
    (tmp_path / "full" / "mine").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((UsageError, OutputError), match=re.escape(words)):
        export_model(ExportRequest("student", target=target, output=tmp_path / where))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failing_export_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(MalError):
        export_model(ExportRequest(tmp_path / "x.onnx", target="deepstream", output=tmp_path / "ds"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_the_makefile_names_the_plugin_as_python_does(exported: Path) -> None:
    text = (exported / LIBRARY.parent / "Makefile").read_text()
    found = dict(re.findall(r"-DMAL_(\w+)='\"(\w+)\"'", text))
    assert found == {key: getattr(names, key) for key in ("DOMAIN", "NAME", "VERSION", "ITERATIONS", "ZETA")}


def test_make_knows_the_way(exported: Path) -> None:
    if not shutil.which("make"):
        pytest.skip("needs make")
    done = subprocess.run(["make", "-n", "-C", str(exported)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "trtexec --onnx=model.onnx" in done.stdout
    for source in ("probe.cpp", "preprocess.cpp", "tensorrt_plugin.cu", "crop.cu"):
        assert source in done.stdout


# What is changed, in which file (nvinfer's, or nvdspreprocess's), and a word of what the checker says.
PLANTED = [
    ("output-tensor-meta=1", "output-tensor-metta=1", "did you mean output-tensor-meta"),
    ("output-tensor-meta=1", "", "nobody would see"),
    ("output-tensor-meta=1", "output-tensor-meta=yes", "expected 0 or 1"),
    ("output-tensor-meta=1", "output-tensor-meta=1\ndisable-output-host-copy=1", "unfilled"),
    ("gie-unique-id=17", "", "gie-unique-id is missing"),
    ("gie-unique-id=17", "gie-unique-id=0", "expected 1 to"),
    ("operate-on-gie-id=1", "operate-on-gie-id=17", "own gie-unique-id"),
    ("process-mode=2", "process-mode=1", "process-mode=2"),
    ("network-type=100", "network-type=3", "needs network-type=100"),
    ("network-type=100", "network-type=4", "expected 0, 1, 2, 3, 100"),
    ("network-type=100", "network-type=100\nsecondary-reinfer-interval=5", "never read"),
    ("network-type=100", "network-type=100\ncluster-mode=4\noutput-instance-mask=1", "never read"),
    ("network-type=100", "network-type=100\ninterval=2", "whole frames"),
    ("strongly-typed=1", "strongly-typed=1\nnetwork-mode=2", "contradicts"),
    ("strongly-typed=1", "network-mode=1", "int8-calib-file"),
    ("infer-dims=3;32;32", "infer-dims=3;32", "channels;height;width"),
    ("infer-dims=3;32;32", "infer-dims=3;224;224", "takes 3;32;32"),
    ("offsets=0;0;0", "offsets=0;0", "one a channel"),
    ("offsets=0;0;0", "offsets=123.7;116.3;103.5", "the graph normalises"),
    ("net-scale-factor=1", "net-scale-factor=0.0039", "the graph normalises"),
    ("model-color-format=0", "model-color-format=1", "model-color-format=0"),
    ("maintain-aspect-ratio=0", "symmetric-padding=1", "maintain-aspect-ratio=1"),
    ("maintain-aspect-ratio=0", "maintain-aspect-ratio=1", "maintain-aspect-ratio=0"),
    ("scaling-filter=1", "scaling-filter=9", "expected 0 to 6"),
    ("batch-size=32", "batch-size=64", "for batches of 32"),
    ("batch-size=32", "batch-size=many", "a whole number"),
    ("batch-size=32", "batch-size=32\nbatch-size=16", "already exists"),
    ("input-tensor-from-meta=1", "", "go together"),
    ("preprocess-config=config_preprocess_mal.txt", "", "go together"),
    ("preprocess-config=config_preprocess_mal.txt", "preprocess-config=other.txt", "there is no other.txt"),
    ("expansion=0.3", "expansion=0.2", "was made with 0.3"),
    ("expansion=0.3", "", "needs expansion"),
    ("every=1", "every=0", "expected 1 to"),
    ("attach-polygons=0", "attach-polygons=true", "a whole number"),  # what the library reads
    ("every=1", "evry=1", "did you mean every"),
    ("[mal]", "[mall]", "unknown group"),
    ("[property]", "[properties]", "no [property] group"),
    ("[mal]", "[class-attrs-all]\ntopk=5\n[mal]", "detectors"),
    ("custom-lib-path", "parse-func=4\ncustom-lib-path", "old releases"),
    ("custom-lib-path=nvdsinfer_custom_impl_mal/libnvdsinfer_mal.so", "", "custom-lib-path"),
    ("gpu-id=0", "gpu-id=0\ninput-object-min-width=64\ninput-object-max-width=32", "no object passes"),
    ("process-mode=2", "this is no key", "no config of groups"),
    ("process-mode=2", "process-mode=2\n  disable-output-host-copy=1", "unfilled"),
    ("net-scale-factor=1", "net-scale-factor=1_0", "a number"),
    ("net-scale-factor=1", "net-scale-factor=nan", "a number"),
    ("onnx-file=model.onnx", "onnx-file=mode1.onnx", "neither onnx-file nor model-engine-file is there"),
    ("onnx-file=model.onnx", "onnx-file=../model.onnx", "neither onnx-file nor model-engine-file is there"),
    ("onnx-file=model.onnx", "onnx-file=model.onnx # ours", "neither onnx-file nor model-engine-file is there"),
    ("onnx-file=model.onnx", "onnx-file=model.onnx\ntlt-encoded-model=x.etlt", "name two models"),
    ("process-mode=2", "", "needs process-mode=2"),
    ("batch-size=32", "batch-size=32 # crops", "a whole number"),
    ("network-input-order=0", "network-input-order=1", "needs network-input-order=0"),
    ("infer-dims=3;32;32", "infer-dims=32;32;3", "takes 3;32;32"),
    ("infer-dims=3;32;32", "", "infer-dims is missing"),
    ("operate-on-gie-id=1", "operate-on-gie-id=1\noperate-on-class-ids=0;-1", "crashes"),
    ("strongly-typed=1", "network-mode=2", "strongly-typed=1"),
    ("strongly-typed=1", "strongly-typed=1\nforce-implicit-batch-dim=1", "force-implicit-batch-dim=0"),
    ("output-tensor-meta=1", "output-tensor-meta=1\noutput-blob-names=masks;score", "logits and score"),
    ("output-tensor-meta=1", "output-tensor-meta=1\noutput-io-formats=logits:fp16:chw", "float32 outputs"),
    ("output-tensor-meta=1", "output-tensor-meta=1\noverwrite-input-tensor=1", "overwrite-input-tensor=0"),
    ("net-scale-factor=1", "net-scale-factor=1\nmean-file=mean.ppm", "the graph normalises"),
    ("custom-lib-path=nvdsinfer_custom_impl_mal/", "custom-lib-path=", "neither this library nor its sources"),
    (
        "custom-lib-path=nvdsinfer_custom_impl_mal/libnvdsinfer_mal.so",
        "custom-lib-path=nvdsinfer_custom_impl_mal/libmal_crf_tensorrt.so",
        "is in libnvdsinfer_mal.so",
    ),
    ("gpu-id=0", "gpu-id=1", "gpu-id must be nvinfer's, 1"),
]
PLANTED_PREPROCESS = [
    ("target-unique-ids=17", "target-unique-ids=3", "target-unique-ids"),
    ("network-input-shape=32;3;32;32", "network-input-shape=32;3;224;224", "network-input-shape"),
    ("fill=reflect", "fill=wrap", "fill must be reflect"),
    ("tensor-name=crops", "tensor-name=input", "tensor-name"),
    ("input-object-min-width=1", "", "input-object-min"),
    ("operate-on-gie-id=1", "operate-on-gie-id=2", "nvinfer's"),
    ("process-on-frame=0", "process-on-frames=0", "did you mean process-on-frame"),
    ("process-on-frame=0", "", "process-on-frame must be 0"),
    ("enable=1", "enable=0", "enable must be 1"),
    ("custom-input-transformation-function=MalTransformation", "", "must be MalTransformation"),
    ("custom-lib-path=nvdsinfer_custom_impl_mal/libnvdsinfer_mal.so", "", "custom-lib-path must be nvinfer's"),
    ("scaling-pool-memory-type=0", "", "needs scaling-pool-memory-type"),
    ("processing-width=32", "", "needs processing-width"),
    ("src-ids=-1", "", "needs src-ids"),
    ("src-ids=-1", "src-ids=0;1", "src-ids must be -1"),
    ("process-on-all-objects=1", "process-on-all-objects=0", "process-on-all-objects must be 1"),
    ("draw-roi=0", "", "draw-roi must be 0"),
    ("src-ids=-1", "src-ids=-1\ninterval=2", "interval must be 0"),
    ("src-ids=-1", "src-ids=-1\noperate-on-class-ids=2", "operate-on-class-ids of [group-0] must be nvinfer's"),
    ("network-input-order=0", "network-input-order=1", "NCHW"),
    ("network-color-format=0", "network-color-format=1", "RGB"),
    ("maintain-aspect-ratio=0", "maintain-aspect-ratio=1", "maintain-aspect-ratio must be 0"),
    ("unique-id=18", "unique-id=17", "unique-id must differ"),
    ("tensor-buf-pool-size=16", "tensor-buf-pool-size=1", "expected 2 to"),
    ("[group-0]", "[group-1]\nsrc-ids=0\nprocess-on-all-objects=1\n[group-0]", "only [group-0]"),
]


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [(CONFIG, *planted) for planted in PLANTED] + [(PREPROCESS, *planted) for planted in PLANTED_PREPROCESS],
)
def test_planted_mistakes_are_found(folder: Path, name: str, old: str, new: str, words: str) -> None:
    check_config(folder / CONFIG)
    text = (folder / name).read_text()
    assert re.search(rf"^{re.escape(old)}", text, re.MULTILINE), old
    (folder / name).write_text(re.sub(rf"^{re.escape(old)}", lambda _: new, text, count=1, flags=re.MULTILINE))
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        check_config(folder / CONFIG)
    assert "\n" not in str(caught.value)


def test_without_nvdspreprocess_the_config_passes_too(folder: Path) -> None:
    """The way for Jetson that the README names."""
    text = (folder / CONFIG).read_text()
    text = re.sub(r"^(input-tensor-from-meta|preprocess-config)=.*\n", "", text, flags=re.MULTILINE)
    (folder / CONFIG).write_text(text)
    check_config(folder / CONFIG)
    (folder / CONFIG).write_text(text.replace("scaling-filter=1", "scaling-filter=6"))
    with pytest.raises(InputError, match="bilinear"):
        check_config(folder / CONFIG)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, None),
        ({"profile": "1:16:16"}, "takes 1 to 16 crops a call, nvinfer sends 1 to 32"),
        ({"profile": "8:16:32"}, "takes 8 to 32 crops"),
        ({"tensorrt": "tensorrt_rtx 1.7"}, "was built by tensorrt_rtx 1.7"),
    ],
)
def test_an_engine_of_ours_is_held_against_its_manifest(folder: Path, facts: dict, words: str | None) -> None:
    (folder / "model.plan").write_bytes(b"ftrt")
    engine = {
        "onnx": "model.onnx", "onnx_sha256": "", "tensorrt": "tensorrt 10.16", "profile": "1:32:32",
        "compute_capabilities": [90],
    }  # fmt: skip
    manifest = {"sha256": "", "precision": "fp32", "constants": {}, "engine": engine | facts}
    (folder / "model.plan.json").write_text(json.dumps(manifest))
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(re.sub(r"(?m)^model-engine-file=.*$", "model-engine-file=model.plan", text))
    assert [problem for problem in find_problems(folder / CONFIG) if not words or words not in problem] == []
    assert len(list(find_problems(folder / CONFIG))) == (words is not None)


def test_an_engine_alone_passes_and_a_named_model_must_be_there(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "model.onnx_b32_gpu0_fp32.engine")
    assert list(find_problems(folder / CONFIG)) == [f"onnx-file=model.onnx: there is no such file beside {CONFIG}"]
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("onnx-file=model.onnx\n", ""))
    check_config(folder / CONFIG)


def test_a_detector_of_somebody_else_passes(tmp_path: Path) -> None:
    """The keys of a primary detector as NVIDIA's samples have them."""
    (tmp_path / "pgie.txt").write_text(
        "[property]\ngpu-id=0\nnet-scale-factor=0.00392156\nonnx-file=../m.onnx\nlabelfile-path=labels.txt\n"
        "batch-size=30\nprocess-mode=1\nmodel-color-format=0\nnetwork-mode=2\nnum-detected-classes=4\ninterval=0\n"
        "gie-unique-id=1\ncluster-mode=2\n\n[class-attrs-all]\ntopk=20\nnms-iou-threshold=0.5\n"
        "pre-cluster-threshold=0.2\n\n[class-attrs-0]\ntopk=20\n"
    )
    assert list(find_problems(tmp_path / "pgie.txt")) == []


def test_the_checker_is_a_command(folder: Path) -> None:
    command = [sys.executable, "-m", "mal.export.nvinfer_config", str(folder / CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{folder / CONFIG}: no problem found\n")
    (folder / CONFIG).unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot read" in done.stderr
