"""`mal label`: a file of boxes in, the same file with masks out.

open_boxes ─► blocks ─► pipeline ─► journal ─► merge ─► OUT.json, OUT.json.report.json, OUT.json.skipped.jsonl
"""

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mal.datasets import BoxFile, open_boxes
from mal.datasets.packing import check_packing, packed, packing_suffix
from mal.errors import Interrupted, MalError, OutputError, UsageError
from mal.plugins.pixels import pixels
from mal.runtime.batches import Batch
from mal.runtime.blocks import Block, cut_blocks, cut_pieces
from mal.runtime.interrupt import stop_requested
from mal.runtime.journal import SKIPPED, Journal, Record, open_journal, whole_file, writing
from mal.runtime.machine import cpu_count, peak_rss_mb
from mal.runtime.objects import Piece
from mal.runtime.pipeline import DEFAULT_BUDGET, Pipeline, batch_size
from mal.runtime.progress import Progress
from mal.runtime.report import LabelReport
from mal.runtime.results import KEYS, Format, Results, must_have_mask, record_of
from mal.runtime.session import Session, open_session
from mal.runtime.stages import Stages
from mal.runtime.versions import versions
from mal.sources import Address


def label_dataset(
    boxes: Path,
    *,
    model: str | Path = "student",
    images: Address | None = None,
    output: Path | None = None,
    device: str | None = None,
    batch: int | str = "auto",
    workers: int | None = None,
    format: Format = "rle",
    on_error: Literal["skip", "fail"] = "skip",
    allow_outside: bool = False,
    max_memory_gb: float | None = None,
    fresh: bool = False,
    log_json: bool = False,
    trust: bool = False,
) -> LabelReport:
    """Label every box of a data set. An interrupted run goes on when called again.

    Args:
        boxes: COCO, LVIS, YOLO or VOC boxes.
        model: model file or name of a shipped student.
        images: image folder, tar files or address (see `mal.sources`); None: `images/` beside the boxes, else the
            boxes' folder.
        output: file to write, packed if it ends in .gz or .zst; None: `<boxes>.masks.json`, beside the boxes and packed
            like them.
        device: as in `open_session`.
        batch: crops a call, or "auto".
        workers: host threads; None: one for each processor.
        format: how segmentations are written.
        on_error: what an object without a possible mask does: it is listed, or it ends the run.
        allow_outside: file names may leave the image folder.
        max_memory_gb: bound of images and crops in flight, in 10^9 bytes.
        fresh: forget an unfinished run.
        log_json: progress as JSON lines on stderr.
        trust: as in `open_session`.

    Returns:
        The report, also written to `<output>.report.json`; what has no mask is in `<output>.skipped.jsonl`.

    Raises:
        InputError: boxes or model cannot be used, or an unfinished run had other inputs or settings.
        DeviceError: the device cannot be had.
        OutputError: no space, no permission; the journal keeps what is done.
        Interrupted: stopped by Ctrl-C; the journal keeps what is done.
        MalError: the session failed, or on_error="fail" met an object without a possible mask.
    """
    started = time.perf_counter()
    output = output or _default_output(boxes)
    _check(boxes, output)
    batch_size(batch)
    stages = Stages()
    with stages.time("scan"):
        box_file = open_boxes(boxes, images)
        order = box_file.order()
        blocks = cut_blocks(box_file.image_row[order])
    workers = workers or cpu_count()
    folder = output.with_name(output.name + ".journal")
    with closing(open_session(model, device, trust=trust)) as session, closing(open_journal(folder)) as journal:
        unfinished = {} if fresh else journal.read_key() or {}
        size = batch_size(batch, unfinished.get("batch") or session.auto_batch)
        settings = {"format": format, "allow_outside": allow_outside}
        journal.start(_run_key(box_file, session, size, settings), fresh)
        pipeline = Pipeline(
            session, batch=size, workers=workers, stages=stages,
            budget=max_memory_gb * 1e9 if max_memory_gb else DEFAULT_BUDGET,
        )  # fmt: skip
        labelling = _Labelling(box_file, order, blocks, journal, on_error, format, allow_outside)
        with Progress(len(box_file), log_json) as progress:
            name = f"{Path(model).name} {session.model_id}"
            progress.say(
                "start",
                f"{name} on {session.device} ({session.backend}, {session.threads} threads), batch {size}, "
                f"{pixels().name} crops and masks",
                model=name, device=session.device, backend=session.backend, batch=size, pixels=pixels().name,
                objects=len(box_file),
            )  # fmt: skip
            labelling.run(pipeline, session, progress)
        with stages.time("merge"):
            results = Results(journal, blocks, order, session.model_id)
            reasons = _write_skipped(box_file, results, output, on_error)
            _write_masks(box_file, results, output, journal)
        seconds = time.perf_counter() - started
        first_mask = labelling.first_mask_at
        report = LabelReport(
            output=output,
            exit_code=3 if any(must_have_mask(reason) for reason in reasons) else 0,
            objects=len(box_file),
            **results.counts(),
            skipped=sum(reasons.values()),
            skipped_by_reason=dict(reasons.most_common()),
            duplicate_ids=box_file.duplicate_ids,
            resumed=labelling.resumed,
            images=len(box_file.images),
            seconds=round(seconds, 3),
            first_mask_seconds=None if first_mask is None else round(first_mask - started, 3),
            boxes_per_s=round(labelling.speed, 1),
            stages=stages.table(),
            bound=stages.bound(),
            peak_rss_mb=round(peak_rss_mb(), 1),
            model=str(model),
            model_id=session.model_id,
            model_constants=session.constants.model_dump(mode="json"),
            backend=session.backend,
            device=session.device,
            threads=session.threads,
            pixels=pixels().name,
            workers=workers,
            batch=size,
            settings=settings,
            versions=versions(),
        )
        with writing(output), whole_file(_beside(output, ".report.json")) as file:
            file.write(json.dumps(report.to_json(), indent=1).encode())
        journal.remove()
    return report


