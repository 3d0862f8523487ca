"""Readers of boxes, one file a format, and the writer that puts masks into them.

Every format becomes one COCO document; what the document says beyond boxes is never interpreted and never lost.
"""

from mal.datasets.box_file import BoxFile
from mal.datasets.open import open_boxes
from mal.datasets.table import ImageTable

__all__ = ["BoxFile", "ImageTable", "open_boxes"]
