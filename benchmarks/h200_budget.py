"""Does the host keep an H200 busy? Host stages measured here, 16 cores and the device's ceiling put beside them.

    python -m benchmarks.h200_budget ../shared/data/coco-val/boxes.json

A simulation: nothing of it has run on such a machine. What is measured is `mal label` in processor time a box, without
the network (a session that answers at once), on one core of this machine: all of it, and of that what holds Python's
lock, which is all but the calls that let it go (JPEG decoder, crops, masks, run lengths). From these follow

    cores     16 / (processor time a box)         boxes/s if every core worked all the time
    lock      1 / (time under the lock a box)     boxes/s of one process; `--device cuda:0,0` is two on one GPU
    bus       55 GB/s / (bytes a box)             PCIe 5 x 16: a crop in float32, or its share of the image's bytes
    device    the ceiling: 790 TFLOP/s / (FLOP a crop), of which .4 and .6 are what good engines reach

and the least of them is what bounds. Engines cut crops on the GPU: then the host's time for crops is left out, and the
image crosses the bus once; torch and ONNX Runtime get crops of the host. FLOP of ViT-S: the project's reference; of the
shipped student: torch's counter.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import simplejpeg

from benchmarks.per_box_loop import Blobs, enlarged
from mal.datasets import open_boxes
from mal.plugins.pixels import compiled
from mal.runtime import label

CORES = 16
BUS = 55e9  # bytes/s
FLOP_PER_S = 790e12
NETWORKS = {"the shipped student": (192, 0.665e9), "ViT-S": (512, 76e9)}  # side of its crops, FLOP of one
SHARES = (0.4, 0.6)
ROUNDS = 3
CALLS = ("mal_cut_crops_host", "mal_decide_masks_host", "mal_encode_masks_host")


class Clock:
    """Processor time of calls that let Python's lock go, from any thread."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*some: Any, **more: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*some, **more)
            finally:
                with self._lock:
                    self.seconds += time.thread_time() - began

        return timed


@contextmanager
def free_calls_timed(clock: Clock) -> Generator[None]:
    library = compiled.host()
    timed = SimpleNamespace(**{name: clock.timed(getattr(library, name)) for name in CALLS})
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(compiled, "host", return_value=timed))
        patches.enter_context(mock.patch.object(simplejpeg, "decode_jpeg", clock.timed(simplejpeg.decode_jpeg)))
        yield


def host_ms(boxes: Path, images: Path, size: int) -> dict[str, float]:
    """Processor milliseconds a box: of the stages, of everything, and under Python's lock. Best of several runs."""
    best: dict[str, float] = {"all": float("inf")}
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(label, "open_session", return_value=Blobs(size)):
        for _ in range(ROUNDS):
            clock = Clock()
            began = time.process_time()
            with free_calls_timed(clock):
                report = label.label_dataset(
                    boxes, images=images, output=Path(folder) / "masks.json", fresh=True, quiet=True
                )
            spent = time.process_time() - began
            a_box = 1000 / report.labelled
            if spent * a_box < best["all"]:
                stages = {name: report.stages[name]["cpu_seconds"] * a_box for name in ("read", "crop", "mask")}
                best = {**stages, "all": spent * a_box, "lock": (spent - clock.seconds) * a_box}
    return best


def budget(ms: float, lock_ms: float, bus_bytes: float, flop: float, share: float) -> dict[str, float]:
    """Boxes a second of each resource."""
    return {
        "cores": 1000 * CORES / ms,
        "lock": 1000 / lock_ms,
        "bus": BUS / bus_bytes,
        "device": share * FLOP_PER_S / flop,
    }


def bytes_a_box(boxes: Path) -> float:
    """Pixels of the images, three bytes each, over the boxes."""
    document = json.loads(boxes.read_bytes())
    return sum(3 * each["width"] * each["height"] for each in document["images"]) / len(document["annotations"])


def bound(rates: dict[str, float]) -> str:
    """The scarcest resource, and the share of the time that the device works."""
    least = min(rates, key=lambda resource: rates[resource])
    return f"{least}, {rates[least] / rates['device']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boxes", type=Path)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.0f}")
    with tempfile.TemporaryDirectory() as name:
        large = Path(name)
        folder = Path(open_boxes(options.boxes).source.address)
        second = enlarged(json.loads(options.boxes.read_bytes()), folder, large)
        (large / "boxes.json").write_text(json.dumps(second))
        sets = {"coco-val": (options.boxes, folder), "1080p, 20 boxes": (large / "boxes.json", large / "images")}
        print(
            "| images | network | crops by | ms a box: read | crop | mask | all | under the lock | cores/s | lock/s "
            "| bus/s | device/s at .4 | bound, GPU busy | at .6 | bound, GPU busy |"
        )
        print("| --- " * 15 + "|")
        for images, (boxes, where) in sets.items():
            image_bytes = bytes_a_box(boxes)
            for network, (size, flop) in NETWORKS.items():
                spent = host_ms(boxes, where, size)
                for crops, left_out, bus in (("host", 0.0, 12 * size**2), ("GPU", spent["crop"], image_bytes)):
                    least, most = (budget(spent["all"] - left_out, spent["lock"], bus, flop, share) for share in SHARES)
                    times = " | ".join(f"{spent[key]:.3f}" for key in ("read", "crop", "mask", "all", "lock"))
                    rates = " | ".join(f"{least[key]:,.0f}" for key in ("cores", "lock", "bus"))
                    bounds = " | ".join(f"{each['device']:,.0f} | {bound(each)}" for each in (least, most))
                    print(f"| {images} | {network} | {crops} | {times} | {rates} | {bounds} |", flush=True)


if __name__ == "__main__":
    main()
