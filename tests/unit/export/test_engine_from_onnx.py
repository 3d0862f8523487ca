"""Engines of TensorRT-RTX, built without a GPU: our plugin is in them, and nothing else passes for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import ModelProto, helper
from tensorrt_parts import SIZE, crf_node, need_plugin, need_rtx, tiny_model

from mal.errors import EngineError, MissingPackageError, ModelFileError, UsageError
from mal.export.engine_from_onnx import build_engine
from mal.export.engine_options import RTX_CHIPS, EngineOptions, Profile
from mal.export.precision import to_fp16
from mal.runtime import tensorrt_package

CHIPS = (75, 86, 89, 120)


@pytest.fixture(scope="module", autouse=True)
def rtx() -> None:
    need_rtx()


@pytest.fixture(scope="module")
def plugin() -> Path:
    return need_plugin()


def all_half(model: ModelProto) -> ModelProto:
    """As other people's converters type it: the plugin sees half on all its inputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)


@pytest.mark.parametrize("typed", [lambda model: model, to_fp16, all_half], ids=["fp32", "fp16", "all-half"])
def test_a_refined_model_holds_our_plugin(plugin: Path, typed: object) -> None:
    content = typed(tiny_model()).SerializeToString()  # type: ignore[operator]
    engine = build_engine(content, options=EngineOptions(compute_capabilities=CHIPS), plugin=plugin)
    assert b"CRFRefine" in engine.plan  # build_engine itself asserts the PLUGIN_V3 layer, see the fallback below
    facts = engine.to_json("m.onnx")
    assert list(facts["compute_capabilities"]) == list(CHIPS)
    assert facts["profile"] == "1:32:64"
    assert facts["plugin"] == plugin.name
    assert facts["tensorrt"].startswith("tensorrt_rtx 1.")


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("profile", [Profile(1, 1, 1), Profile(64, 64, 64)], ids=str)
def test_each_chip_alone(plugin: Path, chip: int, profile: Profile) -> None:
    content = tiny_model().SerializeToString()
    assert build_engine(content, options=EngineOptions(profile, (chip,)), plugin=plugin).plan


def test_a_plain_model_needs_no_plugin() -> None:
    engine = build_engine(tiny_model(refine=0).SerializeToString())
    assert engine.plugin is None
    assert engine.to_json("m.onnx")["plugin_sha256"] is None


def test_default_chips() -> None:
    model = tiny_model(refine=0)
    assert build_engine(to_fp16(model).SerializeToString()).compute_capabilities == RTX_CHIPS
    assert 75 not in build_engine(model.SerializeToString()).compute_capabilities


def test_the_builders_own_words_are_quoted() -> None:
    model = tiny_model(refine=0)
    # Nothing but a float32 matrix product, which no Turing chip has in TensorRT-RTX.
    model.graph.node.append(helper.make_node("MatMul", ["logits", "logits"], ["product"]))
    model.graph.output.append(helper.make_tensor_value_info("product", 1, ["batch", 1, 8, 8]))
    with pytest.raises(EngineError, match=r"tensorrt_rtx cannot build the engine: .*SM75"):
        build_engine(model.SerializeToString(), options=EngineOptions(compute_capabilities=(75,)))


def test_a_refined_model_without_the_plugin() -> None:
    with pytest.raises(MissingPackageError, match="mal plugins build"):
        build_engine(tiny_model().SerializeToString())


def test_the_parsers_fallback_is_seen(plugin: Path) -> None:
    model = tiny_model()
    node = crf_node(model)
    kept = [attribute for attribute in node.attribute if attribute.name != "plugin_namespace"]
    del node.attribute[:]
    node.attribute.extend(kept)
    with pytest.raises(EngineError, match="0 plugin layers where the model has 1"):
        build_engine(model.SerializeToString(), plugin=plugin)


def test_wrong_attributes(plugin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    for attribute in crf_node(model).attribute:
        if attribute.name == "iterations":
            attribute.i = -3
    with pytest.raises(EngineError, match=r"crf_refine: .*Could not create the plugin"):
        build_engine(model.SerializeToString(), plugin=plugin)
    assert "mal::CRFRefine: iterations must be >= 0, got -3" in capfd.readouterr().err


def test_wrong_shapes(plugin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    crf_node(model).input[1] = "crops"
    with pytest.raises(EngineError, match="crf_refine"):
        build_engine(model.SerializeToString(), plugin=plugin)
    said = f"guide must be (B, 3, h, w) to go with logits (-1, 1, 8, 8), got (-1, 3, {SIZE}, {SIZE})"
    assert said in capfd.readouterr().err


def test_no_library(tmp_path: Path) -> None:
    broken = tmp_path / "libmal.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(MissingPackageError, match=r"cannot load the plugin .*mal plugins build"):
        build_engine(tiny_model().SerializeToString(), plugin=broken)


def test_somebody_elses_plugin(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_package, "NAME", "ROIAlign_TRT")
    monkeypatch.setattr(tensorrt_package, "VERSION", "2")
    monkeypatch.setattr(tensorrt_package, "DOMAIN", "")
    with pytest.raises(EngineError, match="another library in this process has registered"):
        build_engine(tiny_model(refine=0).SerializeToString(), plugin=plugin)


def test_other_models() -> None:
    with pytest.raises(ModelFileError, match="is not"):
        build_engine(b"nonsense")
    model = tiny_model(refine=0)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(ModelFileError, match="expected one float32 input crops"):
        build_engine(model.SerializeToString())


def test_other_chips() -> None:
    content = tiny_model(refine=0).SerializeToString()
    with pytest.raises(UsageError, match=r"builds for 75, .*, got compute capability 90"):
        build_engine(content, options=EngineOptions(compute_capabilities=(86, 90)))
    with pytest.raises(UsageError, match="no compute capability"):
        build_engine(content, options=EngineOptions(compute_capabilities=()))


def test_other_packages() -> None:
    content = tiny_model(refine=0).SerializeToString()
    with pytest.raises(UsageError, match="unknown TensorRT 'tensorflow'"):
        build_engine(content, package="tensorflow")


@pytest.mark.parametrize("text", ["8:1:32", "0:1:2", "1:2", "1:2:x", "-1:2:3", ""])
def test_wrong_profiles(text: str) -> None:
    with pytest.raises(UsageError, match="1:32:64"):
        Profile.parse(text)


BUILD = f"""
from pathlib import Path
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from tensorrt_parts import tiny_model
from mal.errors import MalError
from mal.export.engine_from_onnx import build_engine
try:
    print(len(build_engine(tiny_model().SerializeToString(), plugin=Path(sys.argv[1])).plan))
except MalError as error:
    print(type(error).__name__, error)
"""


def fresh_process(plugin: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(plugin)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"  # -6: the parser has killed the process
    return done.stdout


def test_the_process_lives(plugin: Path, tmp_path: Path) -> None:
    assert int(fresh_process(plugin, XDG_CACHE_HOME=str(tmp_path))) > 10_000
    assert [path.name for path in (tmp_path / "mal").glob("libmal_tensorrt_rtx_alias-*.so")]


def test_the_process_lives_without_a_compiler(plugin: Path, tmp_path: Path) -> None:
    told = fresh_process(plugin, XDG_CACHE_HOME=str(tmp_path), CXX="no-such-compiler")
    assert told.startswith("MissingPackageError")
    assert "ln -s libtensorrt_rtx.so.1" in told
