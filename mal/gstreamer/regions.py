"""Regions of interest of a buffer: read them, give them a mask, read the mask back.

GStreamer's Python binding cannot walk over the metas of a buffer: `Gst.Buffer.iterate_meta` wants a C pointer as its
state. So ctypes makes these calls; `hash` of a wrapped buffer or structure is its address.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mal.gstreamer.binding import Gst

MASK = "mask"
"""Name of the parameter."""


class Region(NamedTuple):
    """One GstVideoRegionOfInterestMeta."""

    address: int  # of the meta, as long as the buffer holds it
    id: int
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in frame pixels; may leave the frame


class RegionMask(NamedTuple):
    """The mask of a region, as it stands in the region's parameter `mask`."""

    x: int
    """Left column of the mask's window in the frame: the region's box, clipped to the frame."""
    y: int
    """Top row of the window."""
    pixels: NDArray[np.bool_]
    """(h, w) bool; (0, 0) where the region could not be labelled."""
    score: float
    """0..1: how good the mask is likely to be; 0 where there is none."""
    flags: str
    """Words with commas between them: "clipped,empty"; or why there is no mask."""
    model: str
    """First 12 hex digits of the model file's SHA-256."""


_POINTER = ctypes.c_void_p


class _Meta(ctypes.Structure):
    """GstVideoRegionOfInterestMeta, as in gst/video/gstvideometa.h since 1.14.

    Its x, y, w, h are unsigned there. A detector that writes -10 into them means -10, and no frame has 2^31 columns, so
    they are read as signed.
    """

    _fields_ = (
        ("flags", ctypes.c_int),
        ("info", ctypes.c_void_p),
        ("roi_type", ctypes.c_uint32),
        ("id", ctypes.c_int),
        ("parent_id", ctypes.c_int),
        ("x", ctypes.c_int),
        ("y", ctypes.c_int),
        ("w", ctypes.c_int),
        ("h", ctypes.c_int),
        ("params", ctypes.c_void_p),
    )


@cache
def _function(name: str, *arguments: Any, result: Any = ctypes.c_void_p, video: bool = False) -> Any:
    """A C function of GStreamer."""
    library = ctypes.CDLL("libgstvideo-1.0.so.0" if video else "libgstreamer-1.0.so.0")
    found = getattr(library, name)
    found.restype, found.argtypes = result, arguments
    return found


def read_regions(buffer: Any) -> list[Region]:
    """All regions of a Gst.Buffer, in the order in which they were added."""
    iterate = _function("gst_buffer_iterate_meta_filtered", _POINTER, _POINTER, ctypes.c_size_t)
    kind = _function("gst_video_region_of_interest_meta_api_get_type", result=ctypes.c_size_t, video=True)()
    state = ctypes.c_void_p()
    found: list[Region] = []
    while address := iterate(hash(buffer), ctypes.byref(state), kind):
        meta = _Meta.from_address(address)
        found.append(Region(address, meta.id, (meta.x, meta.y, meta.x + meta.w, meta.y + meta.h)))
    return found


def add_mask(region: Region, mask: RegionMask) -> None:
    """Give a region of a writable buffer its mask."""
    height, width = mask.pixels.shape
    structure = Gst.Structure.new_empty(MASK)
    for name, value in (("x", mask.x), ("y", mask.y), ("width", width), ("height", height)):
        structure.set_value(name, value)
    if mask.pixels.size:
        structure.set_value("data", Gst.Buffer.new_wrapped((mask.pixels.view(np.uint8) * np.uint8(255)).tobytes()))
    structure.set_value("score", mask.score)
    structure.set_value("flags", mask.flags)
    structure.set_value("model", mask.model)
    copy = _function("gst_structure_copy", _POINTER)(hash(structure))
    _function("gst_video_region_of_interest_meta_add_param", _POINTER, _POINTER, result=None, video=True)(
        region.address, copy
    )


def read_masks(buffer: Any) -> list[tuple[Region, RegionMask | None]]:
    """Regions of a Gst.Buffer with their masks; None: no `malmask` has seen this region."""
    get_param = _function("gst_video_region_of_interest_meta_get_param", _POINTER, ctypes.c_char_p, video=True)
    found: list[tuple[Region, RegionMask | None]] = []
    for region in read_regions(buffer):
        structure = get_param(region.address, MASK.encode())
        found.append((region, _read_mask(structure) if structure else None))
    return found


def _read_mask(structure: int) -> RegionMask:
    def number(name: str, of: str, kind: Any) -> Any:
        value = kind()
        get = _function(f"gst_structure_get_{of}", _POINTER, ctypes.c_char_p, _POINTER, result=ctypes.c_int)
        if not get(structure, name.encode(), ctypes.byref(value)):
            raise ValueError(f"parameter {MASK!r} of a region has no {of} {name!r}: not written by malmask")
        return value.value

    def text(name: str) -> str:
        get = _function("gst_structure_get_string", _POINTER, ctypes.c_char_p, result=ctypes.c_char_p)
        return (get(structure, name.encode()) or b"").decode()

    x, y, width, height = (number(name, "int", ctypes.c_int) for name in ("x", "y", "width", "height"))
    pixels = np.zeros((height, width), np.uint8)
    if pixels.size:
        value = _function("gst_structure_get_value", _POINTER, ctypes.c_char_p)(structure, b"data")
        buffer = _function("g_value_get_boxed", _POINTER)(value)
        extract = _function(
            "gst_buffer_extract", _POINTER, ctypes.c_size_t, _POINTER, ctypes.c_size_t, result=ctypes.c_size_t
        )
        extract(buffer, 0, pixels.ctypes.data, pixels.size)
    return RegionMask(x, y, pixels > 0, number("score", "double", ctypes.c_double), text("flags"), text("model"))


def set_ticket(buffer: Any, number: int) -> None:
    """Write a number on a writable Gst.Buffer; it survives copies."""
    buffer.add_reference_timestamp_meta(_ticket_caps(), number, Gst.CLOCK_TIME_NONE)


def take_ticket(buffer: Any) -> int | None:
    """The number of a writable Gst.Buffer, taken off; None: it has none."""
    meta = buffer.get_reference_timestamp_meta(_ticket_caps())
    if meta is None:
        return None
    number = meta.timestamp
    _function("gst_buffer_remove_meta", _POINTER, _POINTER, result=ctypes.c_int)(hash(buffer), hash(meta))
    return number


@cache
def _ticket_caps() -> Any:
    return Gst.Caps.new_empty_simple("timestamp/x-malmask-ticket")
