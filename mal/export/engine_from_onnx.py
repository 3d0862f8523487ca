"""ONNX file of ours -> serialized TensorRT engine (plan).

Written against what a TensorRT can do, not against its version: `tensorrt_rtx` builds on a CPU for the chips it is
told; `tensorrt` 10.9 and later builds for the GPU it sees. Networks are strongly typed: the precision is a property of
the ONNX file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import onnx

from mal.errors import DeviceError, EngineError, Interrupted, MissingPackageError, ModelFileError, UsageError
from mal.export import plan_cache
from mal.export.build_progress import monitor_build
from mal.export.engine_options import RTX_CHIPS, EngineOptions
from mal.export.rtx_parser import make_parser_safe
from mal.plugins.crf_refine.names import DOMAIN, NAME
from mal.runtime.machine import Gpu, cuda_version, driver_version, gpus
from mal.runtime.onnx_file import read_metadata
from mal.runtime.plan_file import EngineFacts
from mal.runtime.tensorrt_package import first_line, load_tensorrt, logger_of, plugin_registered

_TURING = 75  # here TensorRT-RTX has no float32 matrix product: an FP32 student cannot be built for it
_AMPERE = 80


@dataclass(frozen=True)
class Engine:
    """A serialized engine and what it was built from and for."""

    plan: bytes
    onnx: bytes
    package: str  # module that built it
    version: str  # ... and its version
    options: EngineOptions
    compute_capabilities: tuple[int, ...]  # x 10
    plugin: Path | None  # library with our plugin; None: the model needs none
    gpu: Gpu | None  # that it was built on; None: built without one
    cached: bool  # found in the plan cache, not built now

    def facts(self, onnx_name: str) -> EngineFacts:
        """The manifest's part on the engine.

        Args:
            onnx_name: name of the ONNX file that is written beside the plan.
        """
        return EngineFacts(
            onnx=onnx_name,
            onnx_sha256=hashlib.sha256(self.onnx).hexdigest(),
            tensorrt=f"{self.package} {self.version}",
            profile=str(self.options.profile),
            compute_capabilities=self.compute_capabilities,
            hardware_compatible=self.options.hardware_compatible,
            plugin=self.plugin.name if self.plugin else None,
            plugin_sha256=hashlib.sha256(self.plugin.read_bytes()).hexdigest() if self.plugin else None,
            workspace_gb=self.options.workspace_gb,
            chip=self.gpu.name if self.gpu else None,
            driver=driver_version() if self.gpu else None,
            cuda=cuda_version() if self.gpu else None,
        )

    def to_json(self, onnx_name: str) -> dict[str, Any]:
        """`facts` as plain JSON values."""
        return msgspec.to_builtins(self.facts(onnx_name))


def build_engine(
    content: bytes,
    *,
    package: str = "tensorrt_rtx",
    options: EngineOptions | None = None,
    plugin: Path | None = None,
) -> Engine:
    """Build a strongly typed engine, unless the plan cache holds it.

    Args:
        content: the ONNX file, input `crops` with a free batch.
        package: module of the TensorRT to use: "tensorrt_rtx" or "tensorrt".
        options: None: the defaults.
        plugin: library of `crf_refine.tensorrt_library.build_plugin`; needed by a refined model.

    Raises:
        MissingPackageError: this TensorRT is not installed or cannot load, or no plugin for a refined model.
        UsageError: a chip or an option that this TensorRT does not have.
        ModelFileError: no ONNX, with data in other files, or with other inputs.
        DeviceError: this TensorRT needs a GPU and sees none.
        EngineError: the builder refused, or the network does not hold our plugin.
        Interrupted: Ctrl-C.
    """
    options = options or EngineOptions()
    model = _read(content)
    nodes = sum((node.domain, node.op_type) == (DOMAIN, NAME) for node in model.graph.node)
    if nodes and plugin is None:
        raise MissingPackageError(
            f"the model refines its masks and an engine needs the plugin {DOMAIN}::{NAME} for it: "
            "run `mal plugins build`, or export with --refine 0"
        )
    plugin = plugin if nodes else None
    trt, gpu = find_builder(package)
    log = logger_of(trt)
    log.errors.clear()
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    chips = choose_chips(trt, gpu, options, half=half)
    key = plan_cache.key(content, package, trt.__version__, gpu, chips, options, plugin)
    plan = plan_cache.find(key)
    cached = plan is not None
    if plan is None:
        make_parser_safe()
        with plugin_registered(trt, plugin):
            plan = _build(trt, log, content, options, () if gpu else chips, nodes, gpu)
        plan_cache.keep(key, plan)
    return Engine(plan, content, package, trt.__version__, options, chips, plugin, gpu, cached)


def find_builder(package: str) -> tuple[Any, Gpu | None]:
    """A TensorRT that can build here, and the GPU that it builds for; None: for any chip it is told.

    Raises:
        MissingPackageError: it cannot be loaded.
        DeviceError: it needs a GPU and sees none.
    """
    trt = load_tensorrt(package)
    if hasattr(trt, "ComputeCapability"):
        return trt, None
    seen = gpus()
    if not seen:
        raise DeviceError(f"{package} {trt.__version__} builds for the GPU it sees, and the driver shows none here")
    return trt, seen[0]


def choose_chips(trt: Any, gpu: Gpu | None, options: EngineOptions, *, half: bool) -> tuple[int, ...]:
    """Compute capabilities x 10 that an engine will be built for.

    Args:
        trt, gpu: of `find_builder`.
        options: what was asked for.
        half: the model holds float16.

    Raises:
        UsageError: a chip or an option that this TensorRT does not have.
    """
    package, wanted = trt.__name__, options.compute_capabilities
    if gpu is not None:
        if wanted is not None:
            raise UsageError(f"{package} builds for the GPU it sees; compute capabilities are for tensorrt_rtx")
        if options.hardware_compatible and gpu.compute_capability < _AMPERE:
            raise UsageError(
                f"hardware-compatible engines begin with Ampere (80); {gpu.name} is {gpu.compute_capability}"
            )
        return (gpu.compute_capability,)
    if options.hardware_compatible:
        raise UsageError(f"{package} knows no hardware-compatible engines: name the compute capabilities instead")
    known = [int(name[2:]) for name in trt.ComputeCapability.__members__ if name[:2] == "SM" and name[2:].isdecimal()]
    if wanted is None:
        wanted = [chip for chip in RTX_CHIPS if half or chip != _TURING]
    chips = tuple(dict.fromkeys(wanted))
    unknown = [chip for chip in chips if chip not in known]
    if unknown or not chips:
        came = f"compute capability {unknown[0]}" if unknown else "no compute capability"
        raise UsageError(f"{package} {trt.__version__} builds for {', '.join(map(str, known))}, got {came}")
    return chips


def _build(
    trt: Any, log: Any, content: bytes, options: EngineOptions, chips: Sequence[int], nodes: int, gpu: Gpu | None
) -> bytes:
    def made(thing: Any, what: str) -> Any:
        """Every maker of TensorRT gives None where it fails, and says why in the log."""
        if thing is None:
            raise EngineError(f"{trt.__name__} cannot {what}: {log.quote()}")
        return thing

    def accepted(answer: Any, what: str) -> None:
        if answer is False:
            raise EngineError(f"{trt.__name__} does not take {what}: {log.quote()}")

    builder = made(trt.Builder(log), "make a builder")
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = made(builder.create_network(strongly_typed), "make a network")
    _parse(trt, log, content, network)
    _assert_plugin(trt, network, nodes)

    config = made(builder.create_builder_config(), "make a builder config")
    shapes = made(builder.create_optimization_profile(), "make an optimization profile")
    crops = _crops(trt, network)
    profile = options.profile
    sizes = [(count, *tuple(crops.shape)[1:]) for count in (profile.minimum, profile.best, profile.maximum)]
    accepted(shapes.set_shape(crops.name, *sizes), f"the profile {profile}")
    accepted(config.add_optimization_profile(shapes) >= 0, f"the profile {profile}")
    if chips:
        config.num_compute_capabilities = len(chips)
        for index, chip in enumerate(chips):
            known = trt.ComputeCapability.__members__[f"SM{chip}"]
            accepted(config.set_compute_capability(known, index), f"compute capability {chip}")
    if options.workspace_gb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gb * 1e9))
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    timings = plan_cache.timing_file(trt.__name__, trt.__version__, gpu) if gpu else None
    if timings:
        known = made(config.create_timing_cache(plan_cache.read(timings)), "make a timing cache")
        accepted(config.set_timing_cache(known, False), "the timing cache")

    with monitor_build(trt, config) as stopped:
        plan = builder.build_serialized_network(network, config)
    if stopped():
        raise Interrupted("stopped; no engine was written")
    plan = made(plan, "build the engine")
    if timings:
        plan_cache.write(timings, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _read(content: bytes) -> onnx.ModelProto:
    read_metadata(content, "the model")  # whole, and stands alone: TensorRT's parser would open any file it names
    try:
        return onnx.load_from_string(content)
    except Exception as error:  # protobuf's own error class, without a public name
        raise ModelFileError(f"not an ONNX model: {first_line(error)}") from None


def _parse(trt: Any, log: Any, content: bytes, network: Any) -> None:
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        problems = [parser.get_error(index) for index in range(parser.num_errors)]
        words = "; ".join(f"{problem.node_name()}: {first_line(problem.desc())}" for problem in problems)
        raise EngineError(f"{trt.__name__} cannot read the model: {words or log.quote()}")


def _assert_plugin(trt: Any, network: Any, nodes: int) -> None:
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
    if found != nodes:
        raise EngineError(
            f"the network holds {found} plugin layers where the model has {nodes} nodes {DOMAIN}::{NAME}: the parser "
            "took the ONNX function instead of the plugin; run `mal plugins build`, and report it if this stays so"
        )


def _crops(trt: Any, network: Any) -> Any:
    """The network's only input."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    shape = shapes.get("crops", ())
    if len(inputs) != 1 or len(shape) != 4 or shape[0] != -1 or min(shape[1:]) < 1 or inputs[0].dtype != trt.float32:
        raise ModelFileError(f"expected one float32 input crops (free, 3, S, S), got {shapes}; use `mal export`")
    return inputs[0]
