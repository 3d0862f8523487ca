"""`mal demo`: label the built-in photographs and draw what came out."""

from pathlib import Path

from mal.errors import OutputError
from mal.evaluation.preview import write_preview
from mal.runtime.label import label_dataset

PHOTOS = Path(__file__).resolve().parents[1] / "models" / "photos"
"""The built-in photographs: JPEGs, `boxes.json` and SOURCES.md in one folder."""


def run_demo(out_dir: Path, model: str | Path = "student", device: str | None = None) -> Path:
    """Label the built-in photographs.

    Args:
        out_dir: folder to write: `masks.json`, its report, the pictures and the index page.
        model, device: as in `label_dataset`.

    Returns:
        The index page.

    Raises:
        MalError: as `label_dataset` and `write_preview`.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into {out_dir}: {error.strerror}") from None
    masks = out_dir / "masks.json"
    label_dataset(PHOTOS / "boxes.json", model=model, images=PHOTOS, output=masks, device=device, fresh=True)
    return write_preview(masks, PHOTOS, out_dir, title="mal demo").index
