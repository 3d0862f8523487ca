from pathlib import Path

import numpy as np
import pytest
import torch

from mal.config import ModelConstants
from mal.errors import DeviceError, ModelFileError
from mal.network.checkpoint import save_student
from mal.network.deploy import DeployStudent
from mal.network.student import Student
from mal.runtime.session import open_session


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    constants = ModelConstants(backbone="mobilenetv2_035", size=64, threshold=0.3)
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_student(path, Student(constants), constants)
    return path


def test_a_checkpoint_runs_as_its_deployed_graph(checkpoint: Path, rng: np.random.Generator) -> None:
    from mal.network.checkpoint import load_student

    session = open_session(checkpoint, "cpu", threads=1)
    crops = rng.uniform(0, 255, (3, 3, 64, 64)).astype(np.float32)
    logits, scores = session.run(crops)
    with torch.inference_mode():
        expected, score = DeployStudent(*load_student(checkpoint)).eval()(torch.from_numpy(crops))
    np.testing.assert_allclose(logits, expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(scores, score, atol=1e-6)
    assert (session.device, session.constants.threshold) == ("cpu", 0.3)
    assert session.backend.startswith("torch ")


def test_a_damaged_checkpoint_is_a_model_file_error(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    for length in (0, 5, 100, len(whole) // 2):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            open_session(tmp_path / "cut.safetensors", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(DeviceError, match=r"cuda:0 was asked for and cannot be used: torch .* sees 0 GPUs"):
        open_session(checkpoint, "cuda")


def test_refines_like_the_exported_graph(tmp_path: Path, rng: np.random.Generator) -> None:
    """A checkpoint whose constants ask for refinement gives what its ONNX file gives."""
    pytest.importorskip("onnx")
    from mal.export.export import export_model
    from mal.export.request import ExportRequest

    torch.manual_seed(0)
    constants = ModelConstants(backbone="mobilenetv2_035", size=64, crf_iterations=3, crf_zeta=0.05)
    save_student(tmp_path / "student.safetensors", Student(constants), constants)
    export_model(ExportRequest(str(tmp_path / "student.safetensors"), output=tmp_path / "student.onnx"))
    crops = rng.uniform(0, 255, (3, 3, 64, 64)).astype(np.float32)
    expected, _ = open_session(tmp_path / "student.onnx", "cpu").run(crops)
    refined, _ = open_session(tmp_path / "student.safetensors", "cpu").run(crops)
    np.testing.assert_allclose(refined, expected, atol=1e-4)
    assert np.abs(expected).max() <= np.log(9) + 1e-5  # refined at all: the state is clamped there
