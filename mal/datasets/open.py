"""Tell a data set's format by its content and open it."""

from pathlib import Path

from mal.datasets.box_file import BoxFile
from mal.datasets.coco import scan_document
from mal.datasets.document import open_document
from mal.datasets.voc import build_voc, find_xml
from mal.datasets.yolo import build_yolo, find_yaml
from mal.errors import BoxFileError
from mal.sources import Address, Folder, open_source


def open_boxes(path: Path, images: Address | None = None, images_json: Path | None = None) -> BoxFile:
    """Read the boxes of a data set into columns.

    Args:
        path: COCO or LVIS: a JSON file, plain or packed (gzip, zstd). YOLO: the data set's YAML, or a folder with it
            or with `images/` and `labels/`. VOC: a folder with `Annotations/` and `JPEGImages/`, a folder of XML
            files or one.
        images: folder, tar files or address where file names start (see `mal.sources`); default `images/` beside
            the JSON, else the JSON's folder; the other formats know their own.
        images_json: where `path` is a list of detections (COCO's results format): the COCO file of their images.

    Raises:
        BoxFileError: nothing there, an unknown format, a broken file; `images` is no folder.
    """
    try:
        return _open_boxes(path, images, images_json)
    except OSError as error:  # a folder that may not be entered, a name that is too long, no space for a temporary file
        raise BoxFileError(f"cannot read boxes {path}: {error.strerror or error}") from None


def _open_boxes(path: Path, images: Address | None, images_json: Path | None) -> BoxFile:
    source = None if images is None else open_source(images)
    if not path.exists():
        raise BoxFileError(f"no boxes at {path}: no such file or folder")
    format = _format(path)
    if images_json is not None:
        if format != "json":
            raise BoxFileError(f"{path} has images of its own; --images-json is for lists of detections")
        detections, document = open_document(path), open_document(images_json)
        scan = scan_document(document, detections)
        return BoxFile(path, "detections", source or Folder(_folder_beside(images_json)), detections, scan, document)
    if format == "json":
        document, folder = open_document(path), _folder_beside(path)
    elif format == "voc":
        document, folder = build_voc(path)
    elif source is None or isinstance(source, Folder):
        document, folder = build_yolo(path, source.folder if source else None)
    else:
        raise BoxFileError(f"YOLO labels are fractions of images in a folder; {images} is none")
    scan = scan_document(document)
    if format == "json":
        format = "lvis" if scan.lvis else "coco"
    return BoxFile(path, format, source or Folder(folder), document, scan)


def _format(path: Path) -> str:
    if path.is_dir():
        if not (path / "Annotations").is_dir() and ((path / "labels").is_dir() or find_yaml(path)):
            return "yolo"
        if find_xml(path):
            return "voc"
        files = ", ".join(sorted(file.name for file in path.glob("*.json"))[:3])
        hint = f"; name one of its JSON files: {files}" if files else ""
        raise BoxFileError(f"folder {path} has no YOLO labels/ or YAML and no VOC Annotations/{hint}")
    if path.suffix.lower() in (".yaml", ".yml"):
        return "yolo"
    return "voc" if path.suffix.lower() == ".xml" else "json"


def _folder_beside(path: Path) -> Path:
    folder = path.parent / "images"
    return folder if folder.is_dir() else path.parent
