import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gstreamer_parts import FRAMES, HEIGHT, WIDTH, Clip, pixels, run

import mal
from mal.errors import MalError
from mal.runtime.labeler import LabelResult

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def labeler():
    with mal.MaskLabeler("student", "cpu") as labeler:
        yield labeler


def test_masks_of_a_video_file_are_the_labelers(gst: Any, clip: Clip, labeler: mal.MaskLabeler) -> None:
    from mal.gstreamer.regions import read_masks

    seen: list[tuple[np.ndarray, list]] = []
    run(
        gst,
        f"{clip.source} ! malmask ! fakesink name=out",
        {"out": lambda buffer: seen.append((pixels(gst, buffer), read_masks(buffer)))},
    )
    assert len(seen) == FRAMES
    differ = compared = 0
    for number, (frame, found) in enumerate(seen, start=1):
        rows = [row for row in clip.rows if row[0] == number]
        assert [region.id for region, _ in found] == [row[1] for row in rows]
        boxes = np.array([region.box for region, _ in found], float).reshape(-1, 4)
        expected = next(labeler.stream([(frame, boxes)]))
        for index, (_, mask) in enumerate(found):
            height, width = mask.pixels.shape
            whole = np.zeros((HEIGHT, WIDTH), bool)
            whole[mask.y : mask.y + height, mask.x : mask.x + width] = mask.pixels
            differ += int((whole != expected.masks[index]).sum())
            compared += mask.pixels.size
            assert mask.score == pytest.approx(float(expected.scores[index]), abs=1e-5)
            assert mask.flags == ",".join(expected.flags[index])
            assert mask.model == labeler.model_id
    print(f"{differ} of {compared} pixels differ")
    assert compared > 500_000
    # Batches of other sizes may sum in another order; a pixel on the boundary may then fall to the other side.
    assert differ <= 1e-5 * compared
    # The third box lies outside the frame, the fourth has no area: told, not invented.
    whats = [mask for _, mask in seen[4][1]]
    assert [mask.pixels.size > 0 for mask in whats] == [True, True, False, False]
    assert [mask.flags for mask in whats] == ["", "clipped", "box outside the image", "box has no area"]
    assert whats[1].pixels.shape == (HEIGHT - 100, WIDTH - 250)


def test_a_region_left_of_the_frame_is_read_as_signed(gst: Any) -> None:
    from mal.gstreamer.binding import GstVideo
    from mal.gstreamer.regions import read_regions

    buffer = gst.Buffer.new_allocate(None, 3, None)
    GstVideo.buffer_add_video_region_of_interest_meta(buffer, "object", 2**32 - 10, 2**32 - 5, 40, 30)
    assert [region.box for region in read_regions(buffer)] == [(-10, -5, 30, 25)]


class SlowLabeler:
    """Stands in for `MaskLabeler`: full masks, each frame after a while, and a failure when told to."""

    model_id = "slow"
    seconds = 0.0
    fails_at: int | None = None

    def __init__(self, model: str, batch: int) -> None:
        self.taken = 0

    def __call__(self, image: np.ndarray, boxes: np.ndarray) -> None: ...

    def stream(self, pairs: Iterable, max_wait_ms: float | None = None) -> Iterator[LabelResult]:
        for image, boxes in pairs:
            self.taken += 1
            if self.taken == self.fails_at:
                raise MalError("the session failed, as asked")
            time.sleep(self.seconds)
            count = len(boxes)
            yield LabelResult(np.ones((count, *image.shape[:2]), bool), np.ones(count, np.float32), [[]] * count)

    def close(self) -> None: ...


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> type[SlowLabeler]:
    kind = type("Slow", (SlowLabeler,), {})
    monkeypatch.setattr("mal.gstreamer.desk.MaskLabeler", kind)
    return kind


def masks_of(gst: Any, buffer: Any) -> list:
    from mal.gstreamer.regions import read_masks

    return read_masks(buffer)