class _Labelling:
    """Runs the blocks that the journal does not hold yet."""

    def __init__(
        self,
        boxes: BoxFile,
        order: NDArray[np.int64],
        blocks: list[Block],
        journal: Journal,
        on_error: str,
        mask_format: Format,
        allow_outside: bool,
    ) -> None:
        self._boxes, self._order, self._blocks, self._journal = boxes, order, blocks, journal
        self._fail, self._allow_outside = on_error == "fail", allow_outside
        self._format: Format = mask_format
        self.resumed = 0
        self.first_mask_at: float | None = None
        self.speed = 0.0  # objects/s of this process

    def run(self, pipeline: Pipeline, session: Session, progress: Progress) -> None:
        done = {block.index: self._journal.resume(block.index) for block in self._blocks}
        self.resumed = sum(done.values())
        progress.begin(self.resumed)
        constants = session.constants

        def pieces() -> Iterator[Piece]:
            for block in self._blocks:
                if done[block.index] < len(block):
                    yield from cut_pieces(
                        self._boxes, self._order, block, done[block.index], constants, self._allow_outside
                    )

        def finish(batch: Batch, logits: NDArray[np.float32], scores: NDArray[np.float32]) -> tuple[int, Record]:
            return batch.spans[0].piece.origin[0], record_of(batch, logits, scores, constants.expansion, self._format)

        started, objects = time.perf_counter(), 0
        with stop_requested() as stop:
            for block, record in pipeline.run(pieces(), finish, stop):
                if self._fail:
                    self._check_all_labelled(block, record)
                with pipeline.stages.time("journal"):
                    self._journal.append(block, record)
                count, skipped = record.stop - record.start, int((record.entries["kind"] == SKIPPED).sum())
                if self.first_mask_at is None and count > skipped:
                    self.first_mask_at = time.perf_counter()
                objects += count
                progress.advance(count, skipped)
            if stop() and self.resumed + objects < len(self._boxes):
                raise Interrupted(
                    f"stopped after {self.resumed + objects:,} of {len(self._boxes):,} boxes; "
                    "the same command goes on, without --fresh"
                )
        self.speed = objects / (time.perf_counter() - started)

    def _check_all_labelled(self, block: int, record: Record) -> None:
        ends = np.cumsum(record.entries["length"].astype(np.int64))
        for index in np.flatnonzero(record.entries["kind"] == SKIPPED).tolist():
            reason = record.text[ends[index] - record.entries["length"][index] : ends[index]].decode()
            if must_have_mask(reason):
                _refuse(self._boxes, int(self._order[self._blocks[block].start + record.start + index]), reason)


