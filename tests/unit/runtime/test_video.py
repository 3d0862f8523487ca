"""`mal label TRACKS --video FILE`: the masks of the frames' own images, tracks that are no good, memory that stays."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mal.cli import app
from mal.errors import BoxFileError, InputError, MalError, UsageError
from mal.images import Picture
from mal.runtime import video as video_module
from mal.runtime.labeler import MaskLabeler
from mal.runtime.objects import SharedImage
from mal.runtime.video import label_video

av = pytest.importorskip("av")

SIZE = (96, 64)


def write_video(
    path: Path, frames: list[np.ndarray], codec: str = "ffv1", pixels: str = "bgr0", at: list[int] | None = None
) -> Path:
    """Without loss unless another codec is asked for, so that masks can be compared; at: when the frames are shown."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, pixels
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = at[number] if at else number
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@pytest.fixture
def frames(rng: np.random.Generator) -> list[np.ndarray]:
    small = rng.integers(0, 255, (5, 8, 12, 3), dtype=np.uint8)
    return [np.repeat(np.repeat(image, 8, axis=0), 8, axis=1) for image in small]


@pytest.fixture
def video(tmp_path: Path, frames: list[np.ndarray]) -> Path:
    return write_video(tmp_path / "clip.mkv", frames)


VIS: dict[str, Any] = {
    "info": {"kept": 1},
    "videos": [{"id": 7, "width": 96, "height": 64, "length": 5, "file_names": ["a"]}],
    "categories": [{"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "video_id": 7, "category_id": 3, "note": "kept",
         "bboxes": [[5, 5, 40, 30], None, [20, 8, 50, 50], None, [-9, 4, 30, 30]]},
        {"id": 2, "video_id": 7, "category_id": 3, "bboxes": [None, None, [30, 20, 20, 22], [200, 5, 9, 9], ["x"]]},
        {"id": 3, "video_id": 7, "category_id": 3, "iscrowd": 1, "bboxes": [[1, 1, 50, 50]]},
        {"id": 4, "video_id": 7, "category_id": 3, "bboxes": [None] * 7 + [[1, 2, 3, 4]]},
    ],
}  # fmt: skip


def masks_of(output: Path) -> dict[tuple[int, int], np.ndarray]:
    """By annotation and frame."""
    found = {}
    for each in json.loads(output.read_bytes())["annotations"]:
        for frame, segmentation in enumerate(each.get("segmentations", ())):
            if segmentation:
                found[each["id"], frame] = coco_mask.decode(segmentation).astype(bool)
                assert each["areas"][frame] == found[each["id"], frame].sum()
    return found


def test_the_masks_are_those_of_the_images(tmp_path: Path, video: Path, frames: list[np.ndarray], model: Path) -> None:
    tracks = tmp_path / "tracks.json"
    tracks.write_text(json.dumps(VIS))
    report = label_video(tracks, video, model=model, device="cpu", batch=3)
    found, document = masks_of(report.output), json.loads(report.output.read_bytes())
    assert set(found) == {(1, 0), (1, 2), (1, 4), (2, 2)}
    with MaskLabeler(model, "cpu") as labeler:
        for (track, frame), mask in found.items():
            x, y, width, height = VIS["annotations"][track - 1]["bboxes"][frame]
            masks, scores = labeler(frames[frame], [[x, y, x + width, y + height]])
            assert (masks[0] == mask).all()
            written = document["annotations"][track - 1]["mal"]
            assert written["scores"][frame] == pytest.approx(scores[0], abs=1e-4)
    assert document["annotations"][0]["mal"]["flags"] == [[], None, [], None, ["clipped"]]
    for each, given in zip(document["annotations"], VIS["annotations"], strict=True):
        assert {key: each[key] for key in given} == given
    assert {**document, "annotations": VIS["annotations"]} == VIS
    listed = [json.loads(line) for line in Path(f"{report.output}.skipped.jsonl").read_text().splitlines()]
    assert [(each["annotation_id"], each["frame"]) for each in listed] == [(3, 0), (2, 3), (2, 4), (4, 7)]
    assert listed[3]["reason"] == "the video has 5 frames"
    assert (report.exit_code, report.labelled, report.frames) == (3, 4, 5)


def test_mot_boxes_give_the_same_masks(tmp_path: Path, video: Path, model: Path) -> None:
    vis, mot = tmp_path / "vis.json", tmp_path / "gt.txt"
    vis.write_text(json.dumps({**VIS, "annotations": VIS["annotations"][:1]}))
    lines = [
        f"{frame + 1}, 1, {', '.join(map(str, box))}, 1, 2, 0.9"
        for frame, box in enumerate(VIS["annotations"][0]["bboxes"])
        if box
    ]
    mot.write_text("\n".join([*reversed(lines), "2,8,1,1,9,9,0,1,1", ""]))
    report = label_video(mot, video, model=model, device="cpu")
    assert report.exit_code == 0
    document = json.loads(report.output.read_bytes())
    assert document["videos"] == [{"id": 1, "length": 5, "width": 96, "height": 64}]
    assert document["categories"] == [{"id": 2, "name": "class 2"}]
    expected = masks_of(label_video(vis, video, model=model, device="cpu").output)
    found = masks_of(report.output)
    assert found.keys() == expected.keys()
    assert all((found[key] == expected[key]).all() for key in found)


