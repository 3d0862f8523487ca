"""Build the COCO document that stands for a data set in another format, on disk and one image at a time."""

import tempfile
from typing import Any, Self

import msgspec

from mal.datasets.document import Document

_encode = msgspec.json.Encoder().encode


class Builder:
    """Collects images and annotations in a `with` block; ids are running numbers from 1 in the order of the calls.

    Args:
        name: of the data set, for messages.
        format: written into the document's `info`.
    """

    def __init__(self, name: str, format: str) -> None:
        self._name = name
        # Annotations go straight to disk and so come first; the order of keys means nothing in JSON.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        info = {"description": f"made by mal from {format} labels; ids are running numbers"}
        self._file.write(b'{"info": ' + _encode(info) + b', "annotations": [')
        self._images: list[bytes] = []
        self._annotations = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def image(self, file_name: str, size: tuple[int, int] | None) -> int:
        """Add an image of `size` width, height in pixels (None: unknown) and return its id."""
        fields: dict[str, Any] = {"id": len(self._images) + 1, "file_name": _clean(file_name)}
        if size:
            fields["width"], fields["height"] = size
        self._images.append(_encode(fields))
        return fields["id"]

    def annotation(self, image_id: int, category_id: int | None, bbox: list[float] | None, **others: Any) -> None:
        """Add an annotation; `bbox` is COCO's x, y, width, height in pixels, None if it could not be read."""
        self._annotations += 1
        fields: dict[str, Any] = {"id": self._annotations, "image_id": image_id}
        if category_id is not None:
            fields["category_id"] = category_id
        if bbox is not None:
            fields["bbox"] = bbox
        self._file.write((b",\n" if self._annotations > 1 else b"\n") + _encode(fields | others))

    def finish(self, categories: dict[int, str]) -> Document:
        """The document, with these names of category ids."""
        listed = [{"id": number, "name": _clean(name)} for number, name in categories.items()]
        images = b",\n".join(self._images)
        self._file.write(b'],\n"images": [\n' + images + b'],\n"categories": ' + _encode(listed) + b"}\n")
        self._file.flush()
        return Document(self._file, self._name)


def _clean(text: str) -> str:
    """The text without what UTF-8 cannot hold (a file name that is no UTF-8: its image will be missed by name)."""
    return text.encode("utf-8", "replace").decode()
