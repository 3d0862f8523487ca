"""What GStreamer's Python loader finds in a folder `python` of GST_PLUGIN_PATH."""

import sys

_path = sys.path

from mal.gstreamer.binding import Gst  # noqa: E402
from mal.gstreamer.element import MalMask  # noqa: E402

# OpenCV's import puts a new list in the place of sys.path. The loader would add the folders of other elements to the
# old one, and not find them.
_path[:] = sys.path
sys.path = _path

__gstelementfactory__ = ("malmask", Gst.Rank.NONE, MalMask)