def test_coco_video_boxes_give_the_same_masks(tmp_path: Path, video: Path, model: Path) -> None:
    """An image for each frame, in any order; a track of text; a crowd box within a track; a box that is none."""
    vis, coco = tmp_path / "vis.json", tmp_path / "coco.json"
    vis.write_text(json.dumps({**VIS, "annotations": VIS["annotations"][:1]}))
    images = [{"id": f"i{frame}", "video_id": 7, "frame_id": frame, "file_name": "x"} for frame in (3, 4, 0, 1, 2)]
    rows = [
        {
            "id": 50 + frame,
            "image_id": f"i{frame}",
            "instance_id": 1,
            "category_id": 3,
            "bbox": box,
            "iscrowd": frame == 0,
        }
        for frame, box in enumerate(VIS["annotations"][0]["bboxes"])
        if box
    ]
    broken = {"id": "x", "image_id": "i1", "track_id": "b", "category_id": 3, "bbox": None}
    coco.write_text(json.dumps({**VIS, "images": images, "annotations": [*rows[::-1], broken]}))
    report = label_video(coco, video, model=model, device="cpu")
    assert (report.exit_code, report.tracks, report.boxes, report.labelled) == (3, 2, 4, 3)
    document = json.loads(report.output.read_bytes())
    assert document["images"] == images
    first, second = document["annotations"]
    assert (first["video_id"], first["category_id"], first["iscrowd"]) == (7, 3, 0)
    assert first["bboxes"] == VIS["annotations"][0]["bboxes"]
    assert first["annotation_ids"] == [50, None, 52, None, 54]
    assert (second["id"], second["annotation_ids"]) == ("b", [None, "x", None, None, None])
    listed = json.loads(Path(f"{report.output}.skipped.jsonl").read_text())
    assert (listed["annotation_id"], listed["frame"]) == ("b", 1)
    expected = masks_of(label_video(vis, video, model=model, device="cpu").output)
    found = masks_of(report.output)
    assert found.keys() == expected.keys()
    assert all((found[key] == expected[key]).all() for key in found)


def coco_video(image: dict[str, Any], *annotations: dict[str, Any]) -> str:
    """A file of one frame; each argument changes what would be right."""
    right = {"id": 5, "image_id": 1, "instance_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
    rows = [right | each for each in annotations]
    images = [{"id": 1, "video_id": 1, "frame_id": 0} | image]
    return json.dumps({"videos": [{"id": 1}], "images": images, "annotations": rows})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (coco_video({"frame_id": -1}), "image 1 has the frame_id -1"),
        (coco_video({"id": [1]}), r"image \[1\]"),
        (coco_video({"video_id": 2}), "image 1 belongs to video 2"),
        (coco_video({}, {"image_id": 2}), "annotation 5 is on image 2"),
        (coco_video({}, {"instance_id": None}), "annotation 5 has no `instance_id`, nor `bboxes`"),
        (coco_video({}, {}, {"id": 6}), "track 1 has two boxes in frame 1"),
        (
            coco_video({}).replace('"images": [', '"images": [{"id": 1, "video_id": 1, "frame_id": 3}, '),
            "image 1 is there twice",
        ),
        ("", "is empty"),
        ("{", "not readable JSON"),
        ("[1]", "expected YouTube-VIS JSON"),
        ('{"videos": [1], "annotations": []}', "expected YouTube-VIS JSON"),
        ('{"videos": [{"id": 1}, {"id": 2}], "annotations": []}', "has 2 videos"),
        ('{"videos": [{"id": 1}], "annotations": [{"id": 5, "video_id": 1, "bbox": [1]}]}', "5 has no list `bboxes`"),
        ('{"videos": [{"id": 1}], "annotations": [{"id": 5, "video_id": 2, "bboxes": []}]}', "belongs to video 2"),
        ("1,2,3,4", "line 1: '1,2,3,4'; expected frame"),
        ("1,1,3,4,5,6\n0,1,3,4,5,6", "line 2"),
        ("nan,1,3,4,5,6", "line 1"),
        ("1,-1,3,4,5,6", "a detection without a track"),
        ("1,1,3,4,5,6\n1,1,3,4,5,7", "track 1 has two boxes in frame 1"),
    ],
)
def test_tracks_that_are_none(tmp_path: Path, video: Path, model: Path, text: str, message: str) -> None:
    path = tmp_path / "tracks"
    path.write_text(text)
    with pytest.raises(BoxFileError, match=message):
        label_video(path, video, model=model, device="cpu")


