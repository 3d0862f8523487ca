"""ONNX file of ours -> serialized TensorRT engine (plan).

Written against what a TensorRT can do, not against its version: `tensorrt_rtx` builds on a CPU for the chips it is
told; `tensorrt` 10.9 and later builds for the GPU it sees. Networks are strongly typed: the precision is a property of
the ONNX file.
"""

import ctypes
import hashlib
import importlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from mal.errors import DeviceError, EngineError, MissingPackageError, ModelFileError, UsageError
from mal.export.rtx_parser import make_parser_safe
from mal.plugins.crf_refine.names import DOMAIN, NAME, VERSION

RTX_CHIPS = (75, 80, 86, 89, 120)
"""Compute capabilities x 10 of RTX 20, A100, RTX 30, RTX 40 and RTX 50. TensorRT-RTX has none for 90 (H100, H200)."""

_TURING = 75  # here TensorRT-RTX has no float32 matrix product: an FP32 student cannot be built for it

_EXTRA = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
# What TensorRT adds to every error on a machine without a GPU, and the parser's frame around a node.
_NOISE = ("catchCudaError", "--- Begin node", "--- End node", "While parsing node")


@dataclass(frozen=True)
class Profile:
    """Crops per call that an engine takes, and for how many it is made fastest."""

    minimum: int = 1
    best: int = 32
    maximum: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.best <= self.maximum:
            raise UsageError(f"profile {self} must satisfy 1 <= min <= opt <= max, e.g. 1:32:64")

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Read min:opt:max.

        Raises:
            UsageError: not three whole numbers, or not in order.

        >>> Profile.parse("1:32:64")
        Profile(minimum=1, best=32, maximum=64)
        """
        words = text.split(":")
        if len(words) != 3 or not all(word.isdecimal() for word in words):
            raise UsageError(f"profile {text!r} must be min:opt:max, e.g. 1:32:64")
        return cls(*map(int, words))

    def __str__(self) -> str:
        return f"{self.minimum}:{self.best}:{self.maximum}"


@dataclass(frozen=True)
class Engine:
    """A serialized engine and what it was built from and for."""

    plan: bytes
    onnx: bytes
    package: str  # module that built it
    version: str  # ... and its version
    profile: Profile
    compute_capabilities: tuple[int, ...]  # x 10; empty: the GPU it was built on
    plugin: Path | None  # library with our plugin; None: the model needs none

    def to_json(self) -> dict[str, Any]:
        """The manifest's part on the engine."""
        return {
            "onnx_sha256": hashlib.sha256(self.onnx).hexdigest(),
            "plugin": self.plugin.name if self.plugin else None,
            "plugin_sha256": hashlib.sha256(self.plugin.read_bytes()).hexdigest() if self.plugin else None,
            "tensorrt": f"{self.package} {self.version}",
            "compute_capabilities": list(self.compute_capabilities),
            "profile": str(self.profile),
        }


def build_engine(
    content: bytes,
    *,
    package: str = "tensorrt_rtx",
    profile: Profile | None = None,
    compute_capabilities: Sequence[int] | None = None,
    plugin: Path | None = None,
) -> Engine:
    """Build a strongly typed engine.

    Args:
        content: the ONNX file, input `crops` with a free batch.
        package: module of the TensorRT to use: "tensorrt_rtx" or "tensorrt".
        profile: crops per call; None: 1:32:64.
        compute_capabilities: chips to build for, x 10, such as (86, 120); None: `RTX_CHIPS` with TensorRT-RTX, for a
            FP32 model without 75. Any other TensorRT builds for the GPU it sees and takes None alone.
        plugin: library of `crf_refine.tensorrt_library.build_plugin`; needed by a refined model.

    Raises:
        MissingPackageError: this TensorRT is not installed or cannot load, or no plugin for a refined model.
        UsageError: a chip that this TensorRT cannot build for.
        ModelFileError: no ONNX, or one with other inputs.
        DeviceError: this TensorRT needs a GPU and sees none.
        EngineError: the builder refused, or the network does not hold our plugin.
    """
    profile = profile or Profile()
    model = _read(content)
    nodes = sum((node.domain, node.op_type) == (DOMAIN, NAME) for node in model.graph.node)
    if nodes and plugin is None:
        raise MissingPackageError(
            f"the model refines its masks and an engine needs the plugin {DOMAIN}::{NAME} for it: "
            "run `mal plugins build`, or export with --refine 0"
        )
    trt = load_tensorrt(package)
    make_parser_safe()
    log = _log(trt)
    log.errors.clear()
    chips = _chips(trt, package, compute_capabilities, model)
    with _plugin_registered(trt, plugin if nodes else None):
        plan = _build(trt, log, content, profile, chips, nodes)
    return Engine(plan, content, package, trt.__version__, profile, chips, plugin if nodes else None)


