"""Files that cannot be used: one line that says what came and what was expected, never a traceback."""

import gzip
import json
import random
from pathlib import Path

import pytest

from mal.datasets import open_boxes, scan
from mal.errors import BoxFileError, InputError

GOOD = {
    "info": {"a": [1.5, -2e3, True, None, "x\\u00e4\\"]},
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 4, "height": 5} for n in range(4)],
    "annotations": [
        {"id": n, "image_id": n % 5, "bbox": [1, 2, 3, 4], "category_id": 1, "segmentation": {"counts": '}],{"'}}
        for n in range(30)
    ],
    "categories": [{"id": 1, "name": "cat"}],
}
TEXT = json.dumps(GOOD).encode()


def message(folder: Path, text: bytes) -> str:
    file = folder / "boxes.json"
    file.write_bytes(text)
    with pytest.raises(BoxFileError) as caught:
        open_boxes(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_a_name_that_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(BoxFileError, match="name too long"):
        open_boxes(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is empty"),
        (b" \n", "does not start with {"),
        (b"hello", "does not start with {"),
        (b"[]", "JSON list"),
        (b'[{"image_id": 1, "bbox": [1,2,3,4], "score": 0.5}]', "JSON list"),
        (b"{}", "has no 'images' (found none of COCO's lists)"),
        (b'{"images": []}', "has no 'annotations' (found images)"),
        (b'{"annotations": []}', "has no 'images' (found annotations)"),
        (b'{"images": {}, "annotations": []}', "'images' is not a list"),
        (b'{"images": [], "annotations": null}', "'annotations' is not a list"),
        (b'{"images": [], "annotations": [], "images": []}', "two lists called 'images'"),
        (b'{"images": [], "annotations": []} {}', "expected end of the file"),
        (b'{"images": [] "annotations": []}', "expected ,"),
        (b'{"images": [], "annotations": [],}', "expected a key"),
        (b'{"images": [], "annotations": [{"id": 1},]}', "trailing comma"),
        (b'{"images": [], "annotations": [{"id": 01}]}', "broken JSON at byte 39"),
        (b'{"images": [], "annotations": [{"id": ?}]}', "broken JSON at byte 38"),
        (b"{'images': []}", "expected a key"),
        (b'{"images": [}, "annotations": []}', "broken JSON at byte 12"),
        ('{"images": [], "annotations": []}'.encode("utf-16"), "is not UTF-8"),
        ('{"images": [], "annotations": []}'.encode("utf-16-le"), "is not UTF-8"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "damaged zstd"),
        (gzip.compress(TEXT)[:-20], "damaged gzip"),
        (gzip.compress(b""), "is empty"),
        (b'{"images": [], "annotations": [' + b"[" * 200_000, "nested too deeply"),
        (b'{"info": ' + b'{"a":' * 200_000, "nested too deeply"),
    ],
    ids=range(26),
)
def test_messages(tmp_path: Path, text: bytes, words: str) -> None:
    assert words in message(tmp_path, text)


@pytest.mark.parametrize("elements", [", {}", "{},, {}", "{},, ]", "{}, , {},", "{},]", "{},{},]"])
def test_a_comma_too_many_wherever_the_windows_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elements: str
) -> None:
    long = json.dumps({"note": "x" * 200})
    text = '{"images": [' + elements.replace("{}", long) + '], "annotations": []}'
    for window in range(100, 500, 7):
        monkeypatch.setattr(scan, "WINDOW", window)
        message(tmp_path, text.encode())


@pytest.mark.parametrize("window", [50, 1 << 18])
def test_truncated_anywhere(tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "WINDOW", window)
    for length in range(1, len(TEXT), 7 if window > 50 else 31):
        found = message(tmp_path, TEXT[:length])
        assert "file ends" in found or "broken JSON" in found, (length, found)


def test_the_byte_is_that_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for window in (60, 1 << 18):
        monkeypatch.setattr(scan, "WINDOW", window)
        for word in (b'"bbox": [1', b'"name": ', b'"file_name": '):
            place = TEXT.rindex(word) + len(word)
            assert f"broken JSON at byte {place} " in message(tmp_path, TEXT[:place] + b"?" + TEXT[place:])


def test_damaged_anywhere_is_an_error_or_the_same_json(tmp_path: Path) -> None:
    """Bytes changed at random: what Python's json refuses is refused; what it takes has as many annotations."""
    rng, file = random.Random(0), tmp_path / "boxes.json"
    for _ in range(400):
        text = bytearray(TEXT)
        for _ in range(rng.randint(1, 3)):
            text[rng.randrange(len(text))] = rng.choice(b'{}[]",:0aN\\ \xff')
        file.write_bytes(text)
        try:
            expected = len(json.loads(bytes(text).decode("utf-8", "replace"))["annotations"])
        except (ValueError, KeyError, TypeError):
            expected = None
        try:
            found = len(open_boxes(file))
        except BoxFileError:
            found = None
        # Twice the same key is an error here; and where a string holds broken UTF-8, only we may be content.
        assert found == expected or (found is None and b'"annotations"' in text) or expected is None, bytes(text)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(BoxFileError, match="no such file"):
        open_boxes(tmp_path / "boxes.json")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")  # root may read everything, so it can't be tried

    (tmp_path / "boxes.json").write_bytes(TEXT)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BoxFileError, match="Permission denied"):
        open_boxes(tmp_path / "boxes.json")


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(BoxFileError, match=r"no YOLO labels/ or YAML and no VOC Annotations/$"):
        open_boxes(tmp_path)
    (tmp_path / "a.json").write_bytes(TEXT)
    with pytest.raises(BoxFileError, match=r"name one of its JSON files: a\.json"):
        open_boxes(tmp_path)


def test_no_image_folder(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(TEXT)
    with pytest.raises(InputError, match="expected a folder"):
        open_boxes(tmp_path / "a.json", tmp_path / "a.json")


def test_no_annotations_at_all_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    file.write_text('{"images": [ ], "annotations": [\n]}')
    boxes = open_boxes(file)
    assert (len(boxes), len(boxes.images), boxes.annotation_ids([])) == (0, 0, [])
    assert boxes.order().tolist() == []