def _refuse(boxes: BoxFile, row: int, reason: str) -> None:
    """--on-error fail met an object that cannot be labelled."""
    line = _skipped_lines(boxes, [(row, reason)])[0]
    raise MalError(
        f"annotation {line['annotation_id']!r} (image {line['file_name'] or line['image_id']!r}) cannot be labelled: "
        f"{reason}; --on-error skip lists it and goes on"
    )


def _default_output(boxes: Path) -> Path:
    if not os.path.isdir(boxes):  # unlike Path's, never an error: `open_boxes` will say what is wrong
        packing = packing_suffix(boxes)
        return boxes.with_name(boxes.name.removesuffix(packing)).with_suffix(f".masks.json{packing}")
    # A dot in a folder's name starts no suffix; and `.` has a name only where it stands.
    folder = boxes if boxes.name not in ("", "..") else boxes.resolve()
    return folder.parent / f"{folder.name}.masks.json"


def _check(boxes: Path, output: Path) -> None:
    """Raise for what can be told before anything is read."""
    check_packing(output)
    with writing(output):
        if not output.parent.is_dir():
            raise OutputError(f"cannot write {output}: folder {output.parent} does not exist")
        for file in (output, _beside(output, ".report.json"), _beside(output, ".skipped.jsonl")):
            if not file.exists():
                continue
            # A device would be replaced by a file of its name.
            if not file.is_file():
                what = "a folder" if file.is_dir() else "no regular file"
                raise OutputError(f"cannot write {file}: it is {what}; name another file with -o")
            if boxes.exists() and file.samefile(boxes):
                raise UsageError(f"the output {file} is the input itself; name another file with -o")


def _run_key(boxes: BoxFile, session: Session, batch: int, settings: dict[str, Any]) -> dict[str, Any]:
    """All that decides the bytes of the output, as far as it can be known before."""
    return {
        "journal": 1,
        "boxes": boxes.sha256,
        "images": boxes.source.address,
        "model": session.model_id,
        "constants": session.constants.model_dump(mode="json"),
        "backend": session.backend,
        "device": session.device.partition(":")[0],
        "batch": batch,
        "pixels": pixels().name,
        **settings,
        "mal": versions(())["mal"],
    }


def _write_masks(boxes: BoxFile, results: Results, output: Path, journal: Journal) -> None:
    with writing(output), whole_file(output, journal.folder / "merged.json") as file, packed(output, file) as stream:
        boxes.write(stream, KEYS, results)


def _write_skipped(boxes: BoxFile, results: Results, output: Path, on_error: str) -> Counter[str]:
    """Write the list of objects without a mask, or remove an earlier run's; count them by reason."""
    path = _beside(output, ".skipped.jsonl")
    reasons: Counter[str] = Counter()
    skipped = results.skipped()
    with writing(path), whole_file(path) as file:
        # Some thousands at a time: a wrong image folder may leave ten million of them.
        while some := list(itertools.islice(skipped, 8192)):
            for row, reason in some:
                if on_error == "fail" and must_have_mask(reason):
                    _refuse(boxes, row, reason)
            reasons.update(reason for _, reason in some)
            file.writelines(json.dumps(line).encode() + b"\n" for line in _skipped_lines(boxes, some))
    if not reasons:
        path.unlink()
    return reasons


def _skipped_lines(boxes: BoxFile, skipped: list[tuple[int, str]]) -> list[dict[str, Any]]:
    rows = [row for row, _ in skipped]
    names = [boxes.images.file_names[at] if (at := int(boxes.image_row[row])) >= 0 else None for row in rows]
    return [
        {"annotation_id": annotation, "image_id": image, "file_name": name, "reason": reason}
        for annotation, image, name, (_, reason) in zip(
            boxes.annotation_ids(rows), boxes.image_ids(rows), names, skipped, strict=True
        )
    ]


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)
