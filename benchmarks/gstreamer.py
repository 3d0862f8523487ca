"""`malmask` on a long video: throughput, latency and memory, beside the bare session in the same run.

    python benchmarks/gstreamer.py [--frames 1000] [--objects 2] [--json benchmarks/results/gstreamer.json]

The video is made of one of the built-in photographs, moving; GStreamer's Python binding comes from the system
(docs/gstreamer.md). Three runs: as fast as it goes; live at 30 frames a second, waiting for every frame; live and
dropping. Latency is the time from the element's sink pad to its source pad.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

import cv2
import numpy as np

import mal
from mal.runtime.machine import cpu_count

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples" / "gstreamer" / "python"))
sys.path.append("/usr/lib/python3/dist-packages")  # behind everything else: only for the binding

from mal.gstreamer.binding import Gst
from mal.gstreamer.element import MalMask

WIDTH, HEIGHT, RATE, CLIP = 640, 480, 30, 60
BOXES = ((60, 40, 200, 320), (300, 90, 240, 260), (10, 300, 150, 150), (420, 20, 180, 200))


def make_clip(folder: Path, frames: int, objects: int) -> str:
    """Write pictures and boxes; the beginning of a pipeline that plays them, over and over, `frames` in all."""
    photo = cv2.imread(str(resources.files("mal") / "models" / "photos" / "astronaut.jpg"))
    photo = cv2.resize(photo, (WIDTH + 2 * CLIP, HEIGHT + CLIP))
    for frame in range(CLIP):
        part = photo[frame : frame + HEIGHT, 2 * frame : 2 * frame + WIDTH]
        cv2.imwrite(str(folder / f"{frame:03d}.jpg"), part)
    rows = [(frame + 1, track + 1, *BOXES[track]) for frame in range(frames) for track in range(objects)]
    (folder / "boxes.txt").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return (
        f"multifilesrc location={folder}/%03d.jpg loop=true num-buffers={frames} "
        f"caps=image/jpeg,framerate={RATE}/1 ! jpegdec ! videoconvert ! video/x-raw,format=RGB "
        f"! motboxes location={folder}/boxes.txt"
    )


def run(text: str) -> dict[str, float]:
    """Play a pipeline with an element `mask`; figures of it."""
    pipeline = Gst.parse_launch(text)
    mask = pipeline.get_by_name("mask")
    begun: dict[int, float] = {}
    latencies: list[float] = []
    memory: list[float] = []

    def enter(_pad: object, info: object) -> object:
        begun[info.get_buffer().pts] = time.perf_counter()
        return Gst.PadProbeReturn.OK

    def leave(_pad: object, info: object) -> object:
        latencies.append(time.perf_counter() - begun.pop(info.get_buffer().pts))
        if len(latencies) % 50 == 0:
            memory.append(rss_mb())
        return Gst.PadProbeReturn.OK

    mask.get_static_pad("sink").add_probe(Gst.PadProbeType.BUFFER, enter)
    mask.get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, leave)
    pipeline.set_state(Gst.State.PAUSED)
    pipeline.get_state(60 * Gst.SECOND)
    start = time.perf_counter()
    pipeline.set_state(Gst.State.PLAYING)
    message = pipeline.get_bus().timed_pop_filtered(3600 * Gst.SECOND, Gst.MessageType.EOS | Gst.MessageType.ERROR)
    seconds = time.perf_counter() - start
    assert message.type == Gst.MessageType.EOS, message.parse_error()
    dropped = mask.props.dropped
    pipeline.set_state(Gst.State.NULL)
    half = len(memory) // 2
    return {
        "frames": len(latencies),
        "dropped": dropped,
        "frames_per_s": round(len(latencies) / seconds, 1),
        "latency_ms_median": round(1000 * float(np.median(latencies)), 1),
        "latency_ms_95": round(1000 * float(np.quantile(latencies, 0.95)), 1),
        "rss_mb_first_half": round(max(memory[:half], default=rss_mb()), 1),
        "rss_mb_second_half": round(max(memory[half:], default=rss_mb()), 1),
    }


def rss_mb() -> float:
    """Memory of this process now, in 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def bare_crops_per_s(batch: int) -> float:
    """`MaskLabeler.stream` without GStreamer, on the same boxes."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    boxes = np.array([(x, y, x + width, y + height) for x, y, width, height in BOXES], float)
    with mal.MaskLabeler("student", batch=batch) as labeler:
        labeler(image, boxes)
        start = time.perf_counter()
        count = sum(len(result.scores) for result in labeler.stream([(image, boxes)] * 50))
        return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--objects", type=int, default=2, choices=range(1, len(BOXES) + 1))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from motboxes import MotBoxes

    Gst.Element.register(None, "malmask", Gst.Rank.NONE, MalMask)
    Gst.Element.register(None, "motboxes", Gst.Rank.NONE, MotBoxes)
    result: dict[str, object] = {
        "command": f"python benchmarks/gstreamer.py --frames {options.frames} --objects {options.objects}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the start",
        "versions": {"gstreamer": Gst.version_string(), "python": platform.python_version(), "mal": mal.__version__},
        "frame": [WIDTH, HEIGHT],
        "objects_per_frame": options.objects,
        "bare_labeler_crops_per_s": round(bare_crops_per_s(16), 1),
    }
    with tempfile.TemporaryDirectory() as name:
        source = make_clip(Path(name), options.frames, options.objects)
        for title, element, sink in (
            ("as fast as it goes", "malmask name=mask", "fakesink sync=false"),
            ("live, waiting", "malmask name=mask", "fakesink sync=true"),
            ("live, dropping", "malmask name=mask drop=true batch=8", "fakesink sync=false"),
        ):
            live = "" if "fast" in title else "! identity sync=true "
            figures = run(f"{source} {live}! {element} ! {sink}")
            figures["objects_per_s"] = round(figures["frames_per_s"] * options.objects, 1)
            result[title] = figures
            print(f"{title}: {figures}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
