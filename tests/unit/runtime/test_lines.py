"""`mal label -`: the same masks as from a file, lines that are no good, memory that stays."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mal.errors import InputError, MalError
from mal.runtime import lines as lines_module
from mal.runtime.label import label_dataset
from mal.runtime.lines import label_lines


def records(dataset: Path) -> list[dict[str, Any]]:
    """The data set, one image a line; every annotation carries a field of its own."""
    document = json.loads(dataset.read_bytes())
    by_image = {image["id"]: {**image, "annotations": []} for image in document["images"]}
    for each in document["annotations"]:
        if each["image_id"] in by_image:
            by_image[each["image_id"]]["annotations"].append(each)
    return list(by_image.values())


def labelled(text: str, **options: Any) -> tuple[list[str], list[dict[str, Any]], int]:
    """Lines that come out, what is listed, the exit code."""
    sink, log = io.BytesIO(), io.StringIO()
    report = label_lines(io.BytesIO(text.encode()), sink, log, **options)
    assert report.lines == len(text.splitlines())
    return sink.getvalue().decode().splitlines(), list(map(json.loads, log.getvalue().splitlines())), report.exit_code


def test_the_same_masks_as_from_a_file(dataset: Path, model: Path) -> None:
    report = label_dataset(dataset, model=model)
    expected = {each["id"]: each for each in json.loads(report.output.read_bytes())["annotations"]}
    skipped = [json.loads(line) for line in Path(f"{report.output}.skipped.jsonl").read_text().splitlines()]
    given = records(dataset)

    out, listed, code = labelled("\n".join(map(json.dumps, given)), model=model, images=dataset.parent / "images")

    assert code == 3
    for line, record in zip(out, given, strict=True):
        assert json.loads(line) == {**record, "annotations": [expected[each["id"]] for each in record["annotations"]]}
    reasons = {each["annotation_id"]: each["reason"] for each in skipped if each["file_name"]}
    assert {each["annotation_id"]: each["reason"] for each in listed} == reasons
    for each in listed:
        assert given[each["line"] - 1]["annotations"][each["annotation"]]["id"] == each["annotation_id"]


BAD = ["", "null", "[1]", '{"file_name": "0.png", "annotations": 3}', "{", '{"a": NaN}', "\x00", '{"annotations": []}',
       '{"file_name": "nothing.png", "annotations": [{"bbox": [1, 2, 3, 4]}]}',
       '{"annotations": [{"bbox": [1, 2, 3, 4]}]}',
       '{"file_name": "0.png", "annotations": [7, null, {"bbox": "x"}, {"bbox": [1, 2, 0, 4]}, {}]}',
       '{"file_name": "../0.png", "annotations": [{"bbox": [1, 2, 3, 4]}]}', "[" * 3000]  # fmt: skip


def test_bad_lines_come_out_as_they_are_and_are_listed(dataset: Path, model: Path) -> None:
    good = '{"file_name": "0.png", "x": [1.50], "annotations": [ {"bbox": [10, 10, 20, 20]} ] }'
    text = "\n".join(f"{line}\n{good}" for line in BAD)
    out, listed, code = labelled(text, model=model, images=dataset.parent / "images", batch=4)
    assert code == 3
    assert out[::2] == BAD
    assert all(line.startswith(good[:74]) and '"segmentation"' in line for line in out[1::2])
    wrong = [number for number, line in enumerate(BAD) if line not in ("", '{"annotations": []}')]
    assert sorted({each["line"] for each in listed}) == [2 * number + 1 for number in wrong]
    assert len([each for each in listed if each["line"] == 2 * 10 + 1]) == 5


def test_on_error_fail_and_a_line_without_end(dataset: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MalError, match="line 1: not a JSON object"):
        labelled("{", model=model, on_error="fail")
    monkeypatch.setattr(lines_module, "MAX_LINE", 100)
    with pytest.raises(InputError, match="line 1 is longer than 100 bytes"):
        labelled("[" * 101, model=model)


class Endless(io.RawIOBase):
    """Lines without any box, and how far the reader is ahead of the writer."""

    def __init__(self, count: int, written: list[int]) -> None:
        self._lines, self._written = iter(range(count)), written
        self.read_lines = self.ahead = 0

    def readline(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        for _ in self._lines:
            self.read_lines += 1
            self.ahead = max(self.ahead, self.read_lines - len(self._written))
            return b'{"annotations": []}\n'
        return b""


def test_lines_without_boxes_do_not_pile_up(model: Path) -> None:
    written: list[int] = []

    class Sink(io.BytesIO):
        def write(self, data: Any) -> int:
            written.append(1)
            return len(data)

    source = Endless(5000, written)
    assert label_lines(source, Sink(), io.StringIO(), model=model).exit_code == 0  # type: ignore[arg-type]
    assert (len(written), source.ahead < 1500) == (5000, True)


def test_the_command(dataset: Path, model: Path) -> None:
    command = [sys.executable, "-m", "mal.cli", "label", "-", "--engine", str(model), "--images"]
    text = "".join(json.dumps(record) + "\n" for record in records(dataset)[:3])
    done = subprocess.run([*command, str(dataset.parent / "images")], input=text, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["image 0", "image 1", "image 2"]
    assert "3 lines: " in done.stderr.splitlines()[-1]
    done = subprocess.run([*command, ".", "-o", "x.json"], input="", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "-o does not go with -" in done.stderr
