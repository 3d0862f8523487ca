"""`mal bench`: the bare session, each stage, and the whole pipeline, measured in one run.

session     crops/s of the session alone, crops in memory, same threads
pipeline    crops/s of `mal label` from the first image to the merged file (start-up left out)
efficiency  pipeline / session; rounds of both alternate, medians count, so that a busy machine hurts both
stages      ms a box of each host stage, one thread, in processor time: what it takes from the cores
table       that of `mal label`'s report, of the last round
"""

import itertools
import json
import statistics
import tempfile
import time
from collections import deque
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from mal.datasets import BoxFile, open_boxes
from mal.errors import InputError
from mal.plugins.pixels import pixels
from mal.runtime.batches import Batch, BatchCutter
from mal.runtime.blocks import block_work, cut_blocks, cut_pieces, load_image
from mal.runtime.device_crops import Crops
from mal.runtime.label import label_dataset
from mal.runtime.machine import cpu_count, peak_rss_mb
from mal.runtime.objects import cut_boxes, prepare
from mal.runtime.pipeline import batch_size
from mal.runtime.results import record_of
from mal.runtime.session import Session, open_session
from mal.runtime.stages import HOST_STAGES, Stages, stage_lines
from mal.sources import Address

ROUNDS = 3
KEPT_BATCHES = 8  # inputs of the session that stay in memory
ROUND_SECONDS = 3.0  # of the session, each round: long enough that filling and draining the pipeline is small
HOST = (*HOST_STAGES, "journal", "merge")


