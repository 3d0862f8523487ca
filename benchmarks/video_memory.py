"""Resident memory of `mal label --video` over a long video: its slope, and whether that is more than noise.

    python -m benchmarks.video_memory --frames 5000

A generated video with two tracks; the student's place is taken by a session that costs nothing. Exits 1 if the second
half grows by more than 1 MB and twice the noise, beside the 47 bytes a box that results are known to take.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from unittest import mock

import av
import numpy as np

from benchmarks.memory import FakeSession
from benchmarks.soak import resident_mb
from mal.runtime import video
from mal.runtime.video import label_video

WIDTH, HEIGHT = 320, 240
SAMPLES = 200
KNOWN = 47  # bytes a box: track, frame, corners, entry, offset


def write_video(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(frames):
            image = np.full((HEIGHT, WIDTH, 3), number % 200, np.uint8)
            image[60:120, number % 200 : number % 200 + 60] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def measure(frames: int) -> dict[str, float | int | str]:
    """Label the video; the slope of resident memory over its second half, in bytes a frame."""
    at: list[int] = []
    memory: list[float] = []
    finish = video.record_of
    step = max(1, 2 * frames // SAMPLES)  # boxes

    def sampled(*some, **more):
        record = finish(*some, **more)
        if not at or record.stop - at[-1] >= step:
            at.append(record.stop)
            memory.append(resident_mb())
        return record

    with tempfile.TemporaryDirectory() as name:
        clip, tracks = Path(name) / "clip.mp4", Path(name) / "tracks.txt"
        write_video(clip, frames)
        tracks.write_text("".join(
            f"{number + 1},1,{number % 200},60,60,60\n{number + 1},2,20,20,40,150\n" for number in range(frames)
        ))  # fmt: skip
        with (
            mock.patch.object(video, "open_session", return_value=FakeSession(192)),
            mock.patch.object(video, "record_of", sampled),
        ):
            report = label_video(tracks, clip, workers=2)
        assert report.labelled == 2 * frames, report.skipped_by_reason
    half = len(at) // 2  # before that, allocators still learn how much they need
    x, y = np.array(at[half:], float) / 2, np.array(memory[half:])
    slope, offset = np.polyfit(x, y, 1)
    noise = float(np.std(y - (slope * x + offset)))
    grown = float(slope * (x[-1] - x[0])) - 2 * KNOWN * (x[-1] - x[0]) / 1e6
    return {
        "frames": frames,
        "boxes": 2 * frames,
        "seconds": report.seconds,
        "resident_mb_at_half": round(float(y[0]), 1),
        "resident_mb_at_end": round(float(y[-1]), 1),
        "peak_mb": report.peak_rss_mb,
        "slope_bytes_a_frame": round(float(slope) * 1e6, 1),
        "noise_mb": round(noise, 2),
        "verdict": "flat" if grown <= max(2 * noise, 1.0) else "grows",
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=5000)
    found = measure(parser.parse_args().frames)
    print(json.dumps(found))
    sys.exit(found["verdict"] != "flat")


if __name__ == "__main__":
    main()
