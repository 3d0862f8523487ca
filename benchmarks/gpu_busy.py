"""Is the GPU busy while `mal label` runs?  python benchmarks/gpu_busy.py [--boxes 20000] [--device cuda:0]

The built-in photographs' boxes, as often as asked for, through a ViT-S at 512 with random weights (the speed is the
same). nvidia-smi is asked ten times a second from the run's first progress to its last; what it gives is the share of
the time in which some kernel ran. Beside it the run's own view: time in the session over all time with or without
one. Exits 1 below .9, or without a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from mal.config import ModelConstants  # noqa: E402
from mal.runtime.machine import driver_version, gpus  # noqa: E402

WANTED = 0.9  # of the time, on any GPU. Source: issue 6
PHOTOS = ROOT / "mal" / "models" / "photos"
SAMPLE_MS = 100


def write_model(path: Path) -> None:
    import torch

    from mal.network.checkpoint import save_student
    from mal.network.student import Student

    torch.manual_seed(0)
    constants = ModelConstants(backbone="vit_small_patch16_224", size=512)
    save_student(path, Student(constants).eval(), constants)


def write_boxes(path: Path, wanted: int) -> None:
    document = json.loads((PHOTOS / "boxes.json").read_bytes())
    images, annotations = [], []
    while len(annotations) < wanted:
        turn = len(images)
        images += [{**image, "id": turn + place} for place, image in enumerate(document["images"])]
        place_of = {image["id"]: turn + place for place, image in enumerate(document["images"])}
        annotations += [
            {**each, "id": len(annotations) + at, "image_id": place_of[each["image_id"]]}
            for at, each in enumerate(document["annotations"])
        ]
    path.write_text(json.dumps({**document, "images": images, "annotations": annotations}))


class Sampler:
    """Utilisation of a GPU, in the background."""

    def __init__(self, device: str) -> None:
        index = device.partition(":")[2] or "0"
        self._process = subprocess.Popen(
            ["nvidia-smi", "-i", index, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits",
             "-lms", str(SAMPLE_MS)], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.samples: list[tuple[float, float]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            with suppress(ValueError):  # "[N/A]"
                self.samples.append((time.time(), float(line) / 100))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=60_000)
    parser.add_argument("--device", default="cuda:0", help="cuda:0,0 is two processes on it")
    parser.add_argument("--engine", type=Path, help="another model than ViT-S")
    parser.add_argument("--json", type=Path, help="Write the result here too.")
    options = parser.parse_args()
    if not gpus():
        sys.exit("no CUDA GPU here: nothing was measured")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.engine or folder / "vit-s.safetensors"
        if not options.engine:
            write_model(model)
        write_boxes(folder / "boxes.json", options.boxes)
        sampler = Sampler(options.device.partition(",")[0])
        words = ["label", str(folder / "boxes.json"), "--images", str(PHOTOS), "--engine", str(model)]
        words += ["--device", options.device, "--log-json"]
        done = subprocess.run([sys.executable, "-m", "mal.cli", *words], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        sampler.stop()
        if done.returncode:
            sys.exit(done.stderr)
        report = json.loads((folder / "boxes.masks.json.report.json").read_bytes())
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    at = [event["time"] for event in events if event["event"] == "progress"]
    if len(at) < 3:
        sys.exit(f"the run was over in {report['seconds']} s, too short to sample: use more --boxes")
    busy = statistics.mean(share for moment, share in sampler.samples if at[0] < moment < at[-1])
    inside, outside = (report["stages"][stage]["seconds"] for stage in ("session", "wait"))
    result = {
        "machine": gpus()[0].name, "driver": driver_version(), "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "benchmarks/gpu_busy.py", *sys.argv[1:]]), "backend": report["backend"],
        "boxes_per_s": report["boxes_per_s"], "gpu_busy": round(busy, 4), "samples": len(sampler.samples),
        "in_the_session": round(inside / (inside + outside), 4), "bound": report["bound"],
        "stages": report["stages"],
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if busy < WANTED:
        sys.exit(f"the GPU was busy {busy:.0%} of the time, wanted {WANTED:.0%}")


if __name__ == "__main__":
    main()
