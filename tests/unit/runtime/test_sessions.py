import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest

from mal.config import ModelConstants
from mal.errors import DeviceError, MissingPackageError, ModelFileError, ShapeError, UsageError
from mal.runtime.onnx_file import read_metadata
from mal.runtime.session import open_session, resolve_model

MakeModel = Callable[..., Path]
OURS = ModelConstants(backbone="none", size=32).to_metadata()


def crops(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 255, (count, 3, 32, 32)).astype(np.float32)


def test_run_gives_logits_and_scores_by_the_contract(model: Path, rng: np.random.Generator) -> None:
    session = open_session(model, "cpu", threads=1)
    batch = crops(5, rng)
    logits, scores = session.run(batch)
    expected = batch.reshape(5, 3, 8, 4, 8, 4).mean((1, 3, 5)) / 64 - 2
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected.mean((1, 2)))), atol=1e-6)
    assert (session.device, session.constants.size, len(session.model_id)) == ("cpu", 32, 12)
    assert session.backend.startswith("onnxruntime ")


def test_masks_do_not_depend_on_the_number_of_threads(model: Path, rng: np.random.Generator) -> None:
    batch = crops(16, rng)
    one, four = (open_session(model, "cpu", threads=threads).run(batch)[0] for threads in (1, 4))
    assert (one == four).all()


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (2, 3, 32, 31), (3, 32, 32)])
def test_crops_of_another_shape_are_refused(model: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"float32 \(B, 3, 32, 32\), got float32"):
        open_session(model, "cpu").run(np.zeros(shape, np.float32))


def test_every_truncation_is_a_model_file_error(model: Path) -> None:
    whole = model.read_bytes()
    for length in [0, 1, 10, *range(20, len(whole), 37), len(whole) - 1]:
        model.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            open_session(model, "cpu")


def test_every_flipped_byte_is_refused_or_harmless(model: Path, rng: np.random.Generator) -> None:
    whole = model.read_bytes()
    for at in rng.integers(0, len(whole), 60):
        model.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with suppress(ModelFileError):  # nothing else may come out
            open_session(model, "cpu").close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {}}, "not a model of mal"),
        ({"metadata": {**OURS, "mal.size": '"x"'}}, "damaged model constants: size: .*, got 'x'; export it again"),
        ({"metadata": {**OURS, "mal.size": "{"}}, "damaged model constants: .*; export it again"),
        ({"crops": "images"}, r"expected float crops \(B, 3, 32, 32\)"),
        ({"score": "confidence"}, "expected float crops"),
        ({"batch": 4}, "its batch must be free"),
    ],
)
def test_models_of_others_are_refused(make_model: MakeModel, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        open_session(make_model(**changes), "cpu")


@pytest.mark.parametrize("content", [b"hello, world, this is no model", b"\x89PNG\r\n\x1a\n" + bytes(50), b"{}"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"x\.onnx"):
        open_session(tmp_path / "x.onnx", "cpu")


def test_external_data_is_refused_wherever_it_hides(model: Path, tmp_path: Path) -> None:
    loaded = onnx.load(model)
    onnx.save(loaded, tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(ModelFileError, match="keeps weights in other files"):
        open_session(tmp_path / "outside.onnx", "cpu")

    inner = onnx.load(model)
    node = onnx.helper.make_node("Constant", [], ["secret"], value=inner.graph.initializer[0])
    node.attribute[0].t.data_location = onnx.TensorProto.EXTERNAL
    inner.graph.node.append(node)
    with pytest.raises(ModelFileError, match="keeps weights in other files"):
        read_metadata(inner.SerializeToString(), "inner")


def test_missing_models_and_other_kinds_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"does not exist; expected a \.onnx, \.plan or \.safetensors file"):
        resolve_model(tmp_path / "no.onnx")
    with pytest.raises(ModelFileError, match="is a folder"):
        resolve_model(tmp_path)
    with pytest.raises(ModelFileError, match="name too long"):
        resolve_model(tmp_path / ("x" * 300))
    for suffix, message in ((".plan", "has no manifest"), (".pt", re.escape("got '.pt'")), ("", "got 'no suffix'")):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(b"x")
        with pytest.raises(ModelFileError, match=message):
            open_session(path)


def test_a_device_that_is_not_there_is_an_error(model: Path) -> None:
    with pytest.raises(DeviceError, match="cuda:7 was asked for and cannot be used"):
        open_session(model, "cuda:7")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:\u00b2", ""])
def test_an_unknown_device_is_wrong_usage(model: Path, device: str) -> None:
    with pytest.raises(UsageError, match="expected cpu, cuda or cuda:0"):
        open_session(model, device)


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("x.onnx", "onnxruntime", "cpu"), ("x.safetensors", "torch", "train")]
)
def test_a_missing_backend_names_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("onnx_session", "torch_session"):
        monkeypatch.delitem(sys.modules, f"mal.runtime.{module}", raising=False)
    with pytest.raises(MissingPackageError, match=re.escape(f'pip install "mask-auto-labeler[{extra}]"')):
        open_session(tmp_path / name)
