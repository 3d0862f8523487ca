"""A machine with one GPU and a TensorRT, both fake, and an engine for it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import HostMemory, make_tensorrt
from tensorrt_parts import SIZE, constants, tiny_model

from mal.export import engine_from_onnx, plan_cache, rebuild
from mal.export.engine_from_onnx import build_engine
from mal.export.engine_options import EngineOptions, Profile
from mal.export.manifest import dump, make_manifest
from mal.runtime import tensorrt_package, tensorrt_session
from mal.runtime.machine import Gpu
from mal.runtime.plan_file import manifest_path

H200, RTX4090, T4 = Gpu(0, "NVIDIA H200", 90), Gpu(0, "RTX 4090", 89), Gpu(0, "Tesla T4", 75)


class Bench:
    """A machine with one GPU and a TensorRT, both fake, and an engine for it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan = folder / "m.plan"
        self.memory = HostMemory(0)
        self._patch = monkeypatch
        monkeypatch.setattr(plan_cache, "cache_folder", lambda: folder / "cache")
        monkeypatch.setattr(tensorrt_package, "_pin", lambda library: library)
        monkeypatch.setattr(tensorrt_session, "open_memory", lambda index: self.memory)
        monkeypatch.setattr(tensorrt_session, "_crop_kernel", lambda plugin: None)  # no GPU would run it
        self.install(make_tensorrt())
        self.see(H200)
        self.write(tiny_model(refine=0).SerializeToString())

    def install(self, trt: Any) -> None:
        self.trt = trt
        self._patch.setitem(sys.modules, trt.__name__, trt)
        tensorrt_package._lent.pop(trt.__name__, None)

    def see(self, *gpus: Gpu) -> None:
        for module in (engine_from_onnx, rebuild, tensorrt_session):
            self._patch.setattr(module, "gpus", lambda: gpus)

    def write(self, onnx: bytes, plugin: Path | None = None, **options: Any) -> None:
        """Export without the gate."""
        engine = build_engine(
            onnx, package=self.trt.__name__, options=EngineOptions(**{"profile": Profile(1, 4, 8), **options}),
            plugin=plugin,
        )  # fmt: skip
        self.plan.with_suffix(".onnx").write_bytes(onnx)
        self.plan.write_bytes(engine.plan)
        about = make_manifest(
            engine.plan, constants(0), target="tensorrt", precision="fp32", source=self.plan, parity={}
        )
        manifest_path(self.plan).write_bytes(dump(about | {"engine": engine.to_json("m.onnx")}))

    def edit(self, **engine: Any) -> None:
        manifest = json.loads(manifest_path(self.plan).read_text())
        manifest["engine"] |= engine
        manifest_path(self.plan).write_text(json.dumps(manifest))


def crops(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (count, 3, SIZE, SIZE)).astype(np.float32)


def expected(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), 3, SIZE // 4, 4, SIZE // 4, 4).mean((1, 3, 5)) / 64 - 2
