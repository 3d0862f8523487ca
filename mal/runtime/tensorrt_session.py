"""A session on a TensorRT engine: TensorRT 10.9 and later, 11.x, TensorRT-RTX.

model.plan ─► manifest and sha256 ─► this TensorRT? ─► this chip? ─► engine ─┬─► lane  context, stream, memory, graph
                                                                             └─► lane  ... so that one batch is copied
                                                                                       while the other is computed
"""

import ctypes
import math
import queue
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.errors import DeviceError, EngineError, ModelFileError, ShapeError, UsageError
from mal.plugins import cuda_library
from mal.runtime.device_crops import CropCutter, Crops, DeviceCrops
from mal.runtime.device_memory import Block, DeviceArray, DeviceMemory, is_device_array, open_memory
from mal.runtime.machine import Gpu, gpus
from mal.runtime.plan_file import Plan, check_file, read_plan
from mal.runtime.session import Wish, check_crops, check_device
from mal.runtime.tensorrt_package import first_line, load_tensorrt, logger_of, plugin_registered

Floats = NDArray[np.float32]

LANES = 2


class TensorRTSession:
    """See `mal.runtime.session.Session`."""

    lanes = LANES

    def __init__(self, path: Path, device: str | None, threads: int, trust: bool = False) -> None:
        plan = read_plan(path, trust)  # before anything else is looked for
        self.constants, self.model_id, self.threads = plan.constants, plan.model_id, threads
        self._trt: Any = load_tensorrt(plan.facts.package)
        _check_version(plan, self._trt)
        gpu = _choose(device)
        _check_chip(plan, gpu)
        self.device = f"cuda:{gpu.index}"
        self._held = ExitStack()
        self._engine: Any = None
        plugin = _plugin(plan)
        try:
            self._memory = open_memory(gpu.index)
            with self._memory.current():
                self._held.enter_context(plugin_registered(self._trt, plugin))
                self._engine = self._deserialize(plan)
                self._sizes = _Sizes(self._trt, self._engine, plan)
                lanes = [_Lane(self._trt, self._engine, self._memory, self._sizes) for _ in range(LANES)]
                launch = [lane.warm_up() for lane in lanes][-1]
        except BaseException:
            self._engine = lanes = None
            self._held.close()
            raise
        self.auto_batch = self._sizes.best
        where = "crops cut on the host (`mal plugins build` with nvcc: on the GPU)"
        self._cutter: CropCutter | None = None
        if library := _crop_kernel(plugin):
            self._cutter = CropCutter(library, self._memory, self.constants.size, self.constants.fill)
            where = "crops cut on the GPU"
        self.backend = f"{self._trt.__name__} {self._trt.__version__}, {launch}, {self._memory.name}, {where}"
        self._free: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for lane in lanes:
            self._free.put(lane)

    def run(self, crops: Crops) -> tuple[Floats, Floats]:
        """See `Session.run`."""
        if not isinstance(crops, DeviceCrops):
            check_crops(crops, self.constants.size)
        self._check_count(len(crops), 1)
        lane = self._free.get()
        try:
            with self._memory.current():
                return lane.run(crops)
        finally:
            self._free.put(lane)

    def run_on_device(self, crops: object) -> tuple[DeviceArray, DeviceArray]:
        """As `run`, without a copy: crops on this GPU in, logits (B, h, w) and scores (B,) on this GPU out.

        Args:
            crops: contiguous float32 (B, 3, S, S) by DLPack or __cuda_array_interface__.

        Raises:
            ShapeError: another kind of array.
            UsageError: B is outside the engine's profile.
        """
        if not is_device_array(crops):
            raise ShapeError(f"expected crops on the GPU, got {type(crops).__name__}; `run` takes those of the host")
        lane = self._free.get()
        try:
            with self._memory.current():
                view = self._memory.view(crops, lane.stream)
                if len(view.shape) != 4 or view.shape[1:] != self._sizes.crop or not view.shape[0]:
                    raise ShapeError(f"crops must be (B, {', '.join(map(str, self._sizes.crop))}), got {view.shape}")
                self._check_count(view.shape[0], self._sizes.least)
                return lane.run_on_device(view)
        finally:
            self._free.put(lane)

    def allocate(self, batch: int) -> Crops:
        """See `Session.allocate`: memory of the GPU; without our CUDA library, such as it copies from by itself."""
        if self._cutter:
            return self._cutter.allocate(batch)
        with self._memory.current():
            return self._memory.pinned((batch, *self._sizes.crop))

    def close(self) -> None:
        """See `Session.close`."""
        with self._memory.current():
            while not self._free.empty():  # contexts go before the engine, the engine before the plugin
                self._free.get()
            self._engine = None
            self._held.close()

    def _deserialize(self, plan: Plan) -> Any:
        log = logger_of(self._trt)
        log.errors.clear()
        runtime = self._trt.Runtime(log)
        engine = runtime.deserialize_cuda_engine(plan.content) if runtime else None
        if engine is None:
            raise EngineError(f"{plan.path}: {plan.facts.package} cannot load it: {log.quote()}; {_again(plan)}")
        return engine

    def _check_count(self, count: int, least: int) -> None:
        sizes = self._sizes
        if not least <= count <= sizes.most:
            raise UsageError(
                f"a batch of {count} crops is outside the engine's profile {sizes.least}:{sizes.best}:{sizes.most}; "
                f"use --batch {sizes.most} or less, or export it with another --profile"
            )


