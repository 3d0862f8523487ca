"""Bodies of `mal::CRFRefine` behind one signature, and scenes to hold them against the judge."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mal.plugins.crf_refine import compiled, reference

Floats = NDArray[np.float32]
Body = Callable[[Floats, Floats, Floats, int, float], Floats]


class Scene(NamedTuple):
    logits: Floats
    guide: Floats
    inside: Floats


def find_body(name: str) -> Body:
    """judge, torch, kernel or onnx; skips the test where a body cannot be had."""
    return {"judge": lambda: reference.crf_refine, "torch": _torch, "kernel": _kernel, "onnx": _onnx}[name]()


def smooth_scene(rng: np.random.Generator, batch: int, height: int, width: int) -> Scene:
    """Blobs of colour under blobs of opinion, and a box with soft edges."""

    def blobs(channels: int, width_of_blob: float) -> Floats:
        noise = rng.normal(size=(batch * channels, height, width)).astype(np.float32)
        maps = np.stack([cv2.GaussianBlur(plane, (0, 0), width_of_blob) for plane in noise])
        return (maps / (maps.std() + 1e-6)).reshape(batch, channels, height, width)

    edge = np.zeros((1, 1, height, width), np.float32)
    edge[..., height // 8 : height - height // 8, width // 8 : width - width // 8] = 1
    edge[..., height // 8, :] *= 0.4
    edge[..., :, width // 8] *= 0.7
    return Scene(3 * blobs(1, 3.0), blobs(3, 2.0), edge)


def _torch() -> Body:
    torch = pytest.importorskip("torch", reason="the torch body needs torch")
    from mal.plugins.crf_refine import torch_body

    def run(logits: Floats, guide: Floats, inside: Floats, iterations: int, zeta: float) -> Floats:
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (logits, guide, inside)]
        return torch_body.crf_refine_torch(*tensors, iterations, zeta).numpy()

    return run


def _kernel() -> Body:
    if not compiled.available():
        pytest.skip("the kernel needs a C++ compiler")
    return compiled.crf_refine


def _onnx() -> Body:
    pytest.importorskip("onnx", reason="the ONNX function needs onnx")
    pytest.importorskip("onnxruntime", reason="the ONNX function needs a runtime")

    def run(logits: Floats, guide: Floats, inside: Floats, iterations: int, zeta: float) -> Floats:
        session = _onnx_session(iterations, zeta)
        return session.run(None, {"logits": logits, "guide": guide, "inside": inside})[0]

    return run


@cache
def _onnx_session(iterations: int, zeta: float):
    import onnxruntime
    from onnx import TensorProto, checker, helper

    from mal.plugins.crf_refine.onnx_function import crf_function, crf_node

    def value(name: str, channels: int, batch: str = "B"):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels, "h", "w"])

    graph = helper.make_graph(
        [crf_node("logits", "guide", "inside", "refined", iterations, zeta)],
        "crf",
        [value("logits", 1), value("guide", 3), value("inside", 1, "I")],
        [value("refined", 1)],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("mal", 1)]
    model = helper.make_model(graph, opset_imports=domains, functions=[crf_function()], ir_version=10)
    checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
