"""Coverage-guided fuzzing (atheris) of what reads JSON and run lengths from strangers: no crash, no hang, nothing lost.

    python -m benchmarks.fuzz --seconds 300

An error of ours is fine; any other exception, 60 s for one input, or 1 GB of memory is a finding, its input is shown.
"""

import argparse
import contextlib
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import atheris
import numpy as np

instrument: Any = atheris.instrument_imports  # pyright: ignore[reportAttributeAccessIssue]
with instrument(include=["mal.datasets", "mal.masks"]):
    from mal import masks
    from mal.datasets import open_boxes, scan, segmentations
    from mal.datasets.splice import Values
    from mal.errors import InputError

WORDS = ("images", "annotations", "id", "image_id", "bbox", "file_name", "width", "counts", "size", "NaN", "1e999")

BOXES = rb"""{"images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 5}], "annotations": [
{"id": 7, "image_id": 1, "bbox": [1, 2, 3.5, 4e0], "iscrowd": 0, "note": "}],{\u00e4\ud800"}, {"id": "x", "image_id": 9,
"bbox": NaN}], "categories": [{"id": 1, "name": "cat"}], "info": {"a": [1, -2e3, true, null]}}"""

SEEDS = {
    "json": [BOXES, b'[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]'],
    "segmentation": [
        b'[20, 30, {"size": [20, 30], "counts": "02l0"}]',
        b'[20, 30, {"size": [20, 30], "counts": [100, 20, 480]}]',
        b"[20, 30, [[1, 2, 3.5, 4, 5, 6], [0, 0, 9, 0, 9, 9, 0, 9]]]",
    ],
    "rle": [bytes([20, 30]) + b"02l0", bytes([4, 4]) + b"52203"],
}


def read_json(data: bytes, folder: Path) -> None:
    """A file of boxes: what can be read is written with a key more, and nothing else changed."""
    file = folder / "boxes.json"
    file.write_bytes(data)
    try:
        boxes = open_boxes(file)
    except InputError:
        return
    output = folder / "out.json"
    with output.open("wb") as stream:
        boxes.write(stream, ["area"], lambda start, stop: Values.of([(b"7",)] * (stop - start), 1))
    with contextlib.suppress(ValueError, RecursionError):  # Python's reader is pickier about text that is no UTF-8
        given = json.loads(data)["annotations"]
        expected = [{**each, "area": 7} if isinstance(each, dict) else each for each in given]
        assert len(boxes) == len(given)
        assert repr(json.loads(output.read_bytes())["annotations"]) == repr(expected)


def read_segmentation(data: bytes, folder: Path) -> None:
    """Any JSON as a `segmentation`: refused, or a mask of the image's size."""
    try:
        height, width, value = json.loads(data)
        assert 0 < height <= 100
        assert 0 < width <= 100
    except Exception:
        return
    with contextlib.suppress(InputError):
        rle = segmentations.to_rle(value, height, width)
        assert rle is None or segmentations.to_mask(rle).shape == (height, width)


def read_rle(data: bytes, folder: Path) -> None:
    """Compressed run lengths: refused, or the mask that pycocotools makes of them."""
    if len(data) < 2:
        return
    height, width, counts = data[0], data[1], data[2:]
    with contextlib.suppress(InputError):
        mask = masks.decode(counts, height, width)
        theirs = segmentations.coco_mask.decode({"size": [height, width], "counts": counts})
        assert np.array_equal(mask, theirs)


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "json": read_json,
    "segmentation": read_segmentation,
    "rle": read_rle,
}


def fuzz(target: str, folder: Path, options: list[str]) -> None:
    """Run libFuzzer in this process; never returns."""
    scan.WINDOW = 128  # so that small inputs have several windows, too
    corpus, words = folder / "corpus", folder / "words"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS[target]):
        (corpus / str(number)).write_bytes(seed)
    words.write_text("".join(f'"\\"{word}\\""\n"{word}"\n' for word in WORDS))
    limits = ["-timeout=60", "-rss_limit_mb=1024", "-max_len=4096", f"-dict={words}", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *options], lambda data: TARGETS[target](data, folder))
    atheris.Fuzz()


def prove(target: str, amount: str, seed: int) -> dict[str, Any]:
    """Fuzz in a process of its own; how many inputs, how much code they reached, and what was found.

    Args:
        target: one of TARGETS.
        amount: libFuzzer's "-runs=N" or "-max_total_time=SECONDS".
        seed: of the mutations.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        words = [sys.executable, "-m", "benchmarks.fuzz", "--child", target, folder, amount, f"-seed={seed}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        findings = [
            file.read_bytes() for kind in ("crash", "timeout", "oom") for file in Path(folder).glob(f"{kind}-*")
        ]
    ran = re.search(r"Done (\d+) runs in (\d+) second", done.stderr)
    covered = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)", done.stderr)
    if done.returncode or not ran or not covered:
        print(done.stderr[-3000:], *map(repr, findings), sep="\n", file=sys.stderr)
    return {
        "target": target,
        "inputs": int(ran[1]) if ran else None,
        "seconds": int(ran[2]) if ran else None,
        "edges": int(covered[-1][0]) if covered else None,
        "kept_inputs": int(covered[-1][1]) if covered else None,
        "findings": len(findings) or done.returncode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--runs", type=int, help="inputs for each target, instead of seconds")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    amount = f"-runs={given.runs}" if given.runs else f"-max_total_time={given.seconds}"
    found = [prove(each, amount, given.seed) for each in given.targets or TARGETS]
    print(json.dumps({"fuzz": found, "atheris": version("atheris"), "python": platform.python_version()}))
    sys.exit(any(each["findings"] for each in found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    main()
