"""The TensorRT plugin, as far as a machine without a GPU can tell: what it shows, takes, refuses and says."""

import ctypes
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crf_bodies import Scene, smooth_scene
from tensorrt_parts import crf_node, need_plugin, need_rtx, tiny_model

from mal.errors import MissingPackageError, UsageError
from mal.plugins.compile import find_nvcc
from mal.plugins.crf_refine import reference
from mal.plugins.crf_refine.names import DOMAIN, NAME, VERSION
from mal.plugins.crf_refine.onnx_function import crf_function
from mal.plugins.crf_refine.tensorrt_library import build_plugin, find_headers, header_version
from mal.plugins.cuda_library import ARCHITECTURES
from mal.runtime.machine import gpu_count


@pytest.fixture(scope="module")
def library() -> Path:
    return need_plugin()


@pytest.fixture(scope="module")
def creator(library: Path) -> Iterator[Any]:
    trt = need_rtx()
    registry = trt.get_plugin_registry()
    code = ctypes.CDLL(str(library))  # stays in memory while Python still holds objects of it
    handle = registry.load_library(str(library))
    assert handle is not None
    yield registry.get_creator(NAME, VERSION, DOMAIN)
    registry.deregister_library(handle)
    del code


def tool(*words: str) -> str:
    if shutil.which(words[0]) is None:
        pytest.skip(f"needs {words[0]}")
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_it_shows_two_functions_and_needs_no_tensorrt(library: Path) -> None:
    symbols = tool("nm", "-D", "--defined-only", str(library)).split()
    assert {word for word in symbols if not re.fullmatch(r"[0-9a-f]+|\w", word)} == {
        "getCreators",
        "setLoggerFinder",
        "mal_cut_crops_cuda",
    }
    needed = re.findall(r"NEEDED.*\[(.+?)\]", tool("readelf", "-d", str(library)))
    assert all(re.match(r"lib(stdc\+\+|gcc_s|c|m)\.|ld-linux", name) for name in needed), needed


def test_one_definition_of_names(creator: Any) -> None:
    function = crf_function()
    assert (function.domain, function.name) == (creator.plugin_namespace, creator.name)
    declared = [name for name in function.attribute if not name.startswith("plugin_")]
    assert [field.name for field in creator.field_names] == declared
    node = crf_node(tiny_model())
    given = {attribute.name: attribute for attribute in node.attribute}
    assert given["plugin_version"].s.decode() == creator.plugin_version
    assert given["plugin_namespace"].s.decode() == creator.plugin_namespace


def plugin_of(creator: Any, **fields: tuple[np.ndarray, str]) -> Any:
    trt = need_rtx()
    collection = trt.PluginFieldCollection(
        [trt.PluginField(name, value, getattr(trt.PluginFieldType, kind)) for name, (value, kind) in fields.items()]
    )
    return creator.create_plugin("crf", collection, trt.TensorRTPhase.BUILD)


ITERATIONS = (np.array([3], np.int32), "INT32")
ZETA = (np.array([0.1], np.float32), "FLOAT32")


def test_right_fields(creator: Any) -> None:
    assert plugin_of(creator, iterations=ITERATIONS, zeta=ZETA) is not None
    assert plugin_of(creator, zeta=ZETA, iterations=(np.array([0], np.int32), "INT32")) is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"iterations": ITERATIONS}, "field zeta is missing"),
        ({"zeta": ZETA}, "field iterations is missing"),
        ({}, "field iterations is missing"),
        (
            {"iterations": ITERATIONS, "zeta": ZETA, "theta": ZETA},
            "unknown field 'theta'; expected iterations and zeta",
        ),
        ({"iterations": ZETA, "zeta": ZETA}, "field iterations must be 1 x int32, got 1 x float32"),
        ({"iterations": ITERATIONS, "zeta": ITERATIONS}, "field zeta must be 1 x float32, got 1 x int32"),
        (
            {"iterations": (np.array([3, 4], np.int32), "INT32"), "zeta": ZETA},
            "field iterations must be 1 x int32, got 2 x int32",
        ),
        ({"iterations": (np.array([-1], np.int32), "INT32"), "zeta": ZETA}, "iterations must be >= 0, got -1"),
        *(
            (
                {"iterations": ITERATIONS, "zeta": (np.array([zeta], np.float32), "FLOAT32")},
                f"zeta must be a positive number, got {zeta:g}",
            )
            for zeta in (0.0, -1.0, np.inf, np.nan)
        ),
    ],
)
def test_wrong_fields(creator: Any, capfd: pytest.CaptureFixture[str], fields: Any, message: str) -> None:
    assert plugin_of(creator, **fields) is None
    assert capfd.readouterr().err.strip() == f"mal::CRFRefine: {message}"


