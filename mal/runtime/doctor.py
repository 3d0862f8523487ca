"""`mal doctor`: what is installed, what works, and the line that installs what is missing."""

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from mal.errors import MalError, MissingPackageError
from mal.plugins.compile import find_compiler, find_nvcc
from mal.plugins.crf_refine.tensorrt_library import find_headers, find_plugin, header_version
from mal.plugins.cuda_library import find_cuda
from mal.plugins.host_library import find_host
from mal.runtime.machine import byte_products, cpu_count, cuda_version, driver_version, gpu_count, gpus
from mal.runtime.session import open_session, resolve_model
from mal.runtime.tensorrt_package import EXTRAS, load_tensorrt
from mal.runtime.versions import installed, versions

PACKAGE = "mask-auto-labeler"
_BUILD = "mal plugins build"
_SIGN = {"ok": "ok", "missing": "--", "broken": "!!"}


@dataclass
class Check:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    fix: str = ""  # what to do if it is missing and wanted


@dataclass
class Diagnosis:
    """All checks, in the order in which they are shown."""

    checks: list[Check]

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for json.dumps."""
        return {"ready": self.ready, "checks": [asdict(check) for check in self.checks]}

    @property
    def ready(self) -> bool:
        """Whether the shipped student can label here."""
        return any(check.name == "shipped student" and check.state == "ok" for check in self.checks)

    def text(self) -> str:
        """What the command prints."""
        width = max(len(check.name) for check in self.checks)
        lines = [
            f"{_SIGN[check.state]}  {check.name:{width}}  {check.detail}" + (f"  → {check.fix}" if check.fix else "")
            for check in self.checks
        ]
        return "\n".join([*lines, "", "ready to label" if self.ready else "not ready to label: see !! above"])


def diagnose() -> Diagnosis:
    """Look at everything; imports what runs models, nothing that trains them. Never raises."""
    found = [_mal(), _onnxruntime(), _shipped_student(), _int8_student()]
    found += [
        _package("torch", "train", "checkpoints (.safetensors), training"),
        _package("onnx", "export", "export to ONNX"),
        _package("faster-coco-eval", "eval", "mask AP in `mal eval`"),
    ]
    found += [_gpu(), *_tensorrt(), _tool("C++ compiler", find_compiler), _tool("nvcc", find_nvcc)]
    return Diagnosis([*found, _cpu_kernel(), _tensorrt_plugin(), _engines(found), _refinement()])


def install_line(extra: str) -> str:
    """What installs an extra of this package."""
    return f'pip install "{PACKAGE}[{extra}]"'


def _mal() -> Check:
    found = versions()
    detail = f"{found.pop('mal')}, " + ", ".join(f"{name} {version}" for name, version in found.items())
    return Check("mal", "ok", f"{detail}, {cpu_count()} processors")


def _onnxruntime() -> Check:
    cpu, gpu = installed("onnxruntime"), installed("onnxruntime-gpu")
    if cpu and gpu:
        return Check(
            "ONNX Runtime", "broken", f"onnxruntime {cpu} and onnxruntime-gpu {gpu} overwrite each other's files",
            f"pip uninstall onnxruntime onnxruntime-gpu, then {install_line('gpu')}",
        )  # fmt: skip
    if not cpu and not gpu:
        return Check("ONNX Runtime", "broken", "not installed: nothing to run .onnx models with", install_line("cpu"))
    try:
        import onnxruntime

        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    except Exception as error:
        return Check("ONNX Runtime", "broken", f"does not import: {error}", f"{install_line('cpu')} again")
    return Check("ONNX Runtime", "ok", f"{cpu or gpu}; providers {providers}")


def _shipped_student() -> Check:
    name = "shipped student"
    try:
        with closing(open_session("student")) as session:
            size = session.constants.size
            session.run(np.zeros((1, 3, size, size), np.float32))
            path = resolve_model("student")
            detail = f"{path.name} {session.model_id}, {path.stat().st_size / 1e6:.1f} MB, crops {size} x {size}"
            return Check(name, "ok", f"{detail}, runs on {session.device}")
    except MissingPackageError:
        return Check(name, "broken", "cannot run without ONNX Runtime", install_line("cpu"))
    except MalError as error:
        return Check(name, "broken", str(error))
    except Exception as error:  # whatever a runtime raises: the doctor reports it
        return Check(name, "broken", f"does not run: {type(error).__name__}: {error}")


def _int8_student() -> Check:
    """Whether the second shipped student is worth its while on this processor."""
    name = "shipped INT8 student"
    try:
        path = resolve_model("student-int8")
    except MalError as error:
        return Check(name, "broken", str(error))
    detail = f"{path.name}, {path.stat().st_size / 1e6:.1f} MB"
    if instruction := byte_products():
        return Check(
            name, "ok", f"{detail}: about 1.6 times as fast on this CPU ({instruction}): --engine student-int8"
        )
    return Check(name, "ok", f"{detail}: not for this CPU, which has no VNNI; keep to --engine student")


def _package(package: str, extra: str, purpose: str) -> Check:
    found = installed(package)
    if found:
        return Check(package, "ok", f"{found}: {purpose}")
    return Check(package, "missing", f"not installed: {purpose}", install_line(extra))


def _gpu() -> Check:
    seen = gpus()
    if not seen:
        return Check("GPU", "missing", "no CUDA driver sees one; labelling runs on the CPU")
    names = "; ".join(f"{gpu.name}, compute capability {gpu.compute_capability}" for gpu in seen)
    found = f"{names}; driver {driver_version() or 'unknown'}, CUDA up to {cuda_version()}"
    return Check("GPU", "ok", found, "" if installed("onnxruntime-gpu") else install_line("gpu"))


def _tensorrt() -> list[Check]:
    """Which of the TensorRTs loads, and what for."""
    found: list[Check] = []
    for package, extra in EXTRAS.items():
        name = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}[package]
        if find_spec(package) is None:
            found.append(Check(name, "missing", "not installed: engines (.plan)", install_line(extra)))
            continue
        try:
            trt: Any = load_tensorrt(package)
        except MissingPackageError as error:
            found.append(Check(name, "broken", str(error).partition(": pip")[0], install_line(extra)))
            continue
        if not hasattr(trt, "ComputeCapability"):
            detail = "builds engines for the GPU it sees" if gpu_count() else "builds engines where it sees a GPU"
        else:
            chips = [int(chip[2:]) for chip in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", chip)]
            detail = f"builds engines for compute capability {', '.join(map(str, sorted(chips)))}, without a GPU too"
            others = [gpu.name for gpu in gpus() if gpu.compute_capability not in chips]
            detail += f"; not for {', '.join(others)} here" if others else ""
        found.append(Check(name, "ok", f"{trt.__version__}: {detail}"))
    return found


def _engines(found: list[Check]) -> Check:
    """Whether engines run here, and if not, the one thing to do next."""
    name = "engines (.plan)"
    states = {check.name: check for check in found}
    if states["GPU"].state != "ok":
        return Check(name, "missing", "run on a GPU only; TensorRT-RTX builds them without one")
    if not any(states[library].state == "ok" for library in ("TensorRT", "TensorRT-RTX")):
        return Check(name, "missing", "no TensorRT loads", states["TensorRT"].fix)
    memory = installed("cuda-core")
    if not memory:
        return Check(name, "missing", "no cuda-core, for the memory of the GPU", install_line("tensorrt"))
    return Check(name, "ok", f"run, with cuda-core {memory}; the plugin that one needs lies beside it")


def _tool(name: str, find: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", find())
    except MissingPackageError:
        return Check(name, "missing", "not found: only `mal plugins build` needs it")


def _cpu_kernel() -> Check:
    name = "compiled for the CPU"  # CRF, crops and masks
    if path := find_host():
        return Check(name, "ok", str(path))
    try:
        return Check(
            name, "ok", f"not built yet; {find_compiler()} builds it; until then NumPy cuts and decides", _BUILD
        )
    except MissingPackageError as error:
        return Check(name, "missing", str(error))


def _tensorrt_plugin() -> Check:
    name = "CRF plugin (TensorRT)"
    try:
        if path := find_plugin():
            return Check(name, "ok", str(path))
        detail = f"not built yet; {find_nvcc()} and the headers of TensorRT {header_version(find_headers())} are there"
        return Check(name, "ok", detail, _BUILD)
    except MissingPackageError as error:
        return Check(name, "missing", f"not built: {error}")


def _refinement() -> Check:
    """Who refines in which session: the rule of `torch_body.body`, without torch."""
    bodies = ["ONNX Runtime: the function in the model"]
    if installed("torch"):
        on_cpu = "the kernel" if _cpu_kernel().state == "ok" else "torch operations"
        on_gpu = "the CUDA kernel" if find_cuda() else f"torch operations (the kernel after `{_BUILD}`)"
        bodies.append(f"training and the torch session: {on_cpu} on a CPU, {on_gpu} on a GPU")
    bodies.append("engines: the plugin")
    return Check("CRF refinement runs in", "ok", "; ".join(bodies))
