"""What is kept of an annotation, and what it costs while the file is read."""

import json
import tracemalloc
from pathlib import Path

from mal.datasets import open_boxes


def write(file: Path, count: int) -> None:
    annotation = {"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1.5] * 60]}
    texts = [json.dumps({**annotation, "id": number, "image_id": number % 9}) for number in range(count)]
    file.write_text('{"images": [], "annotations": [' + ",".join(texts) + "]}")


def test_less_than_100_bytes_an_annotation_and_no_polygon_in_memory(tmp_path: Path) -> None:
    """The slope between two sizes, so that windows and modules don't count; peak while reading, and what stays."""
    peaks, kept = [], []
    counts = (20_000, 60_000)
    for count in counts:
        write(tmp_path / "boxes.json", count)
        open_boxes(tmp_path / "boxes.json")  # what is loaded or cached once is there now
        tracemalloc.start()
        boxes = open_boxes(tmp_path / "boxes.json")
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(boxes) == count
        peaks.append(peak)
        kept.append(now)
    assert (peaks[1] - peaks[0]) / (counts[1] - counts[0]) < 100
    assert (kept[1] - kept[0]) / (counts[1] - counts[0]) < 50
