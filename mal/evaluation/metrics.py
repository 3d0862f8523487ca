"""How good are the masks? Judged against true ones, beside what a box or an ellipse would score on the same objects."""

from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mal.boxes import usable
from mal.datasets.segmentations import coco_mask, to_mask
from mal.evaluation.agreement import compare
from mal.evaluation.average_precision import mask_ap
from mal.evaluation.pairs import Id, Pair, Pairs, pair_up
from mal.evaluation.ranking import auc, spearman

SMALL, LARGE = 32.0**2, 96.0**2
"""Size classes by the pixels of the true mask, as COCO counts them: up to SMALL, up to LARGE, above.

MAL and TAO sort by the box's area, which puts about a quarter fewer objects of COCO among the small ones: their
figures by size are not these.
"""

GOOD = 0.75
"""A mask is good where its IoU is above this."""

RESAMPLES = 2000
"""Draws of the bootstrap: the interval's ends move by about a hundredth of its width from seed to seed."""


@dataclass(frozen=True)
class Judged:
    """What was measured on one object; fractions 0..1."""

    annotation_id: Id
    image: int
    category: Id | None
    area: int
    """Pixels of the true mask."""
    iou: float
    boundary_iou: float
    floor_box: float
    floor_ellipse: float
    mask_over_box: float | None
    """Area of the predicted mask over that of the box; None without a mask."""
    score: float | None


@dataclass(frozen=True)
class Evaluation:
    """Figures of one labelled file, fractions 0..1; None where there is nothing to measure.

    An object without a mask counts 0 in every mean.
    """

    objects: int
    miou_object: float
    """Mean IoU over objects."""
    miou_class: float
    """Mean over the categories that occur of their objects' mean IoU."""
    miou_small: float | None
    miou_medium: float | None
    miou_large: float | None
    share_75: float
    """Share of objects with IoU above .75."""
    boundary_iou: float
    floor_box: float
    """Mean IoU that the filled true boxes would have."""
    floor_ellipse: float
    mask_ap: float
    score_spearman: float | None
    """Rank correlation of `mal.score` with IoU, over objects that have both a mask and a score."""
    score_auc: float | None
    """Probability that a mask with IoU above .75 has a higher score than one without."""
    area_spearman: float | None
    """The same two for the simplest score there is: the mask's share of its box."""
    area_auc: float | None
    interval_95: tuple[float, float]
    """Bootstrap interval of `miou_object`, whole images resampled."""
    count_small: int
    count_medium: int
    count_large: int
    missing: list[Id]
    broken: list[tuple[Id, str]]
    unmatched: list[Id]
    """Predictions whose id the truth does not have; they count nowhere."""
    judged: list[Judged]
    """One row an object; not part of the JSON."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for one JSON object, in the order of the fields."""
        values = {key: value for key, value in vars(self).items() if key != "judged"}
        values["broken"] = [{"annotation_id": key, "reason": reason} for key, reason in self.broken]
        return values

    def table(self) -> Table:
        """The figures for a reader."""
        table = Table(
            title=f"{self.objects} objects", title_justify="left", show_header=False, box=None, pad_edge=False
        )
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column(style="dim")
        low, high = self.interval_95
        rows: list[tuple[str, float | None, str]] = [
            ("mIoU, objects", self.miou_object, f"95 % within {low:.3f} .. {high:.3f}"),
            ("  filled box", self.floor_box, "floor: the box itself as mask"),
            ("  ellipse", self.floor_ellipse, "floor: the ellipse inscribed in the box"),
            ("mIoU, classes", self.miou_class, "each category counts once"),
            ("mIoU, small", self.miou_small, f"{self.count_small} objects, true mask up to 32 x 32 pixels"),
            ("mIoU, medium", self.miou_medium, f"{self.count_medium} objects"),
            ("mIoU, large", self.miou_large, f"{self.count_large} objects, true mask above 96 x 96 pixels"),
            ("IoU > .75", self.share_75, "share of the objects"),
            ("boundary IoU", self.boundary_iou, "band of 2 % of the diagonal"),
            ("mask AP", self.mask_ap, "COCO, true boxes and classes"),
            (
                "score, Spearman",
                self.score_spearman,
                f"with IoU; the mask's share of the box: {_figure(self.area_spearman)}",
            ),
            ("score, AUC", self.score_auc, f"for IoU > .75; the mask's share of the box: {_figure(self.area_auc)}"),
        ]
        for name, value, note in rows:
            table.add_row(name, _figure(value), note)
        return table

    def text(self) -> str:
        """The table as plain text, and a line for whatever did not fit."""
        console = Console(file=StringIO(), width=100, color_system=None)
        console.print(self.table())
        lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # pyright: ignore[reportAttributeAccessIssue]
        if self.missing:
            lines.append(f"no mask, counted 0: {_some(self.missing)}")
        if self.broken:
            lines.append(f"mask that cannot be read, counted 0: {_some([key for key, _ in self.broken])}")
            lines.append(f"  the first: {self.broken[0][1]}")
        if self.unmatched:
            lines.append(f"predicted, but not in the truth, not counted: {_some(self.unmatched)}")
        return "\n".join(lines)