def test_the_overlay_paints_masks_and_nothing_else(gst: Any, clip: Clip) -> None:
    seen: dict[str, list] = {"plain": [], "painted": []}
    for name, option in (("plain", ""), ("painted", "overlay=true")):
        run(
            gst,
            f"{clip.source} ! malmask {option} ! fakesink name=out",
            {"out": lambda buffer, name=name: seen[name].append((pixels(gst, buffer), masks_of(gst, buffer)))},
        )
    assert len(seen["plain"]) == len(seen["painted"]) == FRAMES
    for (plain, _), (painted, found) in zip(seen["plain"], seen["painted"], strict=True):
        union = np.zeros((HEIGHT, WIDTH), bool)
        for _, mask in found:
            height, width = mask.pixels.shape
            union[mask.y : mask.y + height, mask.x : mask.x + width] |= mask.pixels
        assert (plain == painted)[~union].all()
        assert not union.any() or (plain != painted)[union].any(axis=1).mean() > 0.95


def test_streams_share_a_desk_and_keep_their_frames(gst: Any, clip: Clip) -> None:
    from mal.gstreamer.desk import Desk

    streams = ("one", "two", "three")
    seen: dict[str, list] = {name: [] for name in streams}
    desks: list[int] = []
    run(
        gst,
        "  ".join(f"{clip.source} ! malmask ! fakesink name={name}" for name in streams),
        {name: lambda buffer, name=name: seen[name].append((buffer.pts, masks_of(gst, buffer))) for name in streams},
        during=lambda _: desks.append(len(Desk._opened)),
    )
    assert desks == [1]
    assert not Desk._opened
    for name in streams:
        times = [time for time, _ in seen[name]]
        assert len(times) == FRAMES
        assert times == sorted(times)
        for (_, mine), (_, first) in zip(seen[name], seen["one"], strict=True):
            assert [region.box for region, _ in mine] == [region.box for region, _ in first]
            assert all((mask.pixels == other.pixels).all() for (_, mask), (_, other) in zip(mine, first, strict=True))


def test_streams_together_have_two_batches_under_way(gst: Any, clip: Clip, slow: type[SlowLabeler]) -> None:
    from mal.gstreamer.desk import Desk

    slow.seconds = 0.005
    peaks: list[int] = []

    def watch(_: Any) -> None:
        (desk,) = Desk._opened.values()
        peaks.append(desk._objects)

    names = ("one", "two", "three", "four")
    run(
        gst,
        "  ".join(f"{clip.source} ! malmask batch=2 ! fakesink name={name}" for name in names),
        dict.fromkeys(names, watch),
    )
    assert len(peaks) == len(names) * FRAMES
    assert 0 < max(peaks) <= 2 * 2 - 1 + 4  # the last frame to enter has four at most


@pytest.mark.parametrize("drop", [True, False])
def test_it_drops_rather_than_lags_only_when_told(gst: Any, clip: Clip, slow: type[SlowLabeler], drop: bool) -> None:
    slow.seconds = 0.05
    frames: list[int] = []
    mask = run(
        gst,
        f"{clip.source} ! malmask name=mask batch=2 drop={drop} ! fakesink name=out",
        {"out": lambda buffer: frames.append(buffer.pts)},
    )
    assert frames == sorted(frames)
    assert len(frames) + mask.props.dropped == FRAMES
    assert (mask.props.dropped > 5) == drop
    assert len(frames) > 2


def test_every_frame_has_its_own_masks_after_a_flush(gst: Any, clip: Clip, slow: type[SlowLabeler]) -> None:
    slow.seconds = 0.01
    seen: list[tuple[int, bool]] = []

    def see(buffer: Any) -> None:
        frame = round(buffer.pts * 30 / gst.SECOND) + 1
        found = masks_of(gst, buffer)
        right = [row[2:4] for row in clip.rows if row[0] == frame]
        assert len(found) == len(right) or len(seen) > 5  # motboxes counts on after the seek
        seen.append((frame, all(mask is not None for _, mask in found)))

    def seek(pipeline: Any) -> None:
        time.sleep(0.1)
        pipeline.seek_simple(gst.Format.TIME, gst.SeekFlags.FLUSH | gst.SeekFlags.KEY_UNIT, 0)

    run(gst, f"{clip.source} ! malmask batch=4 ! fakesink name=out", {"out": see}, during=seek)
    frames = [frame for frame, _ in seen]
    assert frames[-FRAMES:] == list(range(1, FRAMES + 1))
    assert all(complete for _, complete in seen)