def load_tensorrt(package: str) -> ModuleType:
    """Import a TensorRT.

    Raises:
        MissingPackageError: it is not installed, or a library of it is missing.
        UsageError: it is none.
    """
    if package not in _EXTRA:
        raise UsageError(f"unknown TensorRT {package!r}; expected {' or '.join(_EXTRA)}")
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:  # OSError: installed, and a library of it is missing
        raise MissingPackageError(
            f'cannot load {package} ({_line(str(error))}): pip install "mask-auto-labeler[{_EXTRA[package]}]"'
        ) from None


def _build(trt: Any, log: Any, content: bytes, profile: Profile, chips: Sequence[int], nodes: int) -> bytes:
    builder = trt.Builder(log)
    if builder is None:
        raise DeviceError(f"{trt.__name__} cannot make a builder: {log.quote()}")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if network is None:
        raise EngineError(f"{trt.__name__} cannot make a network: {log.quote()}")
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        problems = [parser.get_error(index) for index in range(parser.num_errors)]
        words = "; ".join(f"{problem.node_name()}: {_line(problem.desc())}" for problem in problems)
        raise EngineError(f"{trt.__name__} cannot read the model: {words or log.quote()}")
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
    if found != nodes:
        raise EngineError(
            f"the network holds {found} plugin layers where the model has {nodes} nodes {DOMAIN}::{NAME}: the parser "
            "took the ONNX function instead of the plugin; run `mal plugins build`, and report it if this stays so"
        )

    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    crops = _crops(trt, network)
    sizes = [(count, *tuple(crops.shape)[1:]) for count in (profile.minimum, profile.best, profile.maximum)]
    shapes.set_shape(crops.name, *sizes)
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"{trt.__name__} does not take the profile {profile}: {log.quote()}")
    if chips:
        config.num_compute_capabilities = len(chips)
        for index, chip in enumerate(chips):
            if not config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{chip}"], index):
                raise EngineError(f"{trt.__name__} does not take compute capability {chip}: {log.quote()}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{trt.__name__} cannot build the engine: {log.quote()}")
    return bytes(plan)


def _read(content: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(content)
    except Exception as error:  # protobuf's own error class, without a public name
        raise ModelFileError(f"not an ONNX model: {_line(str(error))}") from None


def _chips(trt: Any, package: str, wanted: Sequence[int] | None, model: onnx.ModelProto) -> tuple[int, ...]:
    if not hasattr(trt, "ComputeCapability"):
        if wanted is not None:
            raise UsageError(f"{package} builds for the GPU it sees; compute capabilities are for tensorrt_rtx")
        return ()
    known = [int(name[2:]) for name in trt.ComputeCapability.__members__ if name[:2] == "SM" and name[2:].isdecimal()]
    if wanted is None:
        half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
        wanted = [chip for chip in RTX_CHIPS if half or chip != _TURING]
    chips = tuple(dict.fromkeys(wanted))
    unknown = [chip for chip in chips if chip not in known]
    if unknown or not chips:
        came = f"compute capability {unknown[0]}" if unknown else "no compute capability"
        raise UsageError(f"{package} {trt.__version__} builds for {', '.join(map(str, known))}, got {came}")
    return chips


def _crops(trt: Any, network: Any) -> Any:
    """The network's only input."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    shape = shapes.get("crops", ())
    if len(inputs) != 1 or len(shape) != 4 or shape[0] != -1 or min(shape[1:]) < 1 or inputs[0].dtype != trt.float32:
        raise ModelFileError(f"expected one float32 input crops (free, 3, S, S), got {shapes}; use `mal export`")
    return inputs[0]


@contextmanager
def _plugin_registered(trt: Any, library: Path | None) -> Generator[None]:
    """Have our plugin in TensorRT's registry for a while."""
    registry = trt.get_plugin_registry()
    ours = (NAME, VERSION, DOMAIN)
    if any((made.name, made.plugin_version, made.plugin_namespace) == ours for made in registry.all_creators):
        raise EngineError(f"another library in this process has registered {DOMAIN}::{NAME}; build in a fresh process")
    if library is None:
        yield
        return
    _pin(library)
    handle = registry.load_library(str(library))
    if handle is None:
        raise EngineError(f"{trt.__name__} cannot load the plugin {library}: {_log(trt).quote()}")
    try:
        yield
    finally:
        registry.deregister_library(handle)


@cache
def _pin(library: Path) -> ctypes.CDLL:
    """Keep the library's code in memory: TensorRT closes it while an object of it may still wait for its end."""
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise MissingPackageError(f"cannot load the plugin {library}: {error}; run `mal plugins build`") from None


@cache
def _log(trt: Any) -> Any:
    """One logger for each TensorRT, never freed: it keeps a pointer to the first it was given."""

    class Log(trt.ILogger):
        """Keeps errors, to quote them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def quote(self) -> str:
            """The errors that say something, the first ones first."""
            lines = [_line(text) for text in self.errors if not any(word in text for word in _NOISE)]
            return "; ".join(dict.fromkeys(lines[:3])) or "it gave no reason"

    return Log()


def _line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]
