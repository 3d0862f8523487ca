"""What our code touches of TensorRT exists in the real ones: 11.4's bindings over empty libraries, and TensorRT-RTX.

fake_tensorrt.py holds exactly what is touched; the tests that run on it would fail on anything more.
"""

import inspect
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import make_tensorrt
from tensorrt_parts import need_rtx

from mal.errors import MissingPackageError
from mal.plugins.compile import find_compiler

# What tensorrt_bindings 11.4 asks of the three libraries that it links.
STUBS = {
    "libnvinfer": (
        "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry", "getPluginRegistry",
    ),
    "libnvinfer_plugin": ("initLibNvInferPlugins",),
    "libnvonnxparser": ("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getNvOnnxParserVersion"),
}  # fmt: skip

# In a process of its own: these libraries are empty, and whoever calls them dies.
LOOK = """
import ctypes, json, sys
folder, names = sys.argv[1], json.loads(sys.argv[2])
for path in sorted(__import__("pathlib").Path(folder).iterdir()):
    ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
import tensorrt_bindings as trt
missing = []
for name, members in names.items():
    owner = trt if not name else getattr(trt, name, None)
    missing += [f"{name}.{member}" for member in members if not hasattr(owner, member)]
print(json.dumps({"version": trt.__version__, "missing": missing}))
"""


def touched(trt: Any) -> dict[str, list[str]]:
    """Public members of each class of a fake, and the module's own names under ""."""
    names = [name for name in vars(trt) if not name.startswith("__") and name not in ("fail", "calls")]
    classes = {name: getattr(trt, name) for name in names if inspect.isclass(getattr(trt, name))}
    # ILayer and ITensor keep plain attributes; so do configs.
    members = {
        name: [member for member in vars(kind) if not member.startswith("_")] for name, kind in classes.items()
    } | {"ILayer": ["type"], "ITensor": ["name", "shape", "dtype"]}
    members["IBuilderConfig"] += ["progress_monitor"]
    members["ILogger"] += ["Severity"]
    return {"": ["__version__", *names], **members}


def test_tensorrt_11s_own_bindings(tmp_path: Path) -> None:
    import json

    try:
        assert version("tensorrt-cu13-bindings") == "11.4.0.106"
        compiler = find_compiler()
    except (PackageNotFoundError, MissingPackageError) as missing:
        pytest.skip(f"needs tensorrt-cu13-bindings==11.4.0.106 and a C++ compiler: {missing}")
    for library, functions in STUBS.items():
        source = "".join(f'extern "C" void* {name}() {{ return nullptr; }}\n' for name in functions)
        words = [compiler, "-x", "c++", "-", "-shared", "-fPIC", f"-Wl,-soname,{library}.so.11"]
        subprocess.run([*words, "-o", str(tmp_path / f"{library}.so.11")], input=source, text=True, check=True)
    names = touched(make_tensorrt()) | {"HardwareCompatibilityLevel": ["AMPERE_PLUS"]}
    names["IBuilderConfig"] += ["hardware_compatibility_level"]
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path), json.dumps(names)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"version": "11.4.0.106", "missing": []}
    assert sum(map(len, names.values())) > 60


def test_tensorrt_rtx() -> None:
    real = need_rtx()
    names = touched(make_tensorrt(rtx=True)) | {"IRuntimeConfig": ["cuda_graph_strategy"]}
    names["IBuilderConfig"] += ["num_compute_capabilities"]
    names["ComputeCapability"] = ["SM75", "SM80", "SM86", "SM89", "SM120"]
    for name, members in names.items():
        owner = getattr(real, name) if name else real
        assert [member for member in members if not hasattr(owner, member)] == [], name


def test_features_not_versions() -> None:
    """What the code asks with hasattr tells the two apart, in the real ones too."""
    real = need_rtx()
    for feature in ("ComputeCapability", "CudaGraphStrategy"):
        assert hasattr(real, feature)
        assert not hasattr(make_tensorrt(), feature)
