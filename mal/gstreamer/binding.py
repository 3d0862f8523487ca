"""GStreamer's Python binding, in the versions that `malmask` is written for; it comes from the system's packages."""

from importlib import import_module
from typing import Any

import gi  # pyright: ignore[reportMissingImports]


def _load(name: str) -> Any:
    gi.require_version(name, "1.0")
    return import_module(f"gi.repository.{name}")


Gst = _load("Gst")
GstBase = _load("GstBase")
GstVideo = _load("GstVideo")
GObject: Any = import_module("gi.repository.GObject")
GLib: Any = import_module("gi.repository.GLib")

if not Gst.is_initialized():  # a program's own call may have had arguments
    Gst.init(None)
