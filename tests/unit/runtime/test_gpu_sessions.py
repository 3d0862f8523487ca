"""Every session that this machine's GPU can have answers like the one on the CPU."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.crops import cut_crops, to_input
from mal.errors import DeviceError, MissingPackageError
from mal.export.gate_crops import gate_crops
from mal.images import Picture
from mal.runtime.device_memory import DeviceArray
from mal.runtime.session import open_session

pytestmark = pytest.mark.gpu


def same_masks(session: Any, logits: np.ndarray, truth: np.ndarray) -> None:
    ours, theirs = logits > 0, truth > 0
    union = (ours | theirs).sum((1, 2))
    iou = np.where(union > 0, (ours & theirs).sum((1, 2)) / np.maximum(union, 1), 1.0)
    assert iou.mean() >= 0.995, session.backend


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, np.ndarray]:
    with closing(open_session("student", "cpu")) as session:
        crops = gate_crops(session.constants)
        return crops, session.run(crops)[0]


def student() -> Path:
    from mal.export.source import find_source

    return find_source(None)


def test_torch(truth: tuple[np.ndarray, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    crops, expected = truth
    with closing(open_session(student(), "cuda")) as session:
        assert "float16, compiled" in session.backend, session.backend
        for count in (1, 2, 7, len(crops)):
            same_masks(session, session.run(crops[:count])[0], expected[:count])
        logits, scores = session.run_on_device(torch.from_numpy(crops).cuda())  # type: ignore[attr-defined]
        assert logits.is_cuda
        assert scores.is_cuda
        same_masks(session, logits.cpu().numpy(), expected)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_onnxruntime(truth: tuple[np.ndarray, np.ndarray], provider: str) -> None:
    crops, expected = truth
    try:
        session = open_session("student", provider)
    except DeviceError as missing:
        pytest.skip(str(missing))
    with closing(session):
        for count in (4, 4, 3):
            same_masks(session, session.run(crops[:count])[0], expected[:count])


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_engines(truth: tuple[np.ndarray, np.ndarray], target: str, tmp_path: Path) -> None:
    from mal.export.engine_options import EngineOptions
    from mal.export.export import export_model
    from mal.export.request import ExportRequest
    from mal.runtime.machine import gpus

    crops, expected = truth
    options = EngineOptions(compute_capabilities=(gpus()[0].compute_capability,) if target == "tensorrt-rtx" else None)
    try:
        export_model(ExportRequest(precision="fp16", target=target, output=tmp_path / "m.plan", engine=options))
    except MissingPackageError as missing:
        pytest.skip(str(missing))
    with closing(open_session(tmp_path / "m.plan")) as session:
        assert "CUDA graph" in session.backend
        for count in (1, 4, 4, 4, 3, len(crops)):
            same_masks(session, session.run(crops[:count])[0], expected[:count])
        torch = pytest.importorskip("torch")
        logits, _ = session.run_on_device(torch.from_numpy(crops).cuda())  # type: ignore[attr-defined]
        same_masks(session, torch.as_tensor(logits, device="cuda").cpu().numpy(), expected)
        cut_on_the_gpu(session)


def cut_on_the_gpu(session: Any) -> None:
    """The engine's own crops against those of the host, of one photograph."""
    assert "crops cut on the GPU" in session.backend, session.backend
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 80, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    rects = rng.uniform([-50, -50, 100, 100], [90, 90, 700, 530], (70, 4))
    size, fill = session.constants.size, session.constants.fill
    room = session.allocate(len(rects))
    room.cut(Picture(image, 640, 480), rects)
    torch = pytest.importorskip("torch")
    view = DeviceArray(room.block, room.shape)
    found = torch.as_tensor(view, device="cuda").cpu().numpy()
    assert np.abs(found - to_input(cut_crops(image, rects, size, fill))).max() <= 1
    same_masks(session, session.run(room[:64])[0], session.run(found[:64])[0])
