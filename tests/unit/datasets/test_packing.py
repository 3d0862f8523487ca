"""gzip and zstd in and out: equal content, damage, bombs, memory."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from mal.datasets import open_boxes, packing
from mal.datasets.splice import Values
from mal.errors import BoxFileError, MissingPackageError

zstandard = pytest.importorskip("zstandard", reason="needs zstandard, the extra `zstd`")

ANNOTATIONS = [{"id": n, "image_id": n % 7, "bbox": [n % 11, 2, 3, 4], "noise": hash(n * 3.7)} for n in range(3000)]
TEXT = json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": ANNOTATIONS}).encode()
PACK = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
UNPACK = {".gz": gzip.decompress, ".zst": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)}


@pytest.mark.parametrize("suffix", PACK)
def test_in_and_out(tmp_path: Path, suffix: str) -> None:
    half = len(TEXT) // 2
    for index, data in enumerate([PACK[suffix](TEXT), PACK[suffix](TEXT[:half]) + PACK[suffix](TEXT[half:])]):
        file = tmp_path / f"{index}.json{suffix}"  # whole, and as `cat a.gz b.gz` makes it
        file.write_bytes(data)
        boxes = open_boxes(file)
        assert boxes.annotation_ids([0, 2999]) == [0, 2999]
        output = tmp_path / f"out{index}.JSON{suffix.upper()}"
        with output.open("wb") as stream, packing.packed(output, stream) as packed:
            boxes.write(packed, ["area"], lambda start, stop: Values.of([None] * (stop - start), 1))
        assert UNPACK[suffix](output.read_bytes()) == TEXT
    assert (tmp_path / f"out0.JSON{suffix.upper()}").read_bytes() == output.read_bytes()


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:50], lambda data: data[: len(data) // 2],
                                    lambda data: data[:-1] + bytes([data[-1] ^ 1]),
                                    lambda data: data[:300] + b"mal" + data[303:],
                                    lambda data: data + b"rest"])  # fmt: skip
def test_damage(tmp_path: Path, suffix: str, damage: object) -> None:
    file = tmp_path / f"a.json{suffix}"
    file.write_bytes(damage(PACK[suffix](TEXT)))  # type: ignore[operator]
    with pytest.raises(BoxFileError, match=r"damaged (gzip|zstd) file"):
        open_boxes(file)


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("text", [b"{" + b" " * 10**8, b"[" * 10**8])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, suffix: str, text: bytes) -> None:
    file = tmp_path / f"a.json{suffix}"
    file.write_bytes(PACK[suffix](text))
    with pytest.raises(BoxFileError, match="more than 250 times its size"):
        open_boxes(file)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json.zst"
    file.write_bytes(PACK[".zst"](TEXT))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for work in (open_boxes, packing.check_packing):
        with pytest.raises(MissingPackageError, match=r"mask-auto-labeler\[zstd\]"):
            work(file)
