"""Boxes of tracked objects in one video: YouTube-VIS JSON or a MOT text file; YouTube-VIS out.

YouTube-VIS     {"videos": [one], "annotations": [{"id", "video_id", "bboxes": [[x, y, w, h] or null, a frame each]}]}
MOT             frame,id,x,y,w,h[,confidence[,class[,...]]], a box a line, frames from 1; confidence 0: not considered

Masks go in as `segmentations`, `areas` and `mal`, in the place of each box; all other keys stay as they came.
"""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from mal.datasets.box_file import reason_of_box
from mal.datasets.coco import corners, is_crowd
from mal.datasets.document import open_document
from mal.errors import BoxFileError

MAX_FRAME = 1 << 24
"""Frames of a video; three days at 60 a second. What is behind is no frame but a mistake."""


class FrameMask(NamedTuple):
    """What a track gets in one frame."""

    segmentation: bytes  # JSON text
    area: int
    score: float
    flags: list[str]


class Tracks:
    """Boxes of the tracks of one video, N of them, by frame.

    document    all but the annotations
    annotations a track each
    track       (N,) int32 place of the box's track in `annotations`
    frame       (N,) int32 from 0, ascending
    boxes       (N, 4) float64 corners as they came, NaN where they cannot be read
    size        (width, height) of the video as the file states it, 0 where it does not
    """

    def __init__(
        self,
        document: dict[str, Any],
        annotations: list[dict[str, Any]],
        rows: Iterable[tuple[int, int, tuple[float, float, float, float]]],
    ) -> None:
        found = np.array(
            [(track, frame, *box) for track, frame, box in rows],
            np.dtype([("track", "i4"), ("frame", "i4"), *((name, "f8") for name in ("x0", "y0", "x1", "y1"))]),
        )
        found = found[np.argsort(found["frame"], kind="stable")]
        self.document, self.annotations = document, annotations
        self.track: NDArray[np.int32] = found["track"].copy()
        self.frame: NDArray[np.int32] = found["frame"].copy()
        self.boxes: NDArray[np.float64] = np.stack([found[name] for name in ("x0", "y0", "x1", "y1")], axis=1)
        video = document["videos"][0]
        self.size = tuple(side if type(side := video.get(name)) is int else 0 for name in ("width", "height"))

    def __len__(self) -> int:
        return len(self.frame)

    def reason(self, row: int) -> str | None:
        """Why this box cannot be labelled in any image; None if it can."""
        return reason_of_box(self.boxes[row], is_crowd(self.annotations[self.track[row]].get("iscrowd")))

    def write(
        self, stream: BinaryIO, masks: Callable[[NDArray[np.int64]], list[FrameMask | None]], model_id: str
    ) -> None:
        """Write YouTube-VIS JSON, a track at a time.

        Args:
            stream: where.
            masks: rows -> what each gets, None for one that has no mask.
            model_id: of the model.
        """
        order = np.argsort(self.track, kind="stable")
        bounds = np.searchsorted(self.track[order], np.arange(len(self.annotations) + 1))
        stream.write(orjson.dumps(self.document)[:-1] + b',"annotations":[')
        for track, annotation in enumerate(self.annotations):
            rows = order[bounds[track] : bounds[track + 1]]
            stream.write((b",\n" if track else b"\n") + self._labelled(annotation, rows, masks(rows), model_id))
        stream.write(b"\n]}\n")

    def _labelled(
        self, annotation: dict[str, Any], rows: NDArray[np.int64], found: list[FrameMask | None], model_id: str
    ) -> bytes:
        if not any(found):
            return orjson.dumps(annotation)
        length = len(annotation["bboxes"])
        segmentations: list[orjson.Fragment | None] = [None] * length
        areas: list[int | None] = [None] * length
        scores: list[float | None] = [None] * length
        flags: list[list[str] | None] = [None] * length
        for frame, mask in zip(self.frame[rows].tolist(), found, strict=True):
            if mask:
                segmentations[frame], areas[frame] = orjson.Fragment(mask.segmentation), mask.area
                scores[frame], flags[frame] = round(mask.score, 4), mask.flags
        ours = {"scores": scores, "flags": flags, "model": model_id}
        return orjson.dumps({**annotation, "segmentations": segmentations, "areas": areas, "mal": ours})


