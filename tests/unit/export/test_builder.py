"""The builder on a fake TensorRT that needs a GPU: everything it asks, every way it fails, what it keeps."""

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import make_tensorrt
from tensorrt_parts import tiny_model

from mal.errors import DeviceError, EngineError, Interrupted, MalError, ModelFileError, UsageError
from mal.export import engine_from_onnx, plan_cache
from mal.export.engine_from_onnx import build_engine
from mal.export.engine_options import EngineOptions, Profile, parse_chips, trtexec_line
from mal.runtime import tensorrt_package
from mal.runtime.machine import Gpu

H200 = Gpu(0, "NVIDIA H200", 90)
MODEL = tiny_model(refine=0).SerializeToString()


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = make_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(engine_from_onnx, "gpus", lambda: (H200,))
    monkeypatch.setattr(tensorrt_package, "_pin", lambda library: library)
    tensorrt_package._lent.pop("tensorrt", None)
    return fake


def build(**options: Any) -> engine_from_onnx.Engine:
    return build_engine(MODEL, package="tensorrt", options=EngineOptions(**options))


def test_what_is_known_of_an_engine(trt: Any) -> None:
    engine = build(profile=Profile(2, 4, 8), workspace_gb=1.5, hardware_compatible=True)
    assert b'[[2, 3, 32, 32], [4, 3, 32, 32], [8, 3, 32, 32]], "level": "1500000000"' in engine.plan
    facts = engine.facts("m.onnx")
    assert (facts.tensorrt, facts.chip, facts.compute_capabilities) == ("tensorrt 11.4.0.106", "NVIDIA H200", (90,))
    assert (facts.profile, facts.hardware_compatible, facts.workspace_gb) == ("2:4:8", True, 1.5)


def test_a_second_build_is_found_and_another_one_is_not(trt: Any) -> None:
    assert not build().cached
    builds = trt.calls.count("Builder.build_serialized_network")
    assert build().cached
    assert trt.calls.count("Builder.build_serialized_network") == builds
    assert not build(profile=Profile(1, 1, 1)).cached
    assert not build(workspace_gb=1.0).cached
    trt.__version__ = "11.4.0.107"
    assert not build().cached


def test_timings_are_kept(trt: Any) -> None:
    build()
    build(profile=Profile(1, 1, 1))
    assert [call for call in trt.calls if call.startswith("timings")] == ["timings b''", "timings b'timings'"]


def test_old_plans_are_forgotten(trt: Any, no_kept_plans: Path) -> None:
    for count in range(1, plan_cache.KEPT + 3):
        build(profile=Profile(1, 1, count))
    assert len(list((no_kept_plans / "plans").glob("*.plan"))) == plan_cache.KEPT


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("Builder.create_network", "cannot make a network"),
        ("Builder.create_builder_config", "cannot make a builder config"),
        ("Builder.create_optimization_profile", "cannot make an optimization profile"),
        ("OnnxParser.parse", "cannot read the model: node_7: no such operator"),
        ("IOptimizationProfile.set_shape", "does not take the profile 1:32:64"),
        ("IBuilderConfig.add_optimization_profile", "does not take the profile 1:32:64"),
        ("IBuilderConfig.create_timing_cache", "cannot make a timing cache"),
        ("IBuilderConfig.set_timing_cache", "does not take the timing cache"),
        ("Builder.build_serialized_network", "cannot build the engine"),
    ],
)
def test_every_refusal_is_an_error_in_the_builders_words(trt: Any, fails: str, message: str) -> None:
    trt.fail.add(fails)
    with pytest.raises(EngineError, match=message) as caught:
        build()
    if "parse" not in fails:
        assert f"{fails} says no" in str(caught.value)
    assert "\n" not in str(caught.value)
    trt.fail.clear()
    assert not build().cached  # nothing was kept of it


def test_our_plugin_is_asserted(trt: Any, tmp_path: Path) -> None:
    library = tmp_path / "libmal.so"
    library.write_bytes(b"as good as any, here")
    refined = tiny_model().SerializeToString()
    engine = build_engine(refined, package="tensorrt", plugin=library)
    assert engine.facts("m.onnx").plugin == "libmal.so"
    assert trt.get_plugin_registry().all_creators == []  # given back
    trt.fail.add("IPluginRegistry.load_library")
    with pytest.raises(EngineError, match=r"cannot load the plugin .*libmal\.so: IPluginRegistry"):
        build_engine(refined, package="tensorrt", plugin=library, options=EngineOptions(Profile(1, 1, 1)))


def test_the_function_instead_of_the_plugin(trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libmal.so"
    library.write_bytes(b"")
    monkeypatch.setattr(type(trt.get_plugin_registry()), "_names", lambda self: set())
    with pytest.raises(EngineError, match="0 plugin layers where the model has 1"):
        build_engine(tiny_model().SerializeToString(), package="tensorrt", plugin=library)


def test_ctrl_c_stops_the_build(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build_network = trt.Builder.build_serialized_network

    def interrupted(self: Any, network: Any, config: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return build_network(self, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", interrupted)
    with pytest.raises(Interrupted, match="no engine was written"):
        build()


def test_bars_on_a_terminal(trt: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert not build().cached  # the monitor's calls work with bars
    assert "Building" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"compute_capabilities": (86,)}, UsageError, "compute capabilities are for tensorrt_rtx"),
        ({"hardware_compatible": True}, UsageError, "begin with Ampere"),
    ],
)
def test_wishes_it_cannot_fulfil(
    trt: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[MalError], message: str
) -> None:
    monkeypatch.setattr(engine_from_onnx, "gpus", lambda: (Gpu(0, "Tesla T4", 75),))
    with pytest.raises(error, match=message):
        build(**options)


def test_no_gpu(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_from_onnx, "gpus", lambda: ())
    with pytest.raises(DeviceError, match="builds for the GPU it sees"):
        build()


def test_models_that_are_not_whole_or_not_alone(trt: Any) -> None:
    with pytest.raises(ModelFileError, match="not a whole ONNX file"):
        build_engine(MODEL[:-20], package="tensorrt")
    model = tiny_model(refine=0)
    tensor = model.graph.initializer[0]
    tensor.data_location = 1
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(ModelFileError, match="keeps weights in other files"):
        build_engine(model.SerializeToString(), package="tensorrt")


def test_the_line_for_trtexec() -> None:
    options = EngineOptions(Profile(1, 8, 16), None, 2.0, hardware_compatible=True)
    line = trtexec_line(Path("m.onnx"), Path("my m.plan"), 192, options, Path("libmal.so"))
    assert line == (
        "trtexec --onnx=m.onnx --stronglyTyped --minShapes=crops:1x3x192x192 --optShapes=crops:8x3x192x192 "
        "--maxShapes=crops:16x3x192x192 --dynamicPlugins=libmal.so --memPoolSize=workspace:1907M "
        "--hardwareCompatibilityLevel=ampere+ '--saveEngine=my m.plan'"
    )


@pytest.mark.parametrize("text", ["", "86,", "sm_86", "8,6,x"])
def test_chips_that_are_no_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="expected numbers"):
        parse_chips(text)
