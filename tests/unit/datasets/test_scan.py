"""Windows: wherever they end, every element is read once."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mal.datasets import scan
from mal.datasets.document import open_document
from mal.datasets.scan import Reader, repair

CASES: dict[str, list[Any]] = {
    "plain": [{"id": n, "bbox": [n, 1, 2, 3]} for n in range(200)],
    "objects in lists": [{"parts": [{"a": 1}, {"b": {"c": [{}, {}]}}] * (n % 7)} for n in range(200)],
    "brackets in strings": [{"a": '},{"', "b": "]}\\", "c": ["}", "{"] * (n % 5)} for n in range(200)],
    "all sorts": [random.Random(n).choice([n, None, "},{", [], [[{}], {}], {}, 1.5, True]) for n in range(300)],
    "one long": [{"segmentation": [[0.5] * 5000]}, {"id": 1}, {"a": [{}, {}] * 3000}, 7],
    "one": [{"id": 1}],
}


@pytest.mark.parametrize("window", [1, 17, 100, 999, 1 << 18])
@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"separators": (",", ":")}], ids=["usual", "indented", "dense"])
@pytest.mark.parametrize("case", CASES)
def test_every_element_once(
    tmp_path: Path, case: str, style: dict[str, Any], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "WINDOW", window)
    file = tmp_path / "a.json"
    after = {"images": [{"x": "},{"}] * 30, "n": -1.5e3}
    file.write_text(json.dumps({"first": CASES[case], **after, "last": CASES[case]}, **style))
    text = file.read_bytes()
    reader = Reader(open_document(file))
    for key in ("first", "last"):
        assert reader.next_key() == key
        elements: list[Any] = []
        for found in reader.windows(msgspec.json.Decoder(list[Any]).decode):
            assert json.loads(b"[" + text[found.start : found.stop] + b"]") == found.elements
            elements += found.elements
        assert elements == CASES[case]
        for other in after if key == "first" else ():
            assert reader.next_key() == other
            reader.skip()
    assert reader.next_key() is None


@pytest.mark.parametrize("value", ["1", "-1.5e3", "true", '"\\u00e4\\""', "[ ]", "NaN", "-Infinity", '{"a":[1]}'])
def test_skipping_values_across_the_end_of_what_was_read(tmp_path: Path, value: str) -> None:
    file = tmp_path / "a.json"
    for padding in range(scan._TAIL - 12, scan._TAIL + 2):
        # The value lies across the first read, which starts at the value's white space.
        file.write_text(f'{{"long": [{" " * padding}{value}], "next": {value}}}')
        reader = Reader(open_document(file))
        keys: list[str | None] = []
        while (key := reader.next_key()) is not None:
            keys.append(key)
            reader.skip()
        assert keys == ["long", "next"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb'{"a": "\ud83d\ude00"}', rb'{"a": "\ud83d\ude00"}'),
        (rb'{"a": "\ud83d\ud83d\ude00"}', rb'{"a": "\ufffd\ud83d\ude00"}'),
        (rb'{"a": "\\ud83d"}', rb'{"a": "\\ud83d"}'),
        (rb'{"a": "\"NaN", "b": NaN}', rb'{"a": "\"NaN", "b": [ ]}'),
        (rb'{"a": "\\", "b": Infinity}', rb'{"a": "\\", "b": [      ]}'),
    ],
)
def test_repair(text: bytes, expected: bytes) -> None:
    assert repair(text) == expected
    assert len(expected) == len(text)
    msgspec.json.decode(expected)