def test_a_session_that_fails_ends_the_pipeline_with_its_words(gst: Any, clip: Clip, slow: type[SlowLabeler]) -> None:
    from mal.gstreamer.desk import Desk

    slow.fails_at = 5
    with pytest.raises(RuntimeError, match="the session failed, as asked"):
        run(gst, f"{clip.source} ! malmask ! fakesink")
    assert not Desk._opened


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("videotestsrc num-buffers=1 ! video/x-raw,format=RGB ! malmask model=nothing.onnx ! fakesink", "nothing.onnx"),
        ("videotestsrc num-buffers=1 ! video/x-raw,format=I420 ! malmask ! fakesink", "can't handle caps"),
    ],
    ids=["no such model", "not RGB"],
)
def test_what_cannot_work_is_said_on_the_bus(gst: Any, text: str, words: str) -> None:
    from mal.gstreamer.binding import GLib

    with pytest.raises((RuntimeError, GLib.Error), match=words):
        run(gst, text)


def test_the_latency_is_told(gst: Any, clip: Clip) -> None:
    told: list[tuple] = []

    def ask(pipeline: Any) -> None:
        query = gst.Query.new_latency()
        assert pipeline.query(query)
        told.append(query.parse_latency())

    run(
        gst,
        "videotestsrc is-live=true num-buffers=10 ! video/x-raw,format=RGB,framerate=30/1 "
        "! malmask max-wait-ms=70 batch=4 ! fakesink sync=true",
        during=ask,
    )
    ((live, least, _),) = told
    assert live
    assert 70e6 < least < 5e9  # the wait, and the time of two batches


def test_gst_launch_finds_it(gst: Any, clip: Clip, tmp_path: Path) -> None:
    launch = shutil.which("gst-launch-1.0")
    if not launch:
        pytest.skip("needs gst-launch-1.0 (gstreamer1.0-tools)")
    lines = subprocess.run([sys.executable, "-m", "mal.gstreamer"], capture_output=True, text=True, check=True).stdout
    folders = dict(line.removeprefix("export ").split("=", 1) for line in lines.splitlines())
    environment = os.environ | folders
    environment["GST_PLUGIN_PATH"] += f":{ROOT / 'examples' / 'gstreamer'}"
    environment["GST_REGISTRY"] = str(tmp_path / "registry.bin")
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # an active virtual environment
    output = tmp_path / "painted.webm"
    words = f"{clip.source} ! malmask overlay=true ! videoconvert ! vp8enc deadline=1 ! webmmux ! filesink"
    done = subprocess.run(
        [launch, *words.split(), f"location={output}"], env=environment, capture_output=True, text=True, check=False
    )
    if "no element" in done.stderr and not any(Path("/usr/lib").rglob("libgstpython.so")):
        pytest.skip("needs gstreamer1.0-python3-plugin-loader")
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 10_000


def test_memory_stays_flat(gst: Any, tmp_path: Path, slow: type[SlowLabeler]) -> None:
    """A mask of 300 x 300 bytes that is not freed shows: 18 MB over the second half."""
    frames = 20_000 if os.environ.get("MAL_SOAK") else 200
    boxes = tmp_path / "boxes.txt"
    boxes.write_text(
        "".join(f"{frame}, {track}, 10, 20, 300, 300\n" for frame in range(1, frames + 1) for track in (1, 2))
    )
    memory: list[int] = []
    page = resource.getpagesize()
    run(
        gst,
        f"videotestsrc num-buffers={frames} ! video/x-raw,format=RGB,width=640,height=480 "
        f"! motboxes location={boxes} ! malmask batch=4 overlay=true ! fakesink name=out",
        {"out": lambda _: memory.append(page * int(Path("/proc/self/statm").read_text().split()[1]))},
        seconds=3600,
    )
    half = frames // 2
    growth = (max(memory[half:]) - max(memory[frames // 10 : half])) / 1e6
    print(f"{growth:.1f} MB more in the second half of {frames} frames")
    assert growth < 8
