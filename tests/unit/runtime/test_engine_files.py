"""Engines: what is checked before one runs, in which order and in which words; and building one again."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_bench import RTX4090, Bench
from tensorrt_parts import SIZE, tiny_model

from mal.errors import DeviceError, EngineError, MalError, MissingPackageError, ModelFileError, UsageError
from mal.export.rebuild import rebuild_engine
from mal.runtime.plan_file import manifest_path
from mal.runtime.session import open_session


def no_manifest(bench: Bench) -> None:
    manifest_path(bench.plan).unlink()


def foreign_manifest(bench: Bench) -> None:
    manifest_path(bench.plan).write_text('{"format": "other"}')


def files_elsewhere(bench: Bench) -> None:
    bench.edit(plugin="../libmal.so", plugin_sha256="0" * 64)


def tampered(bench: Bench) -> None:
    bench.plan.write_bytes(bench.plan.read_bytes()[:-1] + b" ")


def truncated(bench: Bench) -> None:
    bench.plan.write_bytes(bench.plan.read_bytes()[:10])


def other_version(bench: Bench) -> None:
    bench.trt.__version__ = "10.16.0.72"


def other_chip(bench: Bench) -> None:
    bench.see(RTX4090)


def no_gpu(bench: Bench) -> None:
    bench.see()


def no_tensorrt(bench: Bench) -> None:
    bench._patch.setitem(sys.modules, "tensorrt", None)


def other_plugin(bench: Bench) -> None:
    bench.plan.with_name("libmal.so").write_bytes(b"other")
    bench.edit(plugin="libmal.so", plugin_sha256="0" * 64)


def no_plugin(bench: Bench) -> None:
    bench.edit(plugin="libmal.so", plugin_sha256="0" * 64)


def refused(bench: Bench) -> None:
    bench.trt.fail.add("Runtime.deserialize_cuda_engine")


def no_room(bench: Bench) -> None:
    bench.trt.fail.add("ICudaEngine.create_execution_context")


REBUILD = r"build it again here from m\.onnx: the same command with --rebuild does it"
TABLE: list[tuple[Callable[[Bench], None], type[MalError], str]] = [
    (no_manifest, ModelFileError, r"has no manifest m\.plan\.json: an engine is code"),
    (foreign_manifest, ModelFileError, "is no manifest of an engine"),
    (files_elsewhere, ModelFileError, r"no manifest of an engine: '\.\./libmal\.so' is no name of a file in the same"),
    (tampered, ModelFileError, "sha256 is .* the file was changed or damaged"),
    (truncated, ModelFileError, "sha256 is .* the file was changed or damaged"),
    (no_tensorrt, MissingPackageError, r'cannot load tensorrt .*pip install "mask-auto-labeler\[tensorrt\]"'),
    (other_version, EngineError, r"built by tensorrt 11\.4\.0\.106, and here is tensorrt 10\.16\.0\.72: " + REBUILD),
    (no_gpu, DeviceError, r"runs on a GPU, and the driver sees none: use the \.onnx"),
    (other_chip, EngineError, "on NVIDIA H200 for compute capability 90, and RTX 4090 has 89: " + REBUILD),
    (other_plugin, ModelFileError, r"libmal\.so: its sha256 is .* not the plugin"),
    (no_plugin, ModelFileError, r"cannot read model .*libmal\.so"),
    (refused, EngineError, "cannot load it: Runtime.deserialize_cuda_engine says no; " + REBUILD),
    (no_room, EngineError, "cannot make a context, .*create_execution_context says no"),
]


@pytest.mark.parametrize(("spoil", "error", "message"), TABLE, ids=lambda value: getattr(value, "__name__", ""))
def test_each_engine_that_cannot_run_says_why(
    bench: Bench, spoil: Callable[[Bench], None], error: type[MalError], message: str
) -> None:
    spoil(bench)
    with pytest.raises(error, match=message) as caught:
        open_session(bench.plan)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert bench.trt.get_plugin_registry().all_creators == []
    assert bench.memory.depth == 0


@pytest.mark.parametrize("spoil", [no_manifest, tampered], ids=lambda value: value.__name__)
def test_the_manifest_comes_first(bench: Bench, spoil: Callable[[Bench], None]) -> None:
    """Before any library or device: neither TensorRT nor a GPU is here."""
    for thing in (no_tensorrt, no_gpu, spoil):
        thing(bench)
    with pytest.raises(ModelFileError, match=r"manifest|sha256"):
        open_session(bench.plan)
    with pytest.raises(ModelFileError, match=r"manifest|sha256"):
        open_session(bench.plan, "cuda:7")


def test_trust_says_so_aloud(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.plan.write_bytes(bench.plan.read_bytes() + b" ")
    open_session(bench.plan, trust=True).close()
    assert "its sha256 is" in (told := capsys.readouterr().err)
    assert "it runs unchecked, as --trust asks" in told
    no_manifest(bench)
    session = open_session(bench.plan, trust=True)  # as trtexec makes them: the constants come from the ONNX file
    assert session.constants.size == SIZE
    assert "has no manifest" in capsys.readouterr().err
    bench.plan.with_suffix(".onnx").unlink()
    with pytest.raises(ModelFileError, match=r"has no manifest.*nor is there m\.onnx"):
        open_session(bench.plan, trust=True)


def test_other_models_in_an_engine(bench: Bench) -> None:
    content = bench.plan.read_bytes()
    bench.plan.write_bytes(content[:-1] + b', "score": "confidence"}')
    with pytest.raises(ModelFileError, match=r"confidence.*expected float32 crops \(-1, 3, 32, 32\)"):
        open_session(bench.plan, trust=True)


@pytest.fixture
def refined(bench: Bench) -> Bench:
    library = bench.plan.with_name("libmal.so")
    library.write_bytes(b"as good as any, here")
    bench.write(tiny_model().SerializeToString(), plugin=library)
    return bench


def test_the_plugin_is_there_as_long_as_a_session_is(refined: Bench) -> None:
    creators = refined.trt.get_plugin_registry().all_creators
    first, second = open_session(refined.plan), open_session(refined.plan)
    assert len(creators) == 1
    first.close()
    assert len(creators) == 1
    second.close()
    assert creators == []


def test_rebuilding_makes_it_fit(refined: Bench) -> None:
    other_version(refined)
    other_chip(refined)
    tampered(refined)
    before = json.loads(manifest_path(refined.plan).read_text())
    rebuild_engine(refined.plan)
    open_session(refined.plan).close()
    after = json.loads(manifest_path(refined.plan).read_text())
    assert (after["engine"]["tensorrt"], after["engine"]["compute_capabilities"]) == ("tensorrt 10.16.0.72", [89])
    assert after["engine"]["profile"] == before["engine"]["profile"] == "1:4:8"
    assert after["rebuilt"]["from_plan_sha256"] == before["sha256"]
    assert {**after, "engine": 0, "sha256": 0, "bytes": 0, "rebuilt": 0} == {
        **before, "engine": 0, "sha256": 0, "bytes": 0, "rebuilt": 0,
    }  # fmt: skip


def test_what_cannot_be_rebuilt(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--rebuild is for engines \(\.plan\), got student"):
        rebuild_engine(Path("student"))
    onnx = bench.plan.with_suffix(".onnx")
    onnx.write_bytes(tiny_model().SerializeToString())  # an ONNX of another model
    with pytest.raises(ModelFileError, match=r"m\.onnx: its sha256 is .* not the ONNX file that the engine was built"):
        rebuild_engine(bench.plan)
    onnx.unlink()
    with pytest.raises(ModelFileError, match=r"--rebuild needs .*m\.onnx, the model that m\.plan was built from"):
        rebuild_engine(bench.plan)
    no_manifest(bench)
    with pytest.raises(ModelFileError, match="has no manifest"):
        rebuild_engine(bench.plan)


def test_no_disk(bench: Bench) -> None:
    """A file size limit stands for the full disk: nothing is half written, and the old engine stays."""
    import resource

    before = {path.name: path.read_bytes() for path in bench.plan.parent.iterdir() if path.is_file()}
    other_version(bench)
    shutil.rmtree(bench.plan.parent / "cache")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limits[1]))
    try:
        with pytest.raises(MalError, match=r"cannot write .*m\.plan\.json: File too large"):
            rebuild_engine(bench.plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in bench.plan.parent.iterdir() if path.is_file()} == before
