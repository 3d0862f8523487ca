"""How fast is a COCO file scanned into columns and written back with masks; what memory does an annotation cost?

    python benchmarks/scan_json.py [--megabytes 500] [--json]

Three kinds of synthetic files: `boxes` (about 130 bytes an annotation), `names` (the same with strings as ids, about
200 bytes) and `instances` (polygons, about 530 bytes).
Rates are megabytes of the file per second of processor time: one thread works, and the clock does not run while
others have the core. `write` counts the output, with a mask for every annotation. A bound and peers in the same run,
on a quarter of the file and all in memory: msgspec looking only for the document's end (`bound_skip`), `json.loads`,
`orjson.loads`. Memory: peak resident size of fresh processes that scan a file and one four times as large; the
slope between the two is what an annotation costs.
"""

import argparse
import io
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy
import orjson

from mal.datasets import open_boxes
from mal.datasets.splice import Values

KEYS = ("segmentation", "area", "mal")
MASK = (
    b'{"size":[480,640],"counts":"' + b"Wb4o0^2n2M3N2O1N101N10000O1" * 3 + b'"}',
    b"1234",
    b'{"score":0.87,"flags":[],"model":"0123456789ab"}',
)


def write_coco(file: Path, megabytes: float, kind: str) -> int:
    """Write a synthetic file as Python's json would, and return the number of its annotations."""
    rng = random.Random(0)

    def annotation(number: int) -> dict[str, object]:
        x, y, w, h = (round(rng.uniform(0, 600), 2) for _ in range(4))
        points = [round(rng.uniform(0, 640), 2) for _ in range(2 * rng.randint(8, 40))]
        return {
            **({"segmentation": [points]} if kind == "instances" else {}),
            "area": round(w * h, 4),
            "iscrowd": int(rng.random() < 0.01),
            "image_id": name(rng.randrange(100_000)),
            "bbox": [x, y, w, h],
            "category_id": rng.randint(1, 90),
            "id": number,
        }

    def name(number: int) -> object:
        return str(uuid.UUID(int=number)) if kind == "names" else number

    images = [{"id": name(i), "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(100_000)]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 91)]
    head = json.dumps({"info": {}, "images": images, "categories": categories})[:-1]
    texts = [json.dumps(annotation(number)).rpartition(" ")[0] for number in range(20_000)]  # all but the id
    count = 0
    with file.open("w") as stream:
        stream.write(head + ', "annotations": [')
        while stream.tell() < megabytes * 1e6:
            elements = [f"{text} {json.dumps(name(number))}}}" for number, text in enumerate(texts, count + 1)]
            stream.write((", " if count else "") + ", ".join(elements))
            count += len(texts)
        stream.write("]}")
    return count


def rate(file: Path, work: Callable[[], object], repeat: int) -> float:
    """Best of `repeat` runs, in MB of the input file a second."""
    seconds = []
    for _ in range(repeat):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return file.stat().st_size / min(seconds) / 1e6


class Sink(io.RawIOBase):
    """Counts what is written and forgets it."""

    size = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Count."""
        self.size += len(data)
        return len(data)


def written(file: Path) -> float:
    """MB of output a second when every annotation gets a mask."""
    boxes, sink = open_boxes(file), Sink()
    start = time.process_time()
    boxes.write(sink, KEYS, lambda start, stop: Values.of([MASK] * (stop - start), len(KEYS)))
    return sink.size / (time.process_time() - start) / 1e6


def peak_bytes(file: Path) -> int:
    """Peak resident bytes of a fresh process that scans `file`."""
    command = [sys.executable, __file__, "--peak", str(file)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(folder: Path, megabytes: float, kind: str) -> dict[str, float | int | str]:
    small, large = folder / "small.json", folder / "large.json"
    few, many = write_coco(small, megabytes / 4, kind), write_coco(large, megabytes, kind)
    return {
        "kind": kind,
        "megabytes": round(large.stat().st_size / 1e6),
        "annotations": many,
        "bytes_per_annotation_in_file": round(large.stat().st_size / many),
        "scan_mb_per_s": round(rate(large, lambda: open_boxes(large), 3)),
        "write_mb_per_s": round(written(large)),
        "peak_bytes_per_annotation": round((peak_bytes(large) - peak_bytes(small)) / (many - few), 1),
        "peak_mb": round(peak_bytes(large) / 1e6),
        "bound_skip_mb_per_s": round(rate(small, lambda: msgspec.json.decode(small.read_bytes(), type=msgspec.Raw), 3)),
        "json_loads_mb_per_s": round(rate(small, lambda: json.loads(small.read_bytes()), 1)),
        "orjson_mb_per_s": round(rate(small, lambda: orjson.loads(small.read_bytes()), 1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        open_boxes(arguments.peak)
        # Not getrusage: its peak is inherited from the parent process.
        print(int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024)
        return
    if not arguments.json:
        versions = f"msgspec {msgspec.__version__}, NumPy {numpy.__version__}, orjson {orjson.__version__}"
        print(f"{platform.machine()}, Python {platform.python_version()}, {versions}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("boxes", "names", "instances"):
            result = measure(Path(folder), arguments.megabytes, kind)
            print(json.dumps(result) if arguments.json else "\n  ".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
