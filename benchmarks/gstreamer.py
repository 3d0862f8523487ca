"""`malmask` on a long video: throughput, latency and memory, beside the bare session in the same run.

    python benchmarks/gstreamer.py [--frames 1000] [--objects 2] [--only fast] [--json OUT.json]

The video is made of one of the built-in photographs, moving; GStreamer's Python binding comes from the system
(docs/gstreamer.md). Four runs of so many frames each: as fast as it goes; live at 30 frames a second, waiting for every
frame; live and dropping; eight streams at once, sharing one labeler. Latency is the time from the element's sink pad to
its source pad; memory, the process's in each tenth of the run.
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

WIDTH, HEIGHT, RATE, CLIP, STREAMS = 640, 480, 30, 60, 8
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


def run(text: str, streams: int = 1) -> dict[str, object]:
    """Play pipelines with an element `mask0`, `mask1`, … each; figures of all of them."""
    pipeline = Gst.parse_launch(text)
    masks = [pipeline.get_by_name(f"mask{stream}") for stream in range(streams)]
    begun: dict[tuple[int, int], float] = {}
    latencies: list[float] = []
    memory: list[float] = []

    def enter(_pad: object, info: object, stream: int) -> object:
        begun[stream, info.get_buffer().pts] = time.perf_counter()
        return Gst.PadProbeReturn.OK

    def leave(_pad: object, info: object, stream: int) -> object:
        latencies.append(time.perf_counter() - begun.pop((stream, info.get_buffer().pts)))
        if len(latencies) % 10 == 0:
            memory.append(rss_mb())
        return Gst.PadProbeReturn.OK

    for stream, mask in enumerate(masks):
        mask.get_static_pad("sink").add_probe(Gst.PadProbeType.BUFFER, enter, stream)
        mask.get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, leave, stream)
    pipeline.set_state(Gst.State.PAUSED)
    pipeline.get_state(60 * Gst.SECOND)
    start = time.perf_counter()
    pipeline.set_state(Gst.State.PLAYING)
    message = pipeline.get_bus().timed_pop_filtered(7200 * Gst.SECOND, Gst.MessageType.EOS | Gst.MessageType.ERROR)
    seconds = time.perf_counter() - start
    assert message.type == Gst.MessageType.EOS, message.parse_error()
    dropped = sum(mask.props.dropped for mask in masks)
    pipeline.set_state(Gst.State.NULL)
    return {
        "frames": len(latencies),
        "dropped": dropped,
        "frames_per_s": round(len(latencies) / seconds, 1),
        "latency_ms_median": round(1000 * float(np.median(latencies)), 1),
        "latency_ms_95": round(1000 * float(np.quantile(latencies, 0.95)), 1),
        "rss_mb_most_by_tenth": [round(float(part.max())) for part in np.array_split(memory, 10) if len(part)],
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
    parser.add_argument("--only", choices=("fast", "waiting", "dropping", "streams"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from motboxes import MotBoxes

    Gst.Element.register(None, "malmask", Gst.Rank.NONE, MalMask)
    Gst.Element.register(None, "motboxes", Gst.Rank.NONE, MotBoxes)
    result: dict[str, object] = {
        "command": f"python benchmarks/gstreamer.py {' '.join(sys.argv[1:])}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the start",
        "versions": {"gstreamer": Gst.version_string(), "python": platform.python_version(), "mal": mal.__version__},
        "frame": [WIDTH, HEIGHT],
        "objects_per_frame": options.objects,
        "bare_labeler_crops_per_s": round(bare_crops_per_s(16), 1),
    }
    with tempfile.TemporaryDirectory() as name:
        source = make_clip(Path(name), options.frames, options.objects)
        one = "malmask name=mask0"
        live = "identity sync=true !"
        eighth = source.replace(f"num-buffers={options.frames}", f"num-buffers={options.frames // STREAMS}")
        runs = {
            "fast": (1, f"{source} ! {one} ! fakesink sync=false"),
            "waiting": (1, f"{source} ! {live} {one} ! fakesink sync=true"),
            "dropping": (1, f"{source} ! {live} {one} drop=true batch=8 ! fakesink sync=false"),
            "streams": (STREAMS, " ".join(f"{eighth} ! malmask name=mask{i} ! fakesink" for i in range(STREAMS))),
        }
        for title in (options.only,) if options.only else runs:
            streams, text = runs[title]
            figures = run(text, streams)
            figures["objects_per_s"] = round(float(figures["frames_per_s"]) * options.objects, 1)
            result[title] = figures
            print(f"{title}: {figures}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
