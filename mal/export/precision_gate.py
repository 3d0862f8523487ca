"""The gate of lower precision: how much of the masks FP16 or INT8 costs, by object size, and how much it may."""

from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mal.calibration.crops import SIZES
from mal.datasets.segmentations import to_mask
from mal.errors import ParityError
from mal.export.gate_crops import GateCrops
from mal.export.parity import Floats, Model, Parity, answers, sigmoid
from mal.export.refinement import box_coverage
from mal.masks import mask_from_logits

NEAR = 0.5
"""A logit nearer to zero than this is an undecided cell: its probability lies in .38 .. .62."""


@dataclass(frozen=True)
class Budget:
    """What a precision may cost against FP32. Source: issue 5, point 3."""

    mean_iou: float  # least mean mask-IoU
    size_iou: float  # ... of each size of objects
    miou_loss: float  # most mIoU with true masks, where there are any


BUDGETS = {"fp16": Budget(0.995, 0.0, 0.001), "int8": Budget(0.97, 0.95, 0.005)}


@dataclass(frozen=True)
class Agreement:
    """How far two models are apart on some crops; masks in the model's cells, in the box."""

    crops: int
    max_probability: float  # largest |difference| of a probability
    max_score: float  # ... of a score
    mean_iou: float
    iou_05: float  # 5 % of the crops are below
    worst_iou: float
    cells: int
    cells_differ: int  # on different sides of the boundary
    cells_near: int  # undecided ones: FP32 logit within NEAR of zero
    cells_near_differ: int

    @property
    def near_share(self) -> float:
        """Share of the undecided cells that changed sides."""
        return self.cells_near_differ / max(1, self.cells_near)


@dataclass(frozen=True)
class PrecisionParity:
    """How far a model of lower precision is from the FP32 model, and whether it may be."""

    precision: str
    budget: Budget
    all: Agreement
    sizes: dict[str, Agreement]
    true_objects: int  # crops with a true mask
    miou_fp32: float | None  # object mean at image resolution, None without true masks
    miou: float | None

    @property
    def miou_loss(self) -> float | None:
        """mIoU with the true masks that the precision costs."""
        return None if self.miou is None or self.miou_fp32 is None else self.miou_fp32 - self.miou

    def problems(self) -> list[str]:
        """What is beyond the budget; empty: nothing."""
        found: list[str] = []
        if not self.all.mean_iou >= self.budget.mean_iou:
            found.append(f"mean mask-IoU {self.all.mean_iou:.4f} < {self.budget.mean_iou}")
        for name, part in self.sizes.items():
            if not part.mean_iou >= self.budget.size_iou:
                found.append(f"{name} objects {part.mean_iou:.4f} < {self.budget.size_iou}")
        if self.miou_loss is not None and not self.miou_loss <= self.budget.miou_loss:
            found.append(f"mIoU with true masks falls by {self.miou_loss:.4f} > {self.budget.miou_loss}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {
            **asdict(self.all),
            "sizes": {name: asdict(part) for name, part in self.sizes.items()},
            "true_objects": self.true_objects,
            "miou_fp32": self.miou_fp32,
            "miou": self.miou,
            "miou_loss": self.miou_loss,
            "budget": asdict(self.budget),
        }

    def text(self, network: Parity | None = None) -> str:
        """The table; with `network`, a first line for ONNX in FP32 against what it was exported from."""
        table = Table(box=None, pad_edge=False, header_style="")
        heads = ("crops", "max|dp|", "max|dscore|", "mask-IoU", "5 %", "worst", "flipped", "of undecided")
        for head in ("", *heads):
            table.add_column(head, justify="right" if head else "left", no_wrap=True)
        if network:
            figures = f"{network.max_probability:.1e}", f"{network.max_score:.1e}", "", "", ""
            table.add_row(
                "onnx fp32 / source", str(network.crops), *figures, f"{network.cells_differ / network.cells:.4%}"
            )
        for name, part in {f"onnx {self.precision} / fp32": self.all, **self.sizes}.items():
            table.add_row(
                name if part is self.all else f"  {name}",
                str(part.crops),
                f"{part.max_probability:.1e}",
                f"{part.max_score:.1e}",
                *(f"{value:.4f}" for value in (part.mean_iou, part.iou_05, part.worst_iou)),
                f"{part.cells_differ / part.cells:.4%}",
                f"{part.near_share:.2%}",
            )
        console = Console(file=StringIO(), width=120, color_system=None)
        console.print(table)
        lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # pyright: ignore[reportAttributeAccessIssue]
        if self.miou_loss is not None:
            lines.append(
                f"with {self.true_objects} true masks: mIoU {self.miou_fp32:.4f} fp32, "
                f"{self.miou:.4f} {self.precision}, loss {self.miou_loss:+.4f}"
            )
        least = f", each size >= {self.budget.size_iou}" if self.budget.size_iou else ""
        lines.append(
            f"budget: mask-IoU >= {self.budget.mean_iou}{least}, mIoU with true masks - {self.budget.miou_loss} at most"
        )
        return "\n".join(lines)