def read_tracks(path: Path) -> Tracks:
    """Read the boxes of a video; JSON is YouTube-VIS (packed or not), everything else MOT.

    Raises:
        BoxFileError: no such file, neither format, more than one video, boxes without tracks.
    """
    document = open_document(path)
    text = document.read(0, document.size)
    return _from_json(path, text) if text.lstrip()[:1] in (b"{", b"[") else _from_mot(path, text)


def _from_json(path: Path, text: bytes) -> Tracks:
    try:
        document: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BoxFileError(f"{path} is not readable JSON: {error}") from None
    videos = document.get("videos") if isinstance(document, dict) else None
    annotations = document.pop("annotations", None) if isinstance(document, dict) else None
    if not (_are_objects(videos) and _are_objects(annotations)):
        raise BoxFileError(f"{path}: expected YouTube-VIS JSON, an object with lists of videos and annotations")
    if len(videos) != 1:
        raise BoxFileError(f"{path} has {len(videos)} videos; --video labels one: expected a file of its tracks alone")
    rows: list[tuple[int, int, tuple[float, float, float, float]]] = []
    for track, annotation in enumerate(annotations):
        boxes = annotation.get("bboxes")
        if type(boxes) is not list or len(boxes) > MAX_FRAME:
            raise BoxFileError(
                f"{path}: annotation {annotation.get('id')!r} has no list `bboxes`, a box or null for each frame"
            )
        if annotation.get("video_id") != videos[0].get("id"):
            raise BoxFileError(
                f"{path}: annotation {annotation.get('id')!r} belongs to video {annotation.get('video_id')!r}, "
                f"the file has only {videos[0].get('id')!r}"
            )
        rows += [(track, frame, corners(box)) for frame, box in enumerate(boxes) if box is not None]
    return Tracks(document, annotations, rows)


def _from_mot(path: Path, text: bytes) -> Tracks:
    try:
        lines = [line for line in csv.reader(text.decode().splitlines(), skipinitialspace=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BoxFileError(f"{path} is neither JSON nor lines of a MOT file: {error}") from None
    number_of: dict[int, int] = {}  # place by the file's own number
    places: list[tuple[int, int, list[float]]] = []
    categories: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            frame, track = int(float(line[0])), int(float(line[1]))
            box = [float(value) for value in line[2:6]]
            category = int(float(line[7])) if len(line) > 7 else 1
            if len(box) != 4 or not 1 <= frame <= MAX_FRAME:
                raise ValueError
        except (ValueError, IndexError, OverflowError):
            raise BoxFileError(
                f"{path}, line {number}: {','.join(line)[:60]!r}; expected frame (from 1),id,x,y,w,h[,...]"
            ) from None
        if track < 0:
            raise BoxFileError(
                f"{path}, line {number}: a detection without a track (id {track}); track the boxes first"
            )
        if len(line) > 6 and line[6].strip() in ("0", "0.0"):
            continue
        at = number_of.setdefault(track, len(number_of))
        categories.setdefault(at, max(category, 1))
        places.append((at, frame - 1, box))
    length = 1 + max((frame for _, frame, _ in places), default=-1)
    annotations: list[dict[str, Any]] = [
        {"id": track, "video_id": 1, "category_id": categories[at], "iscrowd": 0, "bboxes": [None] * length}
        for track, at in number_of.items()
    ]
    for at, frame, box in places:
        if annotations[at]["bboxes"][frame] is not None:
            raise BoxFileError(f"{path}: track {annotations[at]['id']} has two boxes in frame {frame + 1}")
        annotations[at]["bboxes"][frame] = box
    document = {
        "videos": [{"id": 1, "length": length}],
        "categories": [{"id": each, "name": f"class {each}"} for each in sorted(set(categories.values()))],
    }
    return Tracks(document, annotations, [(at, frame, corners(box)) for at, frame, box in places])


def _are_objects(values: Any) -> TypeGuard[list[dict[str, Any]]]:
    return type(values) is list and all(type(value) is dict for value in values)
