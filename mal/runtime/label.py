"""`mal label`: a file of boxes in, the same file with masks out.

open_boxes ─► blocks ─► crew ─► journal ─► merge ─► OUT.json, OUT.json.report.json, OUT.json.skipped.jsonl
"""

import itertools
import json
import os
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mal.datasets import BoxFile, open_boxes
from mal.datasets.packing import check_packing, packed, packing_suffix
from mal.errors import MalError, OutputError, UsageError
from mal.runtime.blocks import Block, block_work, cut_blocks
from mal.runtime.crew import Crew, Here
from mal.runtime.journal import SKIPPED, Journal, open_journal, read_key, whole_file, writing
from mal.runtime.machine import cpu_count, peak_rss_mb
from mal.runtime.pipeline import DEFAULT_BUDGET, batch_size
from mal.runtime.processes import open_processes, split_devices
from mal.runtime.progress import Progress
from mal.runtime.recording import Check, Recording
from mal.runtime.report import LabelReport
from mal.runtime.results import KEYS, Format, Results, must_have_mask
from mal.runtime.session import open_session
from mal.runtime.session_threads import SESSION_TIMEOUT
from mal.runtime.stages import Stages
from mal.runtime.versions import versions
from mal.runtime.worker import Job, Labelled, Ready
from mal.sources import Address, ImageSource


def label_dataset(
    boxes: Path,
    *,
    model: str | Path = "student",
    images: Address | None = None,
    images_json: Path | None = None,
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
    quiet: bool = False,
    trust: bool = False,
    ray: str | None = None,
    session_timeout: float = SESSION_TIMEOUT,
) -> LabelReport:
    """Label every box of a data set. An interrupted run goes on when called again.

    Args:
        boxes: COCO, LVIS, YOLO or VOC boxes.
        model: model file or name of a shipped student.
        images: image folder, tar files or address (see `mal.sources`); None: `images/` beside the boxes, else the
            boxes' folder.
        images_json: COCO file of the images, where `boxes` is a list of detections.
        output: file to write, packed if it ends in .gz or .zst; None: `<boxes>.masks.json`, beside the boxes and packed
            like them.
        device: as in `open_session`, or several: "cuda:0,1,2,3", "cpu,cpu": a process each.
        batch: crops a call, or "auto".
        workers: host threads; None: one for each processor.
        format: how segmentations are written.
        on_error: what an object without a possible mask does: it is listed, or it ends the run.
        allow_outside: file names may leave the image folder.
        max_memory_gb: bound of images, crops and input buffers in flight, in 10^9 bytes; one image and one batch
            are always let through.
        fresh: forget an unfinished run.
        log_json: progress as JSON lines on stderr.
        quiet: no progress.
        trust: as in `open_session`.
        ray: address of a Ray cluster whose actors label; "": the one that is found, else one of this machine.
        session_timeout: seconds after which a call of a session that has not returned ends the run.

    Returns:
        The report, also written to `<output>.report.json`; what has no mask is in `<output>.skipped.jsonl`.

    Raises:
        InputError: boxes or model cannot be used, or an unfinished run had other inputs or settings.
        DeviceError: the device cannot be had.
        OutputError: no space, no permission; the journal keeps what is done.
        Interrupted: stopped by Ctrl-C; the journal keeps what is done.
        MalError: a session failed or hangs, a worker died again and again, or on_error="fail" met an object
            without a possible mask.
    """
    started = time.perf_counter()
    output = output or default_output(boxes)
    check_output([boxes, *([images_json] if images_json else [])], output)
    workers = host_threads(workers)
    stages = Stages()
    with stages.time("scan"):
        box_file = open_boxes(boxes, images, images_json)
        order = box_file.order()
        blocks = cut_blocks(box_file.image_row[order])
    folder = output.with_name(output.name + ".journal")
    unfinished = {} if fresh else read_key(folder) or {}
    job = Job(
        model=model,
        images=box_file.source.address,
        batch=batch_size(batch, unfinished.get("batch")),
        workers=workers,
        threads=None,
        format=format,
        allow_outside=allow_outside,
        trust=trust,
        budget=max_memory_gb * 1e9 if max_memory_gb else DEFAULT_BUDGET,
        timeout=session_timeout,
    )
    with (
        closing(_open_crew(job, box_file.source, device, ray, len(blocks))) as crew,
        closing(open_journal(folder)) as journal,
        Progress(len(box_file), log_json, quiet) as progress,
    ):
        settings = {"format": format, "allow_outside": allow_outside}
        ready = crew.ready
        journal.start(_run_key(box_file, ready, settings), fresh)
        name = f"{Path(model).name} {ready.model_id}"
        progress.say(
            "start",
            f"{name} on {ready.device} ({ready.backend}, {ready.threads} threads), batch {ready.batch}, "
            f"{ready.pixels} crops and masks",
            model=name, device=ready.device, backend=ready.backend, batch=ready.batch, pixels=ready.pixels,
            objects=len(box_file),
        )  # fmt: skip
        recording = Recording(journal, blocks, box_file.image_row[order])
        check = _must_all_have_masks(box_file, order, blocks) if on_error == "fail" else None
        recording.run(crew, partial(block_work, box_file, order), stages, progress, check)
        stages.include(crew.stages.seconds, crew.stages.cpu_seconds)
        ready = crew.ready  # by now all have come
        with stages.time("merge"):
            results = Results(journal, blocks, order, ready.model_id)
            reasons = _write_skipped(box_file, results, output, on_error)
            _write_masks(box_file, results, output, journal)
        seconds = time.perf_counter() - started
        first_mask = recording.first_mask_at
        report = LabelReport(
            output=output,
            exit_code=3 if any(must_have_mask(reason) for reason in reasons) else 0,
            objects=len(box_file),
            **results.counts(),
            skipped=sum(reasons.values()),
            skipped_by_reason=dict(reasons.most_common()),
            duplicate_ids=box_file.duplicate_ids,
            resumed=recording.resumed,
            images=len(box_file.images),
            seconds=round(seconds, 3),
            first_mask_seconds=None if first_mask is None else round(first_mask - started, 3),
            boxes_per_s=round(recording.speed, 1),
            stages=stages.table(),
            bound=stages.bound(),
            call_limit=crew.limit,
            worker_deaths=crew.deaths,
            peak_rss_mb=round(peak_rss_mb(), 1),
            model=str(model),
            model_id=ready.model_id,
            model_constants=ready.constants.model_dump(mode="json"),
            backend=ready.backend,
            device=ready.device,
            threads=ready.threads,
            pixels=ready.pixels,
            workers=workers,
            batch=ready.batch,
            settings=settings,
            versions=versions(),
        )
        with writing(output), whole_file(beside(output, ".report.json")) as file:
            file.write(json.dumps(report.to_json(), indent=1).encode())
        journal.remove()
    return report