@pytest.fixture(scope="module")
def harness(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that drives the plugin as TensorRT would (tensorrt_harness.cpp)."""
    program = tmp_path_factory.mktemp("harness") / "harness"
    words = [find_nvcc(), "-cudart", "static", "-std=c++17", "-Xcompiler", "-Wno-deprecated-declarations"]
    words += [
        "-isystem",
        str(find_headers()),
        "-x",
        "cu",
        str(Path(__file__).with_name("tensorrt_harness.cpp")),
        "-ldl",
    ]
    done = subprocess.run([*words, "-o", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return program


def test_what_it_answers_tensorrt(library: Path, harness: Path) -> None:
    done = subprocess.run([str(harness), str(library)], capture_output=True, text=True, check=True)
    answers = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    # Serialised, made again, copied, attached to a context: the same two values in objects of their own.
    fields = {answers.pop(name) for name in ("fields", "again", "copy", "attached")}
    assert fields == {"iterations=7,zeta=0.25"}
    assert answers.pop("objects") == "1"
    # logits, guide, inside, refined: float or half each, the result as the logits; nothing but linear.
    assert set(answers.pop("formats").split(",")) == {
        f"{logits}{guide}{inside}{logits}" for logits in "fh" for guide in "fh" for inside in "fh"
    }
    assert answers.pop("packed") == "0"
    # Free batch with one map or one each is fine; 4 channels, another width, 3 axes are not.
    assert answers.pop("configure") == "0 0 1 1 1"
    # Only half logits (in and out) and half maps need copies, of 64 crops or of the one map.
    map_bytes = 48 * 48 * 4
    assert answers.pop("workspace") == f"0 {2 * 64 * map_bytes} {map_bytes} {3 * 64 * map_bytes}"
    assert answers.pop("change") == "0 0 1"
    assert answers.pop("empty") == "0"
    assert not answers
    said = "mal::CRFRefine: inside must be (1 or B, 1, h, w) to go with logits (5, 1, 48, 48), got (2, 1, 48, 48)"
    assert done.stderr.splitlines()[-1] == said


def run_plugin(harness: Path, library: Path, scene: Scene, types: str) -> subprocess.CompletedProcess[bytes]:
    batch, _, height, width = scene.logits.shape
    numbers = (batch, height, width, len(scene.inside), ITERATIONS[0][0], ZETA[0][0])
    arrays = [array.astype(HALF_OR_FLOAT[letter]).tobytes() for array, letter in zip(scene, types, strict=True)]
    words = [str(harness), str(library), "run", *map(str, numbers), types]
    return subprocess.run(words, input=b"".join(arrays), capture_output=True, check=False)


HALF_OR_FLOAT = {"h": np.float16, "f": np.float32}


@pytest.mark.parametrize(("types", "what"), [("fff", "kernel"), ("hff", "conversion of logits")])
def test_no_gpu_is_a_failure_with_a_reason(harness: Path, library: Path, types: str, what: str) -> None:
    if gpu_count():
        pytest.skip("there is a GPU")
    done = run_plugin(harness, library, smooth_scene(np.random.default_rng(0), 2, 8, 8), types)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"mal::CRFRefine: {what} failed: CUDA driver")


@pytest.mark.gpu
@pytest.mark.parametrize("types", ["fff", "fhf", "hhh", "ffh"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 48, 48), (3, 33, 7)], ids=str)
def test_it_answers_to_the_judge(
    harness: Path, shape: tuple[int, int, int], types: str, rng: np.random.Generator
) -> None:
    scene = smooth_scene(rng, *shape)
    seen = Scene(
        *(array.astype(HALF_OR_FLOAT[kind]).astype(np.float32) for array, kind in zip(scene, types, strict=True))
    )
    done = run_plugin(harness, build_plugin(), scene, types)
    assert done.returncode == 0, done.stderr.decode()
    refined = np.frombuffer(done.stdout, HALF_OR_FLOAT[types[0]]).reshape(scene.logits.shape)
    expected = reference.crf_refine(*seen, int(ITERATIONS[0][0]), float(ZETA[0][0]))
    # Weights on chip are 16-bit fixed point; half results have 11 bits of up to 2.2.
    np.testing.assert_allclose(refined, expected, atol=2e-3 if types[0] == "h" else 1e-3)


def test_headers_are_tensorrts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    with pytest.raises(MissingPackageError, match="no headers of TensorRT"):
        find_headers()
    include = tmp_path / "include"
    include.mkdir()
    (include / "NvInferPluginBase.h").touch()
    (include / "NvInferVersion.h").write_text(
        "#define TRT_MAJOR_ENTERPRISE 11\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n"
        "#define NV_TENSORRT_MINOR 2\n#define NV_TENSORRT_PATCH 0\n"
    )
    assert find_headers() == include
    assert header_version(include) == "11.2.0"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    with pytest.raises(MissingPackageError, match="install the CUDA toolkit"):
        build_plugin()


def test_unknown_chip(library: Path) -> None:
    with pytest.raises(UsageError, match="not for 42"):
        build_plugin((86, 42))
    with pytest.raises(UsageError, match="no architecture"):
        build_plugin(())


def code_in(library: Path) -> set[tuple[str, int]]:
    """Kinds of code and their chips, as nvcc packs them: (elf, 90), (ptx, 120)."""
    content, found, at = library.read_bytes(), set[tuple[str, int]](), 0
    while (at := content.find(struct.pack("<IH", 0xBA55ED50, 1), at)) >= 0:
        header, size = struct.unpack_from("<HQ", content, at + 6)
        entry, end = at + header, at + header + size
        while entry < end:
            kind, _, length, payload = struct.unpack_from("<HHIQ", content, entry)
            found.add(({1: "ptx", 2: "elf"}[kind], *struct.unpack_from("<I", content, entry + 28)))
            entry += length + payload
        at = end
    return found


@pytest.mark.slow
def test_same_sources_same_bytes(library: Path, tmp_path: Path) -> None:
    assert build_plugin((86,), tmp_path).read_bytes() == library.read_bytes()  # manifests name it by its hash


@pytest.mark.slow
def test_code_for_every_chip(library: Path) -> None:
    known = {int(name) for name in re.findall(r"compute_(\d+)", tool("nvcc", "--list-gpu-arch"))}
    expected = {("elf", chip) for chip in ARCHITECTURES if chip in known}
    newest = {("ptx", chip) for chip in sorted(known.intersection(ARCHITECTURES))[-2:]}
    assert code_in(build_plugin()) == expected | newest
    assert code_in(library) == {("elf", 86), ("ptx", 86)}
