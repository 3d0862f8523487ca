"""Mask Auto-Labeler: boxes in, masks out.

    import mal
    labeler = mal.MaskLabeler("student")
    masks, scores = labeler(image, boxes)

Importing this package loads nothing but this file; each name loads its module when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mal.errors import MalError
    from mal.runtime.label import label_dataset
    from mal.runtime.labeler import LabelResult, MaskLabeler

__version__ = "0.1.0"
__all__ = ["LabelResult", "MalError", "MaskLabeler", "__version__", "label_dataset"]

_HOME = {
    "MalError": "mal.errors",
    "MaskLabeler": "mal.runtime.labeler",
    "LabelResult": "mal.runtime.labeler",
    "label_dataset": "mal.runtime.label",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mal' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
