"""Damaged files by a seeded mutator: no crash, no hang, no lost object. MAL_FUZZ=2000 is the whole (make soak)."""

import gzip
import io
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from box_writing import written
from PIL import Image

from mal.datasets import open_boxes
from mal.errors import InputError
from mal.runtime.label import label_dataset

COUNT = int(os.environ.get("MAL_FUZZ", "200"))
TOKENS = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"null", b"NaN", b"-1e999", b"9" * 400, b"\xff", b"\\ud800",
          b'"id"', b'"bbox"', b'"annotations"', b"\0", b" " * 5000, b"[" * 3000]  # fmt: skip

VALUES = [
    b"null", b"true", b"[]", b"{}", b'""', b'"7"', b"-1", b"1e308", b"1e999", b"9" * 400, b"NaN", b"-Infinity", b"1.5",
          b'"\\ud800"', b'"\xff"', b'[{"area": 1}]', b'{"area": [1, 2]}', b"[1, 2, 3, 4]"]  # fmt: skip


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three cuts, flips, doublings, foreign words and, in JSON, foreign values."""
    for _ in range(rng.integers(1, 4)):
        at, other = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        kind = rng.integers(12)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + data[min(other, at + 40) :]
        elif kind == 2:
            data = data[:at] + data[at : at + 200] + data[at:]
        elif kind == 3 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
        elif kind == 4:
            data = data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]
        elif kind == 5:
            data = data[:at] + TOKENS[rng.integers(len(TOKENS))] + data[at:]
        elif places := list(re.finditer(rb"(?<=: )[^][{},]+|[0-9.]+(?=,)", data)):
            place = places[rng.integers(len(places))]
            data = data[: place.start()] + VALUES[rng.integers(len(VALUES))] + data[place.end() :]
    return data


def test_box_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    annotations = [
        {"id": n, "image_id": n % 3, "bbox": [n, 2, 30.5, 4], "note": 'a "},{" é', "segmentation": [[1.5] * 6]}
        for n in range(12)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(3)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": []}).encode()
    file = tmp_path / "boxes.json"
    opened = 0
    for number in range(COUNT):
        pack: Callable[[bytes], bytes] = gzip.compress if number % 8 == 0 else bytes
        plain = damaged(text, rng)
        file.write_bytes(damaged(pack(plain), rng) if number % 16 == 0 else pack(plain))
        started = time.monotonic()
        try:
            boxes = open_boxes(file)
        except InputError:
            continue
        finally:
            assert time.monotonic() - started < 30
        opened += 1
        output = written(boxes, {row: {"area": b"7"} for row in range(len(boxes))})
        try:
            given = json.loads(plain)["annotations"]
        except (ValueError, RecursionError):
            continue  # Python's reader is pickier about text (no UTF-8), so there is nothing to compare with
        if number % 16:
            assert len(boxes) == len(given)
            expected = [{**each, "area": 7} if isinstance(each, dict) else each for each in given]
            assert repr(json.loads(output)["annotations"]) == repr(expected)
    assert opened > COUNT / 20


def test_images(tmp_path: Path, model: Path) -> None:
    """One box an image; each ends as a mask or in the list, with its reason."""
    rng = np.random.default_rng(7)
    picture = Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8))
    whole = []
    for suffix in ("jpeg", "png", "webp", "bmp", "tiff"):
        buffer = io.BytesIO()
        picture.save(buffer, suffix)
        whole.append(buffer.getvalue())
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number}").write_bytes(damaged(whole[number % len(whole)], rng))
    document = {
        "images": [{"id": n, "file_name": str(n)} for n in range(COUNT)],
        "annotations": [{"id": n, "image_id": n, "bbox": [4, 4, 30, 30]} for n in range(COUNT)],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    report = label_dataset(tmp_path / "boxes.json", model=model)
    assert (report.objects, report.labelled + report.skipped) == (COUNT, COUNT)
    assert report.labelled > COUNT / 20
    assert report.skipped > COUNT / 20
    output = json.loads(report.output.read_bytes())["annotations"]
    assert sum("segmentation" in each for each in output) == report.labelled
    assert [each["id"] for each in output] == list(range(COUNT))
