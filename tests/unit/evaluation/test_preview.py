from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from mal.errors import InputError, OutputError
from mal.evaluation.page import Card, render
from mal.evaluation.preview import write_preview

Document = dict[str, Any]


class Page(HTMLParser):
    """Sources of the pictures and all text of a page."""

    def __init__(self, page: Path | str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.words = ""
        self.tags: list[str] = []
        self.feed(page.read_text() if isinstance(page, Path) else page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img" and dict(attrs).get("src"):
            self.sources.append(dict(attrs)["src"] or "")

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def labelled(tmp_path: Path, rng: np.random.Generator) -> Document:
    """Two images, one object by RLE with a score, one by polygon without."""
    (tmp_path / "images").mkdir()
    for name in ("one.png", "two.jpg"):
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(tmp_path / "images" / name)
    return {
        "images": [
            {"id": "a", "file_name": "one.png", "width": 40, "height": 30},
            {"id": 2, "file_name": "two.jpg", "width": 40, "height": 30},
        ],
        "categories": [{"id": 1, "name": "<b>cat</b> & co"}],
        "annotations": [
            {
                "id": 1, "image_id": "a", "category_id": 1, "bbox": [5, 5, 10, 10], "mal": {"score": 0.25},
                "segmentation": {"size": [30, 40], "counts": [0, 600, 600]},
            },
            {"id": 2, "image_id": 2, "category_id": 1, "bbox": [5, 5, 9, 9], "segmentation": [[5, 5, 14, 5, 14, 14]]},
        ],
    }  # fmt: skip


def preview(folder: Path, document: Document, images: Path | None = None) -> Any:
    (folder / "masks.json").write_bytes(orjson.dumps(document))
    return write_preview(folder / "masks.json", images, folder / "out")


def test_rle_and_polygons_become_pictures_on_a_page(tmp_path: Path, labelled: Document) -> None:
    report = preview(tmp_path, labelled)

    page = Page(report.index)
    assert (report.pictures, report.masks, report.problems) == (2, 2, [])
    assert len(page.sources) == 2
    for source in page.sources:
        with Image.open(tmp_path / "out" / source) as picture:
            assert picture.size == (120, 90)
    assert "0.25" in page.words
    assert "script" in page.tags
    assert "link" not in page.tags


def test_text_of_the_data_is_escaped(tmp_path: Path, labelled: Document) -> None:
    labelled["images"][1]["file_name"] = "<img onerror=x>.jpg"
    page = Page(preview(tmp_path, labelled).index)
    assert "<b>cat</b> & co" in page.words
    assert "<img onerror=x>.jpg" in page.words
    assert len(page.sources) == 1


def test_trouble_is_listed_and_not_fatal(tmp_path: Path, labelled: Document) -> None:
    labelled["images"].append({"id": 3, "file_name": "missing.jpg", "width": 40, "height": 30})
    labelled["annotations"] += [
        {"id": 3, "image_id": 3, "category_id": 1, "bbox": [0, 0, 5, 5]},
        {
            "id": 4,
            "image_id": 2,
            "category_id": 1,
            "bbox": [0, 0, 5, 5],
            "segmentation": {"size": [1, 1], "counts": "?"},
        },
        {"id": 5, "image_id": 77, "category_id": 1, "bbox": [0, 0, 5, 5]},
        {"id": 6, "image_id": 2, "category_id": 1, "bbox": [50, 0, 5, 5]},
    ]

    report = preview(tmp_path, labelled)

    assert (report.pictures, report.masks, len(report.problems)) == (2, 2, 4)
    words = Page(report.index).words
    assert all(
        text in words for text in ("missing.jpg: not found", "annotation 4", "annotation 6", "1 objects whose image")
    )
    assert "4 not drawn" in str(report)


def test_objects_without_a_mask_are_drawn_but_not_counted(tmp_path: Path, labelled: Document) -> None:
    del labelled["annotations"][1]["segmentation"]
    report = preview(tmp_path, labelled)
    assert (report.pictures, report.masks) == (2, 1)


def test_pictures_of_equal_names_do_not_overwrite_each_other(tmp_path: Path, labelled: Document) -> None:
    labelled["images"][1]["file_name"] = "sub/one.png"
    (tmp_path / "images" / "sub").mkdir()
    (tmp_path / "images" / "two.jpg").rename(tmp_path / "images" / "sub" / "one.png")
    assert preview(tmp_path, labelled).pictures == 2
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 2


def test_no_image_at_all_is_an_error_that_says_what_to_do(tmp_path: Path, labelled: Document) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputError, match=r"one.png: not found.*--images"):
        preview(tmp_path, labelled, images=tmp_path / "elsewhere")


def test_folder_that_cannot_be_written(tmp_path: Path, labelled: Document) -> None:
    (tmp_path / "out").write_text("a file in the way")
    with pytest.raises(OutputError, match="cannot write"):
        preview(tmp_path, labelled)


def test_file_without_objects_gives_an_empty_page(tmp_path: Path, labelled: Document) -> None:
    labelled["annotations"] = []
    report = preview(tmp_path, labelled)
    assert (report.pictures, report.masks) == (0, 0)
    assert report.index.exists()


def test_order_of_cards_is_left_to_the_reader() -> None:
    cards = [Card("a b.jpg", 3, 2, "a", [("x", 0.9, (1, 2, 3)), ("y", 0.125, (1, 2, 3))]), Card("c.jpg", 3, 2, "c", [])]
    html = render("t", [], cards, [])
    assert 'data-worst="0.1250" data-count="2"' in html
    assert 'data-worst="2" data-count="0"' in html
    assert Page(html).sources == ["a%20b.jpg", "c.jpg"]
