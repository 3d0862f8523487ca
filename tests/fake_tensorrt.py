"""A TensorRT without a GPU: the classes and members that our code touches, and nothing else, under their real names.

What is missing here cannot be touched without an error, and test_tensorrt_surface.py holds what is here against the
real bindings. An engine of it answers like the tiny model of tests/unit/runtime: bright is foreground.
"""

import ctypes
import functools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx

from mal.runtime.device_memory import Block, DeviceArray, foreign_array

COMMON = {
    "ILogger", "IProgressMonitor", "Builder", "INetworkDefinition", "ILayer", "ITensor", "OnnxParser", "ParserError",
    "IOptimizationProfile", "IBuilderConfig", "ITimingCache", "Runtime", "ICudaEngine", "IExecutionContext",
    "IPluginRegistry", "LayerType", "NetworkDefinitionCreationFlag", "MemoryPoolType", "TensorIOMode",
}  # fmt: skip


def make_tensorrt(rtx: bool = False, version: str = "11.4.0.106") -> Any:
    """A module `tensorrt` or `tensorrt_rtx`.

    `fail` is a set of "Class.method" that fail, with a word in the log; `calls` lists the methods that were called.
    """
    trt: Any = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    trt.__version__ = version
    trt.fail, trt.calls, trt.float32 = set(), [], "float32"
    log: list[Any] = []

    def may_fail(failure: Any) -> Callable[[Any], Any]:
        def wrap(method: Any) -> Any:
            @functools.wraps(method)
            def called(self: Any, *arguments: Any) -> Any:
                name = method.__qualname__.rpartition("<locals>.")[2]
                trt.calls.append(name)
                if name in trt.fail:
                    if log:
                        log[-1].log(ILogger.Severity.ERROR, f"{name} says no\nand more")
                    return failure
                return method(self, *arguments)

            return called

        return wrap

    class ILogger:
        class Severity(IntEnum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2

        def __init__(self) -> None:
            log.append(self)

        def log(self, severity: Any, message: str) -> None: ...

    class IProgressMonitor:
        def phase_start(self, *_: Any) -> None: ...
        def step_complete(self, *_: Any) -> bool: ...
        def phase_finish(self, *_: Any) -> None: ...

    LayerType = Enum("LayerType", ["PLUGIN_V3", "CONVOLUTION"])  # noqa: N806
    NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 0})  # noqa: N806
    MemoryPoolType = Enum("MemoryPoolType", ["WORKSPACE"])  # noqa: N806
    TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])  # noqa: N806
    HardwareCompatibilityLevel = Enum("HardwareCompatibilityLevel", ["AMPERE_PLUS"])  # noqa: N806
    ComputeCapability = Enum("ComputeCapability", ["SM75", "SM86", "SM89", "SM120", "CURRENT"])  # noqa: N806
    CudaGraphStrategy = Enum("CudaGraphStrategy", ["WHOLE_GRAPH_CAPTURE"])  # noqa: N806

    class ITensor:
        def __init__(self, name: str, shape: tuple[int, ...]) -> None:
            self.name, self.shape, self.dtype = name, shape, trt.float32

    class ILayer:
        def __init__(self, kind: Any) -> None:
            self.type = kind

    class INetworkDefinition:
        def __init__(self) -> None:
            self._layers: list[Any] = []
            self._inputs: list[Any] = []

        @property
        def num_layers(self) -> int:
            return len(self._layers)

        @property
        def num_inputs(self) -> int:
            return len(self._inputs)

        def get_layer(self, index: int) -> Any:
            return self._layers[index]

        def get_input(self, index: int) -> Any:
            return self._inputs[index]

    class ParserError:
        def __init__(self, node: str, text: str) -> None:
            self._node, self._text = node, text

        def node_name(self) -> str:
            return self._node

        def desc(self) -> str:
            return self._text

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network = network

        @property
        def num_errors(self) -> int:
            return int("OnnxParser.parse" in trt.fail)

        def get_error(self, index: int) -> Any:
            return ParserError("node_7", "no such operator\nat line 3")

        @may_fail(False)
        def parse(self, content: bytes) -> bool:
            graph = onnx.load_from_string(content).graph
            for value in graph.input:
                shape = tuple(axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim)
                self._network._inputs.append(ITensor(value.name, shape))
            plugins = registry._names()
            for node in graph.node:
                ours = node.op_type == "CRFRefine" and "CRFRefine" in plugins
                self._network._layers.append(ILayer(LayerType.PLUGIN_V3 if ours else LayerType.CONVOLUTION))
            return True

    class IOptimizationProfile:
        @may_fail(False)
        def set_shape(self, name: str, *shapes: Any) -> None:
            self._shapes = shapes

    class ITimingCache:
        def serialize(self) -> bytes:
            return b"timings"

    class IBuilderConfig:
        def __init__(self) -> None:
            self.progress_monitor: Any = None
            if rtx:
                self.num_compute_capabilities = 0
            else:
                self.hardware_compatibility_level: Any = None

        @may_fail(-1)
        def add_optimization_profile(self, profile: Any) -> int:
            self._profile = profile
            return 0

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self._workspace = size

        if rtx:

            @may_fail(False)
            def set_compute_capability(self, chip: Any, index: int) -> bool:
                return True

        else:

            @may_fail(None)
            def create_timing_cache(self, content: bytes) -> Any:
                trt.calls.append(f"timings {content!r}")
                return ITimingCache()

            @may_fail(False)
            def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
                return True

            def get_timing_cache(self) -> Any:
                return ITimingCache()

    class Builder:
        def __init__(self, logger: Any) -> None: ...

        @may_fail(None)
        def create_network(self, flags: int) -> Any:
            assert flags == 1, "strongly typed"
            return INetworkDefinition()

        @may_fail(None)
        def create_builder_config(self) -> Any:
            return IBuilderConfig()

        @may_fail(None)
        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        @may_fail(None)
        def build_serialized_network(self, network: Any, config: Any) -> Any:
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, 2)
            for step in range(2):
                if not monitor.step_complete("Building", step):
                    return None
            monitor.phase_finish("Building")
            shapes = config._profile._shapes
            facts = {"profile": [list(shape) for shape in shapes], "level": str(getattr(config, "_workspace", None))}
            return b"ftrt" + json.dumps(facts).encode()

    class IExecutionContext:
        def __init__(self, engine: Any) -> None:
            self._addresses: dict[str, int] = {}

        @may_fail(False)
        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return True

        @may_fail(False)
        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self._shape = shape
            return True

        @may_fail(False)
        def execute_async_v3(self, stream: int) -> bool:
            batch, _, size, _ = self._shape
            crops = _at(self._addresses["crops"], self._shape)
            cells = size // 4
            logits = crops.reshape(batch, 3, cells, 4, cells, 4).mean((1, 3, 5)) / 64 - 2
            _at(self._addresses["logits"], logits.shape)[:] = logits
            _at(self._addresses["score"], (batch,))[:] = 1 / (1 + np.exp(-logits.mean((1, 2))))
            return True

    class IRuntimeConfig:
        def __init__(self) -> None:
            self.cuda_graph_strategy: Any = None

    class ICudaEngine:
        def __init__(self, facts: Any) -> None:
            self._profile = facts["profile"]
            size = self._profile[0][2]
            self._io = {
                "crops": (-1, 3, size, size),
                "logits": (-1, 1, size // 4, size // 4),
                facts.get("score", "score"): (-1,),
            }

        @property
        def num_io_tensors(self) -> int:
            return len(self._io)

        def get_tensor_name(self, index: int) -> str:
            return list(self._io)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return TensorIOMode.INPUT if name == "crops" else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.float32

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._io[name]

        def get_tensor_profile_shape(self, name: str, index: int) -> Any:
            return self._profile

        @may_fail(None)
        def create_execution_context(self, config: Any = None) -> Any:
            assert (config is not None) == rtx
            return IExecutionContext(self)

        if rtx:

            def create_runtime_config(self) -> Any:
                return IRuntimeConfig()

    class Runtime:
        def __init__(self, logger: Any) -> None: ...

        @may_fail(None)
        def deserialize_cuda_engine(self, content: bytes) -> Any:
            return ICudaEngine(json.loads(content[4:]))

    class IPluginRegistry:
        def __init__(self) -> None:
            self.all_creators: list[Any] = []

        def _names(self) -> set[str]:
            return {made.name for made in self.all_creators}

        @may_fail(None)
        def load_library(self, path: str) -> Any:
            assert Path(path).is_file()
            made = SimpleNamespace(name="CRFRefine", plugin_version="1", plugin_namespace="mal")
            self.all_creators.append(made)
            return made

        def deregister_library(self, handle: Any) -> None:
            self.all_creators.remove(handle)

    registry = IPluginRegistry()
    trt.get_plugin_registry = lambda: registry
    found = dict(locals())
    chosen = COMMON | (
        {"ComputeCapability", "CudaGraphStrategy", "IRuntimeConfig"} if rtx else {"HardwareCompatibilityLevel"}
    )
    for name in chosen:
        setattr(trt, name, found[name])
    return trt


def _at(address: int, shape: tuple[int, ...]) -> Any:
    return np.ctypeslib.as_array((ctypes.c_float * math.prod(shape)).from_address(address)).reshape(shape)


class HostMemory:
    """Device memory that is the host's: what a GPU would do happens at once, and is written down in `events`."""

    name = "fake-memory 1.0"

    def __init__(self, index: int, graphs: bool = True) -> None:
        self.events: list[str] = []
        self.graphs = graphs
        self.depth = 0

    @contextmanager
    def current(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def stream(self) -> Any:
        assert self.depth
        return object()

    def handle(self, stream: Any) -> int:
        return id(stream)

    def allocate(self, size: int) -> Block:
        assert self.depth
        memory = np.full(-(-size // 4), np.nan, np.float32)
        return Block(memory.ctypes.data, size, memory)

    def pinned(self, shape: tuple[int, ...]) -> Any:
        return np.full(shape, np.nan, np.float32)

    def upload(self, block: Block, array: Any, stream: Any) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= block.size
        ctypes.memmove(block.address, array.ctypes.data, array.nbytes)

    def copy(self, to: Block, block: Block, stream: Any) -> None:
        assert block.size <= to.size
        ctypes.memmove(to.address, block.address, block.size)

    def download(self, array: Any, block: Block, stream: Any) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= block.size
        ctypes.memmove(array.ctypes.data, block.address, array.nbytes)

    def wait(self, stream: Any) -> None:
        self.events.append("wait")

    def capture(self, stream: Any, work: Callable[[], None]) -> Callable[[], None] | None:
        if not self.graphs:
            return None
        self.events.append("capture")

        def launch() -> None:
            self.events.append("launch")
            work()

        return launch

    def view(self, array: Any, stream: Any) -> DeviceArray:
        told = array.__cuda_array_interface__
        return foreign_array(told["data"][0], told["shape"], told["strides"], told["typestr"], array)