@dataclass
class BenchReport:
    """What `run_bench` measured."""

    session_crops_per_s: float
    pipeline_crops_per_s: float
    efficiency: float
    host_ms_per_box: float
    stages: dict[str, float]  # processor ms a box, one thread, alone
    pipeline_stages: dict[str, dict[str, float]]  # of the last round, as `LabelReport.stages`
    bound: str  # the stage that held that round up
    peak_rss_mb: float
    crops: int  # a round
    images: int  # a round
    rounds: int
    model: str
    model_id: str
    backend: str
    device: str
    threads: int
    pixels: str  # body of crops and masks: compiled or numpy
    workers: int
    batch: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for json.dumps."""
        return asdict(self)

    def text(self) -> str:
        """What the command prints."""
        stages = "  ".join(f"{stage} {spent:.3f}" for stage, spent in self.stages.items())
        text = (
            f"{self.model} {self.model_id} on {self.device} ({self.backend}), {self.threads} threads, "
            f"{self.workers} workers, batch {self.batch}, {self.pixels} crops and masks; "
            f"{self.rounds} rounds of {self.crops} crops from {self.images} images\n"
            f"  bare session    {self.session_crops_per_s:8.1f} crops/s\n"
            f"  whole pipeline  {self.pipeline_crops_per_s:8.1f} crops/s   {self.efficiency:.1%} of the session\n"
            f"  host            {self.host_ms_per_box:8.3f} ms a box on one thread: {stages}\n"
            f"  peak memory     {self.peak_rss_mb:8.0f} MB"
        )
        return "\n".join([text, *stage_lines(self.pipeline_stages, self.crops, self.bound)])


def run_bench(
    boxes: Path | None = None,
    *,
    model: str | Path = "student",
    device: str | None = None,
    images: Address | None = None,
    batch: int | str = "auto",
    workers: int | None = None,
) -> BenchReport:
    """Measure. The first images of the boxes are used, or all of them several times, to fill a round.

    Args:
        boxes: None: the built-in photographs.
        model, device, images, batch, workers: as `label_dataset`.

    Raises:
        InputError: no box that can be labelled; else as `label_dataset`.
    """
    box_file = open_boxes(boxes or Path(str(resources.files("mal"))) / "models" / "photos" / "boxes.json", images)
    with closing(open_session(model, device)) as session, tempfile.TemporaryDirectory() as folder:
        size = batch_size(batch, session.auto_batch)
        sample = Path(folder) / "boxes.json"
        # A first look, which also warms the session up, says how many crops make a round.
        _write_sample(box_file, 2 * size, sample)
        alone = _host_stages(open_boxes(sample, box_file.source.address), session, size)
        per_second = _session_speed(session, alone.batches, 2 * size)
        _write_sample(box_file, max(4 * size, int(per_second * ROUND_SECONDS)), sample)
        sample_file = open_boxes(sample, box_file.source.address)
        alone = _host_stages(sample_file, session, size)
        stages = dict(alone.stages)
        session_speeds: list[float] = []
        pipeline_speeds: list[float] = []
        table: dict[str, dict[str, float]] = {}
        bound = ""
        for _ in range(ROUNDS):
            session_speeds.append(_session_speed(session, alone.batches, alone.crops))
            report = label_dataset(
                sample, model=model, images=box_file.source.address, output=Path(folder) / "masks.json", device=device,
                batch=size, workers=workers, fresh=True, quiet=True,
            )  # fmt: skip
            table, bound = report.stages, report.bound
            merge_seconds = report.stages["merge"]["seconds"]
            pipeline_speeds.append(report.labelled / (report.objects / report.boxes_per_s + merge_seconds))
            for stage in ("journal", "merge"):
                stages[stage] = report.stages[stage]["cpu_seconds"] * 1000 / alone.crops
        return BenchReport(
            session_crops_per_s=round(statistics.median(session_speeds), 1),
            pipeline_crops_per_s=round(statistics.median(pipeline_speeds), 1),
            efficiency=round(statistics.median(pipeline_speeds) / statistics.median(session_speeds), 4),
            host_ms_per_box=round(sum(stages.values()), 4),
            stages={stage: round(stages[stage], 4) for stage in HOST},
            pipeline_stages=table,
            bound=bound,
            peak_rss_mb=round(peak_rss_mb(), 1),
            crops=alone.crops,
            images=len(sample_file.images),
            rounds=ROUNDS,
            model=str(model),
            model_id=session.model_id,
            backend=session.backend,
            device=session.device,
            threads=session.threads,
            pixels=pixels().name,
            workers=workers or cpu_count(),
            batch=size,
        )


def _session_speed(session: Session, batches: list[Crops], wanted: int) -> float:
    """Crops/s of the session over `wanted` crops, the batches taken in turn."""
    crops = 0
    started = time.perf_counter()
    for batch in itertools.cycle(batches):
        session.run(batch)
        crops += len(batch)
        if crops >= wanted:
            return crops / (time.perf_counter() - started)
    raise AssertionError("unreachable: there is at least one batch")


@dataclass
class _Alone:
    """The host stages, one after the other in one thread."""

    crops: int
    batches: list[Crops]  # some of the session's inputs
    stages: dict[str, float]  # processor ms a box


def _host_stages(boxes: BoxFile, session: Session, size: int) -> _Alone:
    stages, constants, cutter = Stages(), session.constants, BatchCutter(size)
    order = boxes.order()
    load = partial(load_image, source=boxes.source, constants=constants, allow_outside=True)
    alone = _Alone(0, [], {})
    buffer: Crops = session.allocate(size)
    waiting: deque[Batch] = deque()
    for block in cut_blocks(boxes.image_row[order]):
        for piece in cut_pieces(block_work(boxes, order, block, 0), load):
            waiting += cutter.add(prepare(piece, stages))
            while waiting and waiting[0].full:
                batch = waiting.popleft()
                for span in batch.spans:
                    if picture := span.take_picture():
                        with stages.time("crop"):
                            cut_boxes(picture, span.boxes(), constants, span.place(buffer))
                if not batch.crops:
                    continue
                crops = buffer[: batch.crops]
                logits, scores = session.run(crops)
                with stages.time("mask"):
                    record_of(batch, logits, scores, constants.expansion, "rle")
                alone.crops += batch.crops
                if len(alone.batches) < KEPT_BATCHES:
                    alone.batches.append(crops.copy())
    if not alone.crops:
        raise InputError(f"{boxes.path} has no box that can be labelled; `mal label` says why")
    for stage in HOST_STAGES:
        alone.stages[stage] = stages.cpu_seconds[stage] * 1000 / alone.crops
    return alone


def _write_sample(boxes: BoxFile, wanted: int, path: Path) -> None:
    """COCO file of the first images, repeated if need be, until `wanted` boxes are in it."""
    order = boxes.order()
    rows = [row for row in order[boxes.image_row[order] >= 0].tolist() if boxes.reason(row) is None]
    if not rows:
        raise InputError(f"{boxes.path} has no box that can be labelled; `mal label` says why")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    while len(annotations) < wanted:
        last = -1
        for row in rows:
            image = int(boxes.image_row[row])
            if image != last:
                if len(annotations) >= wanted:
                    break
                last = image
                size = {"width": int(boxes.images.widths[image]), "height": int(boxes.images.heights[image])}
                images.append({"id": len(images), "file_name": boxes.images.file_names[image], **size})
            x0, y0, x1, y1 = boxes.boxes[row].tolist()
            box = {"id": len(annotations), "image_id": len(images) - 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            annotations.append({**box, "category_id": 1})
    category = {"id": 1, "name": "object"}
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
