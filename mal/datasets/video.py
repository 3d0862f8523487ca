"""Boxes of tracked objects in one video: YouTube-VIS or COCO-video JSON, or a MOT text file; YouTube-VIS out.

YouTube-VIS     {"videos": [one], "annotations": [{"id", "video_id", "bboxes": [[x, y, w, h] or null, a frame each]}]}
COCO-video      {"videos": [one], "images": [{"id", "frame_id" from 0}], "annotations": [{"id", "image_id",
                "instance_id", "bbox"}]}; also under TAO's names, frame_index and track_id
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
    """Read the boxes of a video; JSON is YouTube-VIS or COCO-video (packed or not), everything else MOT.

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
    if _are_objects(document.get("images")) and not any("bboxes" in each for each in annotations):
        return _from_coco_video(path, document, annotations)
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
    boxes: list[_Box] = []
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
        boxes.append(_Box(track, frame - 1, box, {"category_id": max(category, 1)}))
    length = 1 + max((box.frame for box in boxes), default=-1)
    document: dict[str, Any] = {"videos": [{"id": 1, "length": length}]}
    tracks = _gather(path, document, boxes, length)
    found = sorted({each["category_id"] for each in tracks.annotations})
    document["categories"] = [{"id": each, "name": f"class {each}"} for each in found]
    return tracks


def _from_coco_video(path: Path, document: dict[str, Any], annotations: list[dict[str, Any]]) -> Tracks:
    frames: dict[Any, int] = {}
    for image in document["images"]:
        frame = image.get("frame_id", image.get("frame_index"))
        if type(frame) is not int or not 0 <= frame < MAX_FRAME or not _is_id(image.get("id")):
            raise BoxFileError(
                f"{path}: image {image.get('id')!r} has the frame_id {frame!r}; expected its frame, from 0"
            )
        if image.get("video_id") != document["videos"][0].get("id"):
            raise BoxFileError(f"{path}: image {image['id']!r} belongs to video {image.get('video_id')!r}, another one")
        if frames.setdefault(image["id"], frame) != frame:
            raise BoxFileError(
                f"{path}: image {image['id']!r} is there twice, in frames {frames[image['id']]} and {frame}"
            )
    boxes: list[_Box] = []
    for annotation in annotations:
        where = f"{path}: annotation {annotation.get('id')!r}"
        track, image = annotation.get("instance_id", annotation.get("track_id")), annotation.get("image_id")
        if not _is_id(track):
            raise BoxFileError(f"{where} has no `instance_id`, nor `bboxes` of its own; track the boxes first")
        if not _is_id(image) or image not in frames:
            raise BoxFileError(f"{where} is on image {image!r}, which the file does not list")
        boxes.append(_Box(track, frames[image], annotation.get("bbox"), annotation))
    length = document["videos"][0].get("length")
    stated = length if type(length) is int and length <= MAX_FRAME else 0
    return _gather(path, document, boxes, max(stated, 1 + max(frames.values(), default=-1)))


class _Box(NamedTuple):
    """A box of a track in a frame, where a file lists each on its own."""

    track: Any
    frame: int  # from 0
    box: Any  # as it came
    said: dict[str, Any]  # what else the file says of it


def _gather(path: Path, document: dict[str, Any], boxes: list[_Box], length: int) -> Tracks:
    """An annotation for each track, as YouTube-VIS has it; what a track is, its first box says."""
    place: dict[Any, int] = {}
    annotations: list[dict[str, Any]] = []
    rows: dict[tuple[int, int], tuple[float, float, float, float]] = {}
    for track, frame, box, said in boxes:
        at = place.setdefault(track, len(place))
        if at == len(annotations):
            kept: dict[str, Any] = {"category_id": said.get("category_id"), "iscrowd": 1}
            kept |= {"bboxes": [None] * length} | ({"annotation_ids": [None] * length} if "id" in said else {})
            annotations.append({"id": track, "video_id": document["videos"][0].get("id"), **kept})
        if (at, frame) in rows:
            raise BoxFileError(f"{path}: track {track} has two boxes in frame {frame + 1}")
        rows[at, frame] = corners(box)
        annotations[at]["bboxes"][frame] = box
        annotations[at]["iscrowd"] &= is_crowd(said.get("iscrowd"))  # where all its boxes are
        if "id" in said:
            annotations[at]["annotation_ids"][frame] = said["id"]
    return Tracks(document, annotations, [(*key, row) for key, row in rows.items()])


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _are_objects(values: Any) -> TypeGuard[list[dict[str, Any]]]:
    return type(values) is list and all(type(value) is dict for value in values)