def evaluate(predicted: Path, truth: Path) -> Evaluation:
    """Judge a labelled COCO file by one with true masks; annotations are matched by id.

    Args:
        predicted: COCO JSON with masks, as `mal label` writes it or anyone else.
        truth: COCO JSON with true masks: polygons or RLE. Crowd regions are left out.

    Raises:
        InputError: a file that cannot be used (`pairs.pair_up`); a broken predicted mask is no error, it counts 0.
        MissingPackageError: faster-coco-eval is not installed.
    """
    pairs = pair_up(Path(predicted), Path(truth))
    judged = [judge(pair) for pair in pairs.objects]
    return summarise(pairs, judged)


def judge(pair: Pair) -> Judged:
    """Measure one object at full image resolution."""
    mask = None if pair.predicted is None else to_mask(pair.predicted)
    iou = 0.0 if pair.predicted is None else float(coco_mask.iou([pair.predicted], [pair.truth], [0])[0, 0])
    box_area = float(np.prod(pair.box[2:] - pair.box[:2]))
    return Judged(
        pair.annotation_id,
        pair.image,
        pair.category,
        int(coco_mask.area(pair.truth)),
        iou,
        *compare(mask, to_mask(pair.truth), pair.box),
        None if mask is None or not usable(pair.box[None])[0] else float(mask.sum()) / box_area,
        pair.score,
    )


def summarise(pairs: Pairs, judged: list[Judged]) -> Evaluation:
    """Means, floors and ranks of objects judged one by one."""
    iou = np.array([row.iou for row in judged])
    area = np.array([row.area for row in judged])
    small, large = area <= SMALL, area > LARGE
    medium = ~small & ~large
    score_spearman, score_auc = _ranking(iou, [row.score if row.mask_over_box is not None else None for row in judged])
    area_spearman, area_auc = _ranking(iou, [row.mask_over_box for row in judged])
    return Evaluation(
        objects=len(judged),
        miou_object=float(iou.mean()),
        miou_class=_class_mean(iou, [row.category for row in judged]),
        miou_small=_mean(iou[small]),
        miou_medium=_mean(iou[medium]),
        miou_large=_mean(iou[large]),
        share_75=float((iou > GOOD).mean()),
        boundary_iou=float(np.mean([row.boundary_iou for row in judged])),
        floor_box=float(np.mean([row.floor_box for row in judged])),
        floor_ellipse=float(np.mean([row.floor_ellipse for row in judged])),
        mask_ap=mask_ap(pairs),
        score_spearman=score_spearman,
        score_auc=score_auc,
        area_spearman=area_spearman,
        area_auc=area_auc,
        interval_95=bootstrap(iou, np.array([row.image for row in judged])),
        count_small=int(small.sum()),
        count_medium=int(medium.sum()),
        count_large=int(large.sum()),
        missing=pairs.missing,
        broken=pairs.broken,
        unmatched=pairs.unmatched,
        judged=judged,
    )


def bootstrap(iou: NDArray[np.float64], image: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over objects, drawing whole images with replacement.

    Images, not objects: objects of one picture succeed and fail together.
    """
    _, row = np.unique(image, return_inverse=True)
    total, count = np.bincount(row, iou), np.bincount(row)
    rng = np.random.default_rng(seed)
    # How often each image is drawn, one draw of all images a row.
    means = np.empty(RESAMPLES)
    for at in range(RESAMPLES):
        drawn = rng.integers(0, len(total), len(total))
        means[at] = total[drawn].sum() / count[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _ranking(iou: NDArray[np.float64], values: list[float | None]) -> tuple[float | None, float | None]:
    known = [row for row, value in enumerate(values) if value is not None]
    scores = np.array([values[row] for row in known], np.float64)
    return spearman(scores, iou[known]), auc(scores, iou[known] > GOOD)


def _class_mean(iou: NDArray[np.float64], categories: list[Id | None]) -> float:
    rows: dict[Id | None, list[float]] = {}
    for category, value in zip(categories, iou, strict=True):
        rows.setdefault(category, []).append(value)
    return float(np.mean([np.mean(values) for values in rows.values()]))


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if values.size else None


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _some(ids: list[Id], most: int = 8) -> str:
    shown = ", ".join(str(key) for key in ids[:most])
    return f"{len(ids)} objects ({shown}{', …' if len(ids) > most else ''})"
