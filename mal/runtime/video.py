"""`mal label TRACKS --video FILE`: masks for tracked boxes in the frames of a video, YouTube-VIS JSON out.

Frames are decoded once, in order, by FFmpeg's threads; frames without a box are passed over. What is in flight is
bounded as in every run, finished masks wait in a temporary file: memory grows neither with the video nor with masks.
"""

import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from mal.datasets.packing import packed
from mal.datasets.video import FrameMask, Tracks, read_tracks
from mal.errors import InputError, Interrupted, MalError, missing_package
from mal.images import Picture
from mal.runtime.batches import Batch
from mal.runtime.blocks import DECODING_BYTES
from mal.runtime.interrupt import stop_requested
from mal.runtime.journal import ENTRY, LABELLED, Record, whole_file, writing
from mal.runtime.label import beside, check_output, default_output, host_threads
from mal.runtime.machine import peak_rss_mb
from mal.runtime.objects import PIECE, Flag, Piece, SharedImage
from mal.runtime.pipeline import DEFAULT_BUDGET, Pipeline, batch_size
from mal.runtime.progress import Progress
from mal.runtime.results import must_have_mask, record_of
from mal.runtime.session import open_session
from mal.runtime.stages import Stages, stage_lines


@dataclass
class VideoReport:
    """Report of a finished run; also in `<output>.report.json`."""

    output: Path
    exit_code: int  # 0, or 3: some box that should have a mask has none
    tracks: int
    boxes: int
    labelled: int
    skipped_by_reason: dict[str, int]
    frames: int  # with a box, labelled or not
    seconds: float
    stages: dict[str, dict[str, float]]
    bound: str
    peak_rss_mb: float
    model: str
    model_id: str
    backend: str
    device: str
    batch: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for json.dumps."""
        return {**asdict(self), "output": str(self.output)}

    def text(self) -> str:
        """What the command prints."""
        lines = [
            f"{self.output}: {self.labelled:,} masks for {self.boxes:,} boxes of {self.tracks:,} tracks on "
            f"{self.frames:,} frames, on {self.device} ({self.backend}), {self.seconds:.1f} s"
        ]
        lines += [f"    {count:>7,}  {reason}" for reason, count in self.skipped_by_reason.items()]
        return "\n".join(lines + stage_lines(self.stages, self.boxes, self.bound))


def label_video(
    tracks: Path,
    video: Path,
    *,
    model: str | Path = "student",
    output: Path | None = None,
    device: str | None = None,
    batch: int | str = "auto",
    workers: int | None = None,
    on_error: Literal["skip", "fail"] = "skip",
    max_memory_gb: float | None = None,
    log_json: bool = False,
    trust: bool = False,
) -> VideoReport:
    """Label every box of a video's tracks. There is no journal: a run that is stopped begins again.

    Args:
        tracks: YouTube-VIS or COCO-video JSON, or a MOT file, see `mal.datasets.video`.
        video: any file that FFmpeg reads; its first video stream counts.
        output: file to write; None: `<tracks>.masks.json` beside the tracks.
        model, device, batch, workers, on_error, max_memory_gb, log_json, trust: as `label_dataset`, one device.

    Raises:
        InputError: tracks, video or model cannot be used, or the video has another size than the tracks say.
        Interrupted: stopped by Ctrl-C; nothing is written.
        MalError: as `label_dataset`.
    """
    started = time.perf_counter()
    output = output or default_output(tracks)
    check_output([tracks, video], output)
    workers, stages = host_threads(workers), Stages()
    with stages.time("scan"):
        boxes = read_tracks(tracks)
    reel = Reel(video, boxes)
    with writing(output):
        spool = tempfile.TemporaryFile(dir=output.parent)  # noqa: SIM115  closed below
    with (
        closing(reel),
        closing(spool),
        closing(open_session(model, device, trust=trust)) as session,
        Progress(len(boxes), log_json) as progress,
    ):
        size = batch_size(batch, session.auto_batch)
        budget = max_memory_gb * 1e9 if max_memory_gb else DEFAULT_BUDGET
        pipeline = Pipeline(session, batch=size, workers=workers, stages=stages, budget=budget)
        masks = _Masks(boxes, cast(BinaryIO, spool))

        def finish(batch: Batch, logits: NDArray[np.float32], scores: NDArray[np.float32]) -> Record:
            return record_of(batch, logits, scores, session.constants.expansion, "rle")

        with stop_requested() as stop:
            progress.begin(0)
            for record in pipeline.run(reel.pieces(), finish, stop):
                with stages.time("journal"), writing(output):
                    skipped = masks.add(record)
                if skipped and on_error == "fail":
                    _refuse(masks, boxes, record)
                frames = boxes.frame[record.start : record.stop + 1]
                turned = int(np.count_nonzero(np.diff(frames))) + (record.stop == len(boxes))
                progress.advance(record.stop - record.start, turned, skipped, pipeline.fill)
            if stop():
                raise Interrupted("stopped; nothing is written, the same command begins again")
        with stages.time("merge"), writing(output):
            reasons = masks.write_skipped(output)
            with whole_file(output) as file, packed(output, file) as stream:
                boxes.write(stream, masks, session.model_id)
        report = VideoReport(
            output=output,
            exit_code=3 if any(must_have_mask(reason) for reason in reasons) else 0,
            tracks=len(boxes.annotations),
            boxes=len(boxes),
            labelled=len(boxes) - sum(reasons.values()),
            skipped_by_reason=dict(reasons.most_common()),
            frames=len(np.unique(boxes.frame)),
            seconds=round(time.perf_counter() - started, 3),
            stages=stages.table(),
            bound=stages.bound(),
            peak_rss_mb=round(peak_rss_mb(), 1),
            model=str(model),
            model_id=session.model_id,
            backend=session.backend,
            device=session.device,
            batch=size,
        )
        with writing(output), whole_file(beside(output, ".report.json")) as file:
            file.write(json.dumps(report.to_json(), indent=1).encode())
    return report


class Reel:
    """The frames of a video that have boxes.

    Raises:
        MissingPackageError: PyAV is not installed.
        InputError: it is no video, it is stored turned, or its size is not what the tracks say.
    """

    def __init__(self, path: Path, tracks: Tracks) -> None:
        try:
            import av
            import av.error
        except ImportError:
            raise missing_package("av") from None
        self._error = av.error.FFmpegError
        try:
            self._container = av.open(str(path))
        except (OSError, ValueError, av.error.FFmpegError) as error:
            raise InputError(f"cannot read video {path}: {getattr(error, 'strerror', None) or error}") from None
        if self._container.format.name == "tty":  # FFmpeg would draw the letters
            self._container.close()
            raise InputError(f"{path} is a text file, no video; boxes come first: mal label TRACKS --video FILE")
        if not self._container.streams.video:
            self._container.close()
            raise InputError(f"{path} has no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        # Else decoders leave damaged frames out without a word, and all behind them would get the boxes of others.
        self._stream.codec_context.options = {"err_detect": "explode"}
        width, height = self._stream.width, self._stream.height
        if (tracks.size[0] or width, tracks.size[1] or height) != (width, height):
            self._container.close()
            raise InputError(
                f"{path} has {width} x {height} pixels, its tracks are for {tracks.size[0]} x {tracks.size[1]}"
            )
        self._path, self._tracks = path, tracks
        tracks.document["videos"][0] |= {"width": width, "height": height}

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def pieces(self) -> Iterator[Piece]:
        """The boxes in the order of their frames; those of frames that there are not have a reason."""
        frames = self._tracks.frame
        starts = np.flatnonzero(np.diff(frames, prepend=-1)).tolist()
        pictures, number, reason = self._pictures(), -1, ""
        for start, stop in itertools.pairwise([*starts, len(frames)]):
            image = None
            while number < frames[start] and not reason:
                try:
                    number, image = next(pictures)
                except StopIteration:
                    reason = f"the video has {number + 1} frames"
                except self._error as error:
                    reason = f"the video cannot be read behind frame {number + 1}: {error.strerror}"
            shared, cost = None, 0
            if image is not None and not reason:
                if image.rotation:
                    raise InputError(
                        f"{self._path} is stored turned by {image.rotation} degrees, and boxes might mean either; turn "
                        "its pixels first: ffmpeg -i IN OUT"
                    )
                shared = SharedImage(partial(_picture, image))
                cost = image.width * image.height * DECODING_BYTES
            for first in range(start, stop, PIECE):
                last = min(first + PIECE, stop)
                reasons = [self._tracks.reason(row) or reason or None for row in range(first, last)]
                yield Piece((0, first), shared, self._tracks.boxes[first:last], reasons, cost if first == start else 0)

    def _pictures(self) -> Iterator[tuple[int, Any]]:
        yield from enumerate(self._container.decode(self._stream))


def _picture(frame: Any) -> Picture:
    return Picture(frame.to_ndarray(format="rgb24"), frame.width, frame.height)


class _Masks:
    """Results by row of the tracks; their texts are in a file."""

    def __init__(self, tracks: Tracks, spool: BinaryIO) -> None:
        self._tracks, self._spool = tracks, spool
        self._entries = np.zeros(len(tracks), ENTRY)
        self._offsets = np.zeros(len(tracks), np.int64)
        self._end = 0

    def add(self, record: Record) -> int:
        """Keep it; how many of its boxes that should have a mask have none."""
        lengths = record.entries["length"].astype(np.int64)
        self._entries[record.start : record.stop] = record.entries
        self._offsets[record.start : record.stop] = self._end + np.cumsum(lengths) - lengths
        self._spool.seek(self._end)
        self._spool.write(record.text)
        self._end += len(record.text)
        return int((record.entries["kind"] != LABELLED).sum())

    def __call__(self, rows: NDArray[np.int64]) -> list[FrameMask | None]:
        """See `Tracks.write`."""
        return [self._mask(row) for row in rows.tolist()]

    def skipped(self, start: int, stop: int) -> Iterator[tuple[int, str]]:
        """Rows without a mask, and why."""
        for row in (start + np.flatnonzero(self._entries["kind"][start:stop] != LABELLED)).tolist():
            yield row, self._text(row).decode()

    def line(self, row: int, reason: str) -> dict[str, Any]:
        """What the list of skipped boxes says; frames from 0, as the places in `bboxes`."""
        track = self._tracks.annotations[self._tracks.track[row]]
        return {"annotation_id": track.get("id"), "frame": int(self._tracks.frame[row]), "reason": reason}

    def write_skipped(self, output: Path) -> Counter[str]:
        """Write the list, or remove an earlier run's; count by reason."""
        path = beside(output, ".skipped.jsonl")
        reasons: Counter[str] = Counter()
        with whole_file(path) as file:
            for row, reason in self.skipped(0, len(self._entries)):
                reasons[reason] += 1
                file.write(json.dumps(self.line(row, reason)).encode() + b"\n")
        if not reasons:
            path.unlink()
        return reasons

    def _mask(self, row: int) -> FrameMask | None:
        kind, flags, score, area, _ = self._entries[row].tolist()
        return FrameMask(self._text(row), area, score, Flag(flags).words) if kind == LABELLED else None

    def _text(self, row: int) -> bytes:
        self._spool.seek(self._offsets.item(row))
        return self._spool.read(int(self._entries["length"][row]))


def _refuse(masks: _Masks, tracks: Tracks, record: Record) -> None:
    """--on-error fail: raise for the first box that should have a mask and has none."""
    for row, reason in masks.skipped(record.start, record.stop):
        if must_have_mask(reason):
            line = masks.line(row, reason)
            raise MalError(
                f"annotation {line['annotation_id']!r} in frame {line['frame']} cannot be labelled: {reason}; "
                "--on-error skip lists it and goes on"
            )