def _open_crew(job: Job, source: ImageSource, device: str | None, ray: str | None, blocks: int) -> Crew:
    devices = split_devices(device)
    if ray is not None:
        if len(devices) > 1:
            raise UsageError(f"--device {device} with --ray: Ray chooses the devices; say cpu, cuda, or nothing")
        from mal.runtime.ray_crew import open_ray

        return open_ray(job, device, ray, blocks)
    if len(devices) > 1:
        return open_processes(job, devices)
    return Here(open_session(job.model, device, trust=job.trust), source, job)


def _must_all_have_masks(boxes: BoxFile, order: NDArray[np.int64], blocks: list[Block]) -> Check:
    """--on-error fail: raise for the first object that has none, before the journal keeps it."""

    def check(labelled: Labelled) -> None:
        record = labelled.record
        ends = np.cumsum(record.entries["length"].astype(np.int64))
        for index in np.flatnonzero(record.entries["kind"] == SKIPPED).tolist():
            reason = record.text[ends[index] - record.entries["length"][index] : ends[index]].decode()
            if must_have_mask(reason):
                _refuse(boxes, int(order[blocks[labelled.block].start + record.start + index]), reason)

    return check


def _refuse(boxes: BoxFile, row: int, reason: str) -> None:
    """--on-error fail met an object that cannot be labelled."""
    line = _skipped_lines(boxes, [(row, reason)])[0]
    raise MalError(
        f"annotation {line['annotation_id']!r} (image {line['file_name'] or line['image_id']!r}) cannot be labelled: "
        f"{reason}; --on-error skip lists it and goes on"
    )


def host_threads(workers: int | None) -> int:
    """How many; None: one for each processor. UsageError below 1."""
    if workers is not None and workers < 1:
        raise UsageError(f"workers={workers}: expected at least 1, or None for one on each processor")
    return workers or cpu_count()


def default_output(boxes: Path) -> Path:
    """Where masks go if nobody says: `<boxes>.masks.json`, packed like the boxes."""
    if not os.path.isdir(boxes):  # unlike Path's, never an error: `open_boxes` will say what is wrong
        packing = packing_suffix(boxes)
        return boxes.with_name(boxes.name.removesuffix(packing)).with_suffix(f".masks.json{packing}")
    # A dot in a folder's name starts no suffix; and `.` has a name only where it stands.
    folder = boxes if boxes.name not in ("", "..") else boxes.resolve()
    return folder.parent / f"{folder.name}.masks.json"


def check_output(inputs: list[Path], output: Path) -> None:
    """Raise for an output that cannot be written or is an input, as far as it can be told before anything is read."""
    check_packing(output)
    with writing(output):
        if not output.parent.is_dir():
            raise OutputError(f"cannot write {output}: folder {output.parent} does not exist")
        for file in (output, beside(output, ".report.json"), beside(output, ".skipped.jsonl")):
            if not file.exists():
                continue
            # A device would be replaced by a file of its name.
            if not file.is_file():
                what = "a folder" if file.is_dir() else "no regular file"
                raise OutputError(f"cannot write {file}: it is {what}; name another file with -o")
            if any(path.exists() and file.samefile(path) for path in inputs):
                raise UsageError(f"the output {file} is the input itself; name another file with -o")


def _run_key(boxes: BoxFile, ready: Ready, settings: dict[str, Any]) -> dict[str, Any]:
    """All that decides the bytes of the output, as far as it can be known before."""
    return {
        "journal": 1,
        "boxes": boxes.sha256,
        "images": boxes.source.address,
        "model": ready.model_id,
        "constants": ready.constants.model_dump(mode="json"),
        "backend": ready.backend,
        "device": ready.device_kind,
        "batch": ready.batch,
        "pixels": ready.pixels,
        **settings,
        "mal": versions(())["mal"],
    }


def _write_masks(boxes: BoxFile, results: Results, output: Path, journal: Journal) -> None:
    with writing(output), whole_file(output, journal.folder / "merged.json") as file, packed(output, file) as stream:
        boxes.write(stream, KEYS, results)


def _write_skipped(boxes: BoxFile, results: Results, output: Path, on_error: str) -> Counter[str]:
    """Write the list of objects without a mask, or remove an earlier run's; count them by reason."""
    path = beside(output, ".skipped.jsonl")
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


def beside(output: Path, suffix: str) -> Path:
    """Path of a file that belongs to the output."""
    return output.with_name(output.name + suffix)
