"""Tell a data set's format by its content and open it."""

from pathlib import Path

from mal.datasets.box_file import BoxFile
from mal.datasets.coco import scan_document
from mal.datasets.document import open_document
from mal.errors import BoxFileError


def open_boxes(path: Path, images: Path | None = None) -> BoxFile:
    """Read the boxes of a data set into columns.

    Args:
        path: a COCO or LVIS JSON file (also .json.gz).
        images: folder where file names start; default `images/` beside the file, else the file's folder.

    Raises:
        BoxFileError: nothing there, an unknown format, broken or no COCO JSON; `images` is no folder.
    """
    if images is not None and not images.is_dir():
        raise BoxFileError(f"image folder {images} is not there; expected a folder")
    if not path.exists():
        raise BoxFileError(f"no boxes at {path}: no such file or folder")
    document = open_document(path)
    scan = scan_document(document)
    return BoxFile(path, "lvis" if scan.lvis else "coco", images or _folder_beside(path), document, scan)


def _folder_beside(path: Path) -> Path:
    folder = path.parent / "images"
    return folder if folder.is_dir() else path.parent
