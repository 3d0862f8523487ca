"""The long proofs of `make soak` and of benchmarks/memory.py, in a small size."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.kills import prove
from benchmarks.memory import FakeSession, write_boxes
from benchmarks.soak import soak
from mal.datasets import box_file
from mal.runtime import label


def test_killed_runs_end_in_the_same_bytes() -> None:
    counts = prove(runs=2)
    assert (counts["different"], counts["failed"]) == (0, 0)


def test_memory_does_not_grow_with_the_batches(monkeypatch) -> None:
    from mal.runtime import labeler

    monkeypatch.setattr(labeler, "open_session", labeler.open_session)  # put back what `soak` replaces
    found = soak(batches=1500)
    assert found["verdict"] == "flat", found


def test_fuzzing_finds_nothing() -> None:
    pytest.importorskip("atheris")
    words = [sys.executable, "-m", "benchmarks.fuzz", "--runs", "4000"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(target["inputs"] >= 4000 for target in json.loads(done.stdout)["fuzz"])


def test_less_than_100_bytes_an_annotation_in_the_whole_of_mal_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """The slope of the peak between two sizes: nothing that is in flight (images, crops, masks) stays or piles up."""
    monkeypatch.setattr(label, "open_session", lambda *some, **more: FakeSession())
    monkeypatch.setattr(box_file, "_RUN", 2048)  # results in memory while the output is written: 32,768 otherwise
    photo = tmp_path / "photos" / "one.png"
    photo.parent.mkdir()
    Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(photo)
    boxes = tmp_path / "boxes.json"
    peaks: list[int] = []
    counts = (1_000, 5_000, 20_000)  # the first one loads and caches what is loaded and cached once
    for count in counts:
        write_boxes(boxes, [photo], count, per_image=100)
        tracemalloc.start()
        report = label.label_dataset(boxes, images=photo.parent, workers=2, quiet=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (report.labelled, report.images) == (count, count // 100)
    assert (peaks[2] - peaks[1]) / (counts[2] - counts[1]) < 100
