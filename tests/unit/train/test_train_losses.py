import torch
from hypothesis import given
from hypothesis import strategies as st

from mal.train import losses

SIZE = 16
BOX = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def inside(rect: torch.Tensor) -> torch.Tensor:
    return losses.area_map(rect, SIZE)


def test_dice_worked_by_hand() -> None:
    """2 * 0.5 / (0.25 + 1) = 0.8."""
    distance = losses.dice(torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 0.0]]))
    assert torch.allclose(distance, torch.tensor([0.2]), atol=1e-3)


def test_nothing_expected_and_nothing_found_costs_nothing() -> None:
    assert losses.dice(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_mil_is_content_with_any_mask_that_reaches_all_four_sides() -> None:
    cross = torch.zeros(1, 1, SIZE, SIZE)
    cross[..., 4:12, 7], cross[..., 7, 4:12] = 1, 1
    assert losses.mil(cross, BOX, WHOLE).item() < 1e-3


def test_mil_minds_what_leaves_the_box_and_what_does_not_fill_it() -> None:
    full = inside(BOX)
    small, large = inside(BOX * 0.5 + 0.25), inside(WHOLE)
    assert losses.mil(full, BOX, WHOLE) < 0.01 < losses.mil(small, BOX, WHOLE)
    assert losses.mil(large, BOX, WHOLE) > 0.1


def test_what_was_filled_in_outside_the_image_is_no_background_evidence() -> None:
    """Upstream's periodic fill put object there and called it the box's; here it counts nothing."""
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
    valid = torch.tensor([[0.0, 0.25, 1.0, 1.0]])  # the image begins where the box does
    mask = inside(box)
    spilled = mask.clone()
    spilled[..., :4, :] = 1
    assert torch.equal(losses.mil(mask, box, valid), losses.mil(spilled, box, valid))


@given(st.floats(0, 0.6), st.floats(0.05, 0.4), st.floats(0, 0.6), st.floats(0.05, 0.4))
def test_coverage_sums_to_the_area(x: float, width: float, y: float, height: float) -> None:
    rect = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float64)
    assert torch.allclose(losses.area_map(rect, SIZE).sum() / SIZE**2, torch.tensor(width * height).double(), atol=1e-6)


def test_unknown_cells_and_untrusted_samples_have_no_gradient() -> None:
    logits = torch.zeros(2, 1, 4, 4, requires_grad=True)
    known = torch.zeros(2, 1, 4, 4)
    known[:, :, :2] = 1
    losses.label_loss(logits, torch.ones(2, 1, 4, 4), known, torch.tensor([1.0, 0.0])).backward()
    assert logits.grad is not None
    assert (logits.grad[0, :, :2] != 0).all()
    assert (logits.grad[0, :, 2:] == 0).all()
    assert (logits.grad[1] == 0).all()


def test_no_trusted_label_in_the_batch_is_no_nan() -> None:
    loss = losses.label_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), torch.zeros(1))
    assert loss.item() == 0


def test_crf_target_follows_the_colours() -> None:
    """A blob that is too small grows to the edge of its colour, and no gradient comes back."""
    guide = torch.zeros(1, 3, SIZE, SIZE)
    guide[..., 4:12, 4:12] = 2.0
    p = torch.full((1, 1, SIZE, SIZE), 0.3)
    p[..., 5:11, 5:11] = 0.9
    p.requires_grad_(True)
    target = losses.crf_target(p, p, guide, inside(WHOLE), 40, 0.1)
    assert not target.requires_grad
    assert target.sum() == 64
    assert (target[..., 4:12, 4:12] == 1).all()