def compare_precision(
    candidate: Model, truth: Model, gate: GateCrops, expansion: float, precision: str
) -> PrecisionParity:
    """Hold a model of lower precision against the FP32 model.

    Args:
        candidate: what is to be written.
        truth: the FP32 model with the same refinement.
        gate: crops that no range was measured on.
        expansion: of the model; only masks in the box count.
        precision: a key of `BUDGETS`.

    Raises:
        ParityError: the candidate's values are not finite.
    """
    ours, theirs = answers(candidate, gate.pixels), answers(truth, gate.pixels)
    if not (np.isfinite(ours[0]).all() and np.isfinite(ours[1]).all()):
        raise ParityError(f"the model overflows in {precision}; export it without --{precision}. Nothing was written")
    sizes = {
        name: _agreement(ours, theirs, gate.size == index, expansion)
        for index, name in enumerate(SIZES)
        if (gate.size == index).any()
    }
    everything = _agreement(ours, theirs, np.ones(len(gate.size), np.bool_), expansion)
    known = [row for row, mask in enumerate(gate.truth) if mask is not None]
    return PrecisionParity(
        precision,
        BUDGETS[precision],
        everything,
        sizes,
        len(known),
        _miou(theirs[0], gate, known, expansion),
        _miou(ours[0], gate, known, expansion),
    )


def mask_iou(logits: Floats, true_logits: Floats, expansion: float) -> NDArray[np.float64]:
    """(N,) IoU of the masks of (N, 1, h, w) logits, in cells of the box; two empty masks agree."""
    in_box = box_coverage(expansion, *logits.shape[2:]) > 0
    ours, theirs = (logits > 0) & in_box, (true_logits > 0) & in_box
    union = (ours | theirs).sum((1, 2, 3))
    return np.where(union > 0, (ours & theirs).sum((1, 2, 3)) / np.maximum(union, 1), 1.0)


def _agreement(
    ours: tuple[Floats, Floats], theirs: tuple[Floats, Floats], chosen: NDArray[np.bool_], expansion: float
) -> Agreement:
    logits, true_logits = ours[0][chosen], theirs[0][chosen]
    iou = mask_iou(logits, true_logits, expansion)
    flipped, near = (logits > 0) != (true_logits > 0), np.abs(true_logits) < NEAR
    return Agreement(
        len(logits),
        float(np.abs(sigmoid(logits) - sigmoid(true_logits)).max()),
        float(np.abs(ours[1][chosen] - theirs[1][chosen]).max()),
        float(iou.mean()),
        float(np.quantile(iou, 0.05)),
        float(iou.min()),
        logits.size,
        int(flipped.sum()),
        int(near.sum()),
        int((flipped & near).sum()),
    )


def _miou(logits: Floats, gate: GateCrops, rows: list[int], expansion: float) -> float | None:
    """Object mean with the true masks, at image resolution."""
    ious: list[float] = []
    for row in rows:
        rle = gate.truth[row]
        assert rle is not None  # `rows` are those with a mask
        truth, mask = to_mask(rle), mask_from_logits(logits[row, 0], gate.boxes[row], expansion)
        height, width = mask.pixels.shape
        common = int((truth[mask.y0 : mask.y0 + height, mask.x0 : mask.x0 + width] & mask.pixels).sum())
        ious.append(common / max(1, int(truth.sum()) + int(mask.pixels.sum()) - common))
    return float(np.mean(ious)) if ious else None