class _Sizes:
    """Shapes that an engine takes and gives, after checking that they are those of a model of ours."""

    def __init__(self, trt: Any, engine: Any, plan: Plan) -> None:
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        inputs = {name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        size = plan.constants.size
        logits = found.get("logits", ())
        if (
            inputs != {"crops"}
            or found["crops"] != (-1, 3, size, size)
            or found.get("score") != (-1,)
            or (len(logits), *logits[:2]) != (4, -1, 1)
            or any(engine.get_tensor_dtype(name) != trt.float32 for name in names)
        ):
            raise ModelFileError(
                f"{plan.path} takes and gives {found}; expected float32 crops (-1, 3, {size}, {size}) -> logits "
                "(-1, 1, h, w) and score (-1): build it with `mal export`"
            )
        self.crop = (3, size, size)
        self.logits: tuple[int, ...] = logits[2:]
        profile = engine.get_tensor_profile_shape("crops", 0)
        self.least, self.best, self.most = (int(next(iter(shape))) for shape in profile)


class _Lane:
    """One batch in flight: a context, a stream, and memory for the largest batch that the profile allows."""

    def __init__(self, trt: Any, engine: Any, memory: DeviceMemory, sizes: _Sizes) -> None:
        self._trt, self._memory, self._sizes = trt, memory, sizes
        self.stream = memory.stream()
        self._graphs = not hasattr(trt, "CudaGraphStrategy")  # TensorRT-RTX makes its own
        self._context = self._make_context(engine)
        shapes = self._shapes(sizes.most)
        self._crops, self._logits, self._score = (memory.allocate(4 * math.prod(shape)) for shape in shapes)
        _, logits, score = shapes
        self._host_logits, self._host_score = memory.pinned(logits), memory.pinned(score)
        self._bind(self._crops, self._logits, self._score)

    def warm_up(self) -> str:
        """Run the batch that the engine is best at, and find out how it can be launched."""
        self.run(np.zeros((self._sizes.best, *self._sizes.crop), np.float32))
        if not self._graphs:
            return "its own CUDA graphs"
        try:
            self._launch = self._memory.capture(self.stream, self._enqueue)
        except Exception as error:  # of the CUDA library; some layers cannot be captured
            self._graphs = False
            return f"no CUDA graph ({first_line(error)})"
        self._graphs = self._launch is not None
        return "CUDA graph" if self._graphs else "no CUDA graph"

    def run(self, crops: Crops) -> tuple[Floats, Floats]:
        """Answers on the host; B from 1 to the profile's most. What an engine wants beyond B are crops from before."""
        given, count = len(crops), max(len(crops), self._sizes.least)
        logits, score = self._host_logits[:count], self._host_score[:count]
        if isinstance(crops, DeviceCrops):  # to where the CUDA graph reads; the caller cuts others meanwhile
            self._memory.copy(self._crops, crops.block, self.stream)
        else:
            self._memory.upload(self._crops, np.ascontiguousarray(crops), self.stream)
        self._execute(count)
        self._memory.download(logits, self._logits, self.stream)
        self._memory.download(score, self._score, self.stream)
        self._memory.wait(self.stream)
        return logits[:given].copy(), score[:given].copy()

    def run_on_device(self, crops: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        """Device to device; the results are memory of their own."""
        _, *shapes = self._shapes(crops.shape[0])
        logits, score = (DeviceArray(self._memory.allocate(4 * math.prod(shape)), shape) for shape in shapes)
        self._bind(crops.block, logits.block, score.block)
        try:
            self._set_count(crops.shape[0])
            self._enqueue()
            self._memory.wait(self.stream)
        finally:
            self._bind(self._crops, self._logits, self._score)
        return logits, score

    def _make_context(self, engine: Any) -> Any:
        if self._graphs:
            context = engine.create_execution_context()
        else:
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        if context is None:
            raise self._failed("make a context, its memory may be too much for this GPU")
        return context

    def _shapes(self, count: int) -> tuple[tuple[int, ...], ...]:
        return (count, *self._sizes.crop), (count, *self._sizes.logits), (count,)

    def _bind(self, crops: Block, logits: Block, score: Block) -> None:
        """Where inputs are read and outputs written from now on; a graph remembers other places and is forgotten."""
        for name, block in (("crops", crops), ("logits", logits), ("score", score)):
            if not self._context.set_tensor_address(name, block.address):
                raise self._failed(f"take memory for {name}")
        self._launch: Callable[[], None] | None = None
        self._count = 0

    def _set_count(self, count: int) -> None:
        self._launch, self._count = None, 0  # a graph is of one shape
        if not self._context.set_input_shape("crops", (count, *self._sizes.crop)):
            raise self._failed(f"take {count} crops")
        self._count = count

    def _execute(self, count: int) -> None:
        if count != self._count:
            self._set_count(count)
            self._enqueue()  # TensorRT prepares a new shape here; only then can it be captured
        elif self._graphs:
            self._launch = self._launch or self._memory.capture(self.stream, self._enqueue)
            assert self._launch is not None  # this memory has captured before
            self._launch()
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._memory.handle(self.stream)):
            raise self._failed("run")

    def _failed(self, what: str) -> EngineError:
        return EngineError(f"{self._trt.__name__} cannot {what}: {logger_of(self._trt).quote()}")


def _choose(device: str | None) -> Gpu:
    wish = check_device(device) or Wish("cuda", 0)
    if device == "cpu":
        raise DeviceError("device cpu was asked for, and an engine (.plan) runs on a GPU: use the .onnx beside it")
    seen = gpus()
    if wish.number < len(seen):
        return seen[wish.number]
    if device is None:
        raise DeviceError("an engine (.plan) runs on a GPU, and the driver sees none: use the .onnx beside it")
    raise DeviceError(
        f"device {wish} was asked for and cannot be used: the driver sees {len(seen)} GPUs; the .onnx beside the "
        "engine runs without one"
    )


def _check_version(plan: Plan, trt: Any) -> None:
    facts = plan.facts
    if facts.version and facts.version != trt.__version__:
        raise EngineError(
            f"{plan.path} was built by {facts.tensorrt}, and here is {facts.package} {trt.__version__}: {_again(plan)}"
        )


def _check_chip(plan: Plan, gpu: Gpu) -> None:
    built, here = plan.facts.compute_capabilities, gpu.compute_capability
    fits = here in built or (plan.facts.hardware_compatible and built and here >= min(built))
    if built and not fits:
        chips = ", ".join(map(str, built))
        made_on = f" on {plan.facts.chip}" if plan.facts.chip else ""
        raise EngineError(
            f"{plan.path} was built{made_on} for compute capability {chips}, and {gpu.name} has {here}: {_again(plan)}"
        )


def _again(plan: Plan) -> str:
    if plan.onnx.is_file():
        return f"build it again here from {plan.onnx.name}: the same command with --rebuild does it"
    return f"build it again here: copy {plan.onnx.name} beside it and use --rebuild, or run `mal export` here"


def _plugin(plan: Plan) -> Path | None:
    """The library with our plugin, as it came with the engine."""
    if plan.facts.plugin is None:
        return None
    library = plan.path.with_name(plan.facts.plugin)
    check_file(library, plan.facts.plugin_sha256, "plugin")
    return library


def _crop_kernel(plugin: Path | None) -> ctypes.CDLL | None:
    """The library that cuts crops: the one that came with the engine, else this machine's; None: there is neither."""
    if plugin:
        library = ctypes.CDLL(str(plugin))
        if hasattr(library, "mal_cut_crops_cuda"):
            return cuda_library.declare_crops(library)
    return cuda_library.load() if cuda_library.available() else None