def test_videos_that_are_none(tmp_path: Path, video: Path, model: Path) -> None:
    tracks, bad = tmp_path / "tracks.json", tmp_path / "bad.mp4"
    tracks.write_text(json.dumps(VIS))
    bad.write_bytes(b"no video" * 100)
    text = tmp_path / "gt.txt"
    text.write_text("1,1,3,4,5,6\n" * 50)
    with pytest.raises(InputError, match="is a text file, no video"):  # the other way round
        label_video(tracks, text, model=model, device="cpu")
    for path in (bad, tmp_path / "nothing.mp4", tmp_path):
        with pytest.raises(InputError, match="cannot read video"):
            label_video(tracks, path, model=model, device="cpu")
    tracks.write_text(json.dumps({**VIS, "videos": [{**VIS["videos"][0], "width": 97}]}))
    with pytest.raises(InputError, match="96 x 64 pixels, its tracks are for 97 x 64"):
        label_video(tracks, video, model=model, device="cpu")


def test_a_video_that_is_cut_off_loses_no_box(tmp_path: Path, video: Path, model: Path) -> None:
    tracks = tmp_path / "tracks.json"
    tracks.write_text(json.dumps(VIS))
    data = video.read_bytes()
    video.write_bytes(data[: len(data) * 2 // 3])
    report = label_video(tracks, video, model=model, device="cpu")
    assert report.exit_code == 3
    assert report.labelled + sum(report.skipped_by_reason.values()) == report.boxes == 8
    assert 0 < report.labelled < 4


def test_nothing_behind_damage_is_labelled(tmp_path: Path, model: Path, frames: list[np.ndarray]) -> None:
    """A decoder would guess at the damaged frame, or leave frames out, and go on."""
    tracks, path = tmp_path / "tracks.txt", tmp_path / "clip.mp4"
    tracks.write_text("\n".join(f"{number + 1},1,5,5,80,50" for number in range(60)))
    write_video(path, frames * 12, "mpeg4", "yuv420p")
    whole = masks_of(label_video(tracks, path, model=model, device="cpu").output)
    assert len(whole) == 60
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 60] = np.random.default_rng(3).bytes(60)
    path.write_bytes(data)
    report = label_video(tracks, path, model=model, device="cpu")
    found = masks_of(report.output)
    assert all((whole[key] == mask).all() for key, mask in found.items())
    assert 10 < len(found) == report.labelled < 60
    assert report.labelled + sum(report.skipped_by_reason.values()) == 60
    assert any("cannot be read behind frame" in reason for reason in report.skipped_by_reason)


def test_frames_count_by_their_order_whenever_they_are_shown(
    tmp_path: Path, video: Path, frames: list[np.ndarray], model: Path
) -> None:
    tracks = tmp_path / "tracks.json"
    tracks.write_text(json.dumps(VIS))
    steady = label_video(tracks, video, model=model, device="cpu", output=tmp_path / "steady.json")
    uneven = write_video(tmp_path / "uneven.mkv", frames, at=[0, 1, 7, 8, 40])
    report = label_video(tracks, uneven, model=model, device="cpu", output=tmp_path / "uneven.json")
    assert report.output.read_bytes() == steady.output.read_bytes()


def test_the_command_and_what_does_not_go_with_it(tmp_path: Path, video: Path, model: Path) -> None:
    tracks, output = tmp_path / "tracks.json", tmp_path / "masks.json.gz"
    tracks.write_text(json.dumps({**VIS, "annotations": VIS["annotations"][:1]}))
    words = ["label", str(tracks), "--video", str(video), "--engine", str(model), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "mal.cli", *words, "-o", output], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{output}: 3 masks for 3 boxes of 1 tracks on 3 frames")
    labelled = json.loads(gzip.decompress(output.read_bytes()))["annotations"][0]
    assert [bool(each) for each in labelled["segmentations"]] == [True, False, True, False, True]
    for flags in (
        ["--images", "."], ["--images-json", "a.json"], ["--format", "polygon"], ["--fresh"], ["--rebuild"],
        ["--ray", ""], ["--allow-outside"],
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"{flags[0]} does not go with --video"):
            app([*words, *flags], standalone_mode=False)


def test_on_error_fail_names_the_box(tmp_path: Path, video: Path, model: Path) -> None:
    tracks = tmp_path / "tracks.json"
    tracks.write_text(json.dumps({**VIS, "annotations": VIS["annotations"][1:2]}))
    with pytest.raises(MalError, match="annotation 2 in frame 3 cannot be labelled"):
        label_video(tracks, video, model=model, device="cpu", on_error="fail")
    assert not (tmp_path / "tracks.masks.json").exists()


def test_few_frames_are_in_memory_however_many_there_are(
    tmp_path: Path, model: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: WeakSet[SharedImage] = WeakSet()
    most = [0]

    class Counted(SharedImage):
        def __init__(self, load: Callable[[], Picture]) -> None:
            super().__init__(load)
            alive.add(self)
            most[0] = max(most[0], len(alive))

    monkeypatch.setattr(video_module, "SharedImage", Counted)
    tracks = tmp_path / "tracks.txt"
    tracks.write_text("\n".join(f"{number + 1},1,5,5,40,30" for number in range(300)))
    long = write_video(tmp_path / "long.mkv", frames * 60)
    report = label_video(tracks, long, model=model, device="cpu", batch=4, workers=2)
    assert report.labelled == 300
    assert 0 < most[0] <= 3 * 4 + 8  # three batches ahead, and those in the threads
