"""Peak memory and time to the first mask, labelling a data set once and many times over.

    python benchmarks/memory.py BOXES.json [--images DIR] [--times 1 12]

Each size is a process of its own: `mal label` on a file that lists every image and annotation so many times.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def repeated(document: dict, times: int) -> dict:
    """The same data set `times` over, ids renumbered."""
    images = [image | {"id": f"{image['id']}-{n}"} for n in range(times) for image in document["images"]]
    annotations = [
        each | {"id": f"{each['id']}-{n}", "image_id": f"{each['image_id']}-{n}"}
        for n in range(times)
        for each in document["annotations"]
    ]
    return document | {"images": images, "annotations": annotations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boxes", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--times", type=int, nargs="*", default=[1, 12])
    options = parser.parse_args()
    document = json.loads(options.boxes.read_bytes())
    images = options.images or next(
        path for path in (options.boxes.parent / "images", options.boxes.parent) if path.is_dir()
    )
    print(" times  images   boxes  peak RSS MB  first mask s  whole command s  boxes/s")
    with tempfile.TemporaryDirectory() as folder:
        for times in options.times:
            boxes, output = Path(folder) / "boxes.json", Path(folder) / "masks.json"
            boxes.write_text(json.dumps(repeated(document, times)))
            started = time.perf_counter()
            command = [sys.executable, "-m", "mal.cli", "label", boxes, "--images", images, "-o", output]
            subprocess.run([str(word) for word in command], check=True, capture_output=True)
            seconds = time.perf_counter() - started
            report = json.loads(output.with_name("masks.json.report.json").read_bytes())
            print(
                f"{times:6d}  {report['images']:6d}  {report['objects']:6d}  {report['peak_rss_mb']:11.0f}"
                f"  {report['first_mask_seconds']:12.2f}  {seconds:15.2f}  {report['labelled'] / seconds:7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
