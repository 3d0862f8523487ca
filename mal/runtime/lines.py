"""`mal label -`: one image a line in, the same line with masks out, as they are made; it sits in a pipe.

    {"file_name": "a.jpg", "annotations": [{"bbox": [x, y, w, h]}, ...]}      and any other keys, of both

COCO's words and pixels; `width`, `height` and `iscrowd` count where they are given. A labelled annotation gets
`segmentation`, `area` and `mal`, all else stays letter for letter. Lines come out in order, a few batches behind what
went in. What has no mask is listed on stderr, a JSON object each. A line that cannot be read comes out as it went in.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TextIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from mal.datasets.box_file import reason_of_box
from mal.datasets.coco import LooseAnnotation, corners, decode_loosely, is_crowd
from mal.datasets.splice import Values, splice
from mal.errors import InputError, Interrupted, MalError
from mal.images import Picture, decode_image
from mal.runtime.batches import Batch
from mal.runtime.blocks import DECODING_BYTES, UNKNOWN_IMAGE_BYTES
from mal.runtime.interrupt import stop_requested
from mal.runtime.machine import cpu_count
from mal.runtime.objects import PIECE, Piece, SharedImage, shrink_of_crops
from mal.runtime.pipeline import DEFAULT_BUDGET, Pipeline, batch_size
from mal.runtime.results import KEYS, Format, must_have_mask, reasons_of, record_of, values_of
from mal.runtime.session import Session, open_session
from mal.runtime.stages import Stages
from mal.sources import Address, ImageSource, open_source

MAX_LINE = 1 << 26
"""Bytes; a longer line ends the run, because it would have to be held as a whole."""

_LINES = 256  # a batch ends with every so many, so that lines without boxes don't pile up behind it

Row = tuple[bytes, ...]  # values of `KEYS`


class _Image(msgspec.Struct, gc=False):
    file_name: Any = None
    width: Any = 0
    height: Any = 0
    annotations: msgspec.Raw = msgspec.Raw(b"[]")


@dataclass(slots=True)
class _Line:
    """A line whose objects are not all labelled yet."""

    number: int  # from 1
    text: bytes
    image: _Image
    annotations: list[LooseAnnotation]
    problem: str | None = None  # why it cannot be read
    done: int = 0
    values: list[Row | None] = field(default_factory=list[Row | None])
    reasons: list[str | None] = field(default_factory=list[str | None])

    @property
    def objects(self) -> int:
        """At least one: a line without boxes takes its turn as well."""
        return max(len(self.annotations), 1)

    def output(self) -> bytes:
        if not any(self.values):
            return self.text
        array = bytes(self.image.annotations).strip()
        spliced = splice(array[1:-1], KEYS, Values.of(self.values, len(KEYS)))
        return splice(self.text, ["annotations"], Values.of([(b"[" + spliced + b"]",)], 1))


class LinesReport(NamedTuple):
    """What was done."""

    lines: int
    labelled: int
    skipped: int
    exit_code: int

    def text(self) -> str:
        """One line."""
        return (
            f"{self.lines:,} lines: {self.labelled:,} masks, {self.skipped:,} objects or lines without (listed above)"
        )


def label_lines(
    source: BinaryIO,
    sink: BinaryIO,
    log: TextIO,
    *,
    model: str | Path = "student",
    images: Address | None = None,
    device: str | None = None,
    batch: int | str = "auto",
    workers: int | None = None,
    format: Format = "rle",
    on_error: Literal["skip", "fail"] = "skip",
    allow_outside: bool = False,
    max_memory_gb: float | None = None,
    trust: bool = False,
) -> LinesReport:
    """Label a stream of images, one a line.

    Args:
        source: JSON lines, as the module says; read a few batches ahead.
        sink: where they go, with masks; flushed whenever lines are done.
        log: where what has no mask is listed: {"line", "annotation" (place in its line, from 0), "annotation_id",
            "file_name", "reason"}.
        images: where file names start; None: the working folder.
        model, device, batch, workers, format, on_error, allow_outside, max_memory_gb, trust: as
            `label_dataset`.

    Raises:
        InputError: model or images cannot be used; a line is longer than 64 MB.
        DeviceError: the device cannot be had.
        Interrupted: stopped by Ctrl-C; the lines that were written are whole.
        MalError: the session failed, or on_error="fail" met an object without a possible mask.
    """
    folder = open_source(images or Path())
    with closing(open_session(model, device, trust=trust)) as session:
        pipeline = Pipeline(
            session, batch=batch_size(batch, session.auto_batch), workers=workers or cpu_count(), stages=Stages(),
            budget=max_memory_gb * 1e9 if max_memory_gb else DEFAULT_BUDGET,
        )  # fmt: skip
        return _Stream(source, sink, log, session, folder, format, on_error == "fail", allow_outside).run(pipeline)


class _Stream:
    def __init__(
        self,
        source: BinaryIO,
        sink: BinaryIO,
        log: TextIO,
        session: Session,
        images: ImageSource,
        mask_format: Format,
        fail: bool,
        allow_outside: bool,
    ) -> None:
        self._source, self._sink, self._log = source, sink, log
        self._session, self._images = session, images
        self._format: Format = mask_format
        self._fail, self._allow_outside = fail, allow_outside
        self._waiting: deque[_Line] = deque()
        self._lines = self._labelled = self._skipped = self._missed = 0

    def run(self, pipeline: Pipeline) -> LinesReport:
        with stop_requested() as stop:
            for outcomes in pipeline.run(self._pieces(stop), self._finish, stop):
                for number, values, reason in outcomes:
                    line = self._waiting[number - self._waiting[0].number]
                    line.done += 1
                    line.values.append(values)
                    line.reasons.append(reason)
                while self._waiting and self._waiting[0].done == self._waiting[0].objects:
                    self._put(self._waiting.popleft())
                self._sink.flush()
            if stop():
                raise Interrupted(f"stopped after {self._lines:,} lines")
        return LinesReport(self._lines, self._labelled, self._skipped, 3 if self._missed else 0)

    def _pieces(self, stop: Callable[[], bool]) -> Iterator[Piece]:
        number = 0
        while not stop() and (text := self._source.readline(MAX_LINE + 1)):
            number += 1
            if len(text) > MAX_LINE:
                raise InputError(f"line {number} is longer than {MAX_LINE} bytes; expected one image a line")
            line = _read(number, text)
            self._waiting.append(line)
            boxes = np.array([corners(each.bbox) for each in line.annotations], np.float64).reshape(-1, 4)
            crowd = np.array([is_crowd(each.iscrowd) for each in line.annotations], np.bool_)
            reasons = [reason_of_box(box, lone) for box, lone in zip(boxes, crowd, strict=True)]
            image, picture = self._image(line, boxes[~crowd])
            if image is None:
                reasons = [reason or "its image has no file_name" for reason in reasons]
            if not len(boxes):
                boxes, reasons = np.zeros((1, 4)), [""]
            for start in range(0, len(boxes), PIECE):
                some = boxes[start : start + PIECE]
                yield Piece(
                    origin=(number, start),
                    image=image,
                    boxes=some,
                    reasons=list(reasons[start : start + PIECE]),
                    cost=picture if start == 0 else 0,
                    ends_batch=number % _LINES == 0 and start + PIECE >= len(boxes),
                )

    def _image(self, line: _Line, wanted: NDArray[np.float64]) -> tuple[SharedImage | None, int]:
        """The image of a line, and about how many bytes it takes."""
        image = line.image
        if not (type(image.file_name) is str and image.file_name):
            return None, 0
        width, height = (side if type(side) is int and side > 0 else 0 for side in (image.width, image.height))
        load = partial(self._load, image.file_name, (width, height), wanted)
        return SharedImage(load), width * height * DECODING_BYTES or UNKNOWN_IMAGE_BYTES

    def _load(self, file_name: str, size: tuple[int, int], wanted: NDArray[np.float64]) -> Picture:
        data = self._images.read(file_name, allow_outside=self._allow_outside)
        return decode_image(data, *size, partial(shrink_of_crops, wanted, self._session.constants))

    def _finish(
        self, batch: Batch, logits: NDArray[np.float32], scores: NDArray[np.float32]
    ) -> list[tuple[int, Row | None, str | None]]:
        """For each object of the batch: its line, its values or the reason why it has none."""
        record = record_of(batch, logits, scores, self._session.constants.expansion, self._format)
        numbers = [span.piece.origin[0] for span in batch.spans for _ in range(span.first, span.last)]
        ends = np.cumsum(record.entries["length"]).tolist()
        texts = [record.text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        values = values_of(record.entries, texts, self._session.model_id)
        return list(zip(numbers, values, reasons_of(record.entries, texts), strict=True))

    def _put(self, line: _Line) -> None:
        self._lines += 1
        self._labelled += sum(value is not None for value in line.values)
        if line.problem:
            self._miss({"line": line.number, "annotation": None, "annotation_id": None, "file_name": None,
                        "reason": line.problem})  # fmt: skip
        for place, reason in enumerate(line.reasons[: len(line.annotations)]):
            if reason is not None:
                self._miss({
                    "line": line.number, "annotation": place, "annotation_id": line.annotations[place].id,
                    "file_name": line.image.file_name, "reason": reason,
                })  # fmt: skip
        self._sink.write(line.output())

    def _miss(self, entry: dict[str, Any]) -> None:
        self._skipped += 1
        if must_have_mask(entry["reason"]):
            self._missed += 1
            if self._fail:
                raise MalError(
                    f"line {entry['line']}: {entry['reason']}; --on-error skip lists what has no mask and goes on"
                )
        print(json.dumps(entry), file=self._log, flush=True)


def _read(number: int, text: bytes) -> _Line:
    if not text.strip():
        return _Line(number, text, _Image(), [])
    try:
        image = msgspec.json.decode(text, type=_Image)
        if not bytes(image.annotations).startswith(b"["):
            return _Line(number, text, _Image(), [], "annotations is not a list")
        return _Line(number, text, image, decode_loosely(bytes(image.annotations), LooseAnnotation))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _Line(number, text, _Image(), [], f"not a JSON object of an image: {error}")
