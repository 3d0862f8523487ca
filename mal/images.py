"""Find, check and decode one image: the only reader of pictures.

What comes out is always (H, W, 3) uint8 RGB; a JPEG may be asked for at 1/2, 1/4 or 1/8 of its size. JPEG goes
through simplejpeg; everything else, and the JPEGs that simplejpeg refuses (CMYK, stray bytes between markers),
through Pillow. The format is read from the file's first bytes, never from its name. Only the first picture of a
file counts.

    grey, 1 bit, palette    as shown
    alpha                   dropped; the colours below it stay
    16 bit                  the high byte, in grey and in colour alike
    CMYK, YCbCr             converted without colour profile
    float and 32-bit grey   scaled by the first of 0..1 (float only), 0..255, 0..65535 that holds all values,
                            else by the image's own range; NaN is black
    not read                GIF, JPEG 2000, AVIF, HEIC; JPEG of 12 bits, TIFF of several float channels

All functions may be called from several threads; reading and decoding release the GIL.
"""

import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from mal.errors import ImageError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 2**28
"""Images whose header says more are refused before decoding: 16384 x 16384, 800 MB as RGB."""

MAX_SIDE = 2**23
"""The same for one side, whatever the other: crops of such an image stay within `crops.MAX_EDGE`."""

MAX_TIFF_PIXELS = 89_478_485
"""The same for TIFF: above this Pillow warns of a bomb, and a warning cannot be caught safely in threads."""

MAX_BYTES = 2**31
"""Longer files are refused unread."""

_PLUGINS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"II*\0": TiffImagePlugin.TiffImageFile,
    b"MM\0*": TiffImagePlugin.TiffImageFile,
    b"II+\0": TiffImagePlugin.TiffImageFile,
    b"MM\0+": TiffImagePlugin.TiffImageFile,
}
# Pillow's classes are opened directly: `Image.open` would warn of large images by itself, and would
# try every format that Pillow knows.

_DAMAGE = ("remature end", "bad Huffman code", "bad arithmetic code", "instead of RST")
# libjpeg's warnings after which pixels are lost. Pillow would decode such a file without a word.

_ORIENTATION = 0x0112
_INVERSE = {6: 8, 8: 6}


SHRINKS = (8, 4, 2)
"""How many times smaller a JPEG may be decoded."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image, perhaps smaller than it is."""

    pixels: Pixels
    """(h, w, 3) uint8 RGB, contiguous; h = ceil(height / shrink), w likewise."""
    width: int
    """Of the image itself, in pixels."""
    height: int
    shrink: int = 1
    """A place x, y of the image lies at x / shrink, y / shrink of `pixels`, exactly."""


class _Source(NamedTuple):
    """An opened image: what its header says, and how to get the pixels."""

    width: int
    height: int
    orientation: int  # EXIF 1..8; width and height are those before it is applied
    decode: Callable[[int], tuple[Pixels, int]]  # shrink that is wanted -> pixels, shrink that they have


def find_image(file_name: str, folder: Path, *, allow_outside: bool = False) -> Path:
    """Path of the image that a box file calls `file_name`.

    Args:
        file_name: as in the box file; may name subfolders (`/` only).
        folder: the image folder.
        allow_outside: accept absolute paths and `..` that leave the folder.

    Returns:
        A path that exists. `..` is resolved on the text, so it never climbs out through a link. Links
        inside the folder are followed wherever they lead: they belong to the folder's owner, not to
        whoever wrote the box file.

    Raises:
        ImageError: no such file, or the name leaves the folder.
    """
    path = folder / inner_name(file_name, allow_outside=allow_outside)
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name that the file system's encoding cannot hold
        raise ImageError(f"not found in {folder}: {_reason(error)}") from None
    return path


def inner_name(file_name: str, *, allow_outside: bool) -> str:
    """The file name without `.`, `..` and doubled slashes; ImageError if it then leads out of its folder."""
    if not file_name or "\0" in file_name:
        raise ImageError("no file name" if not file_name else "file name contains a NUL character")
    name = os.path.normpath(file_name)
    if (os.path.isabs(name) or name.split(os.sep)[0] == os.pardir) and not allow_outside:
        raise ImageError("file name leaves the image folder; --allow-outside accepts it")
    return name


def read_image(path: Path, width: int | None = None, height: int | None = None) -> Pixels:
    """Read one image file: `decode_image` of what `read_bytes` finds, (H, W, 3) uint8 RGB in full size."""
    return decode_image(read_bytes(path), width, height).pixels


def decode_image(
    data: bytes,
    width: int | None = None,
    height: int | None = None,
    enough: Callable[[int, int], float] = lambda width, height: 1.0,
) -> Picture:
    """Decode one image as the box file means it.

    Args:
        data: content of the file.
        width, height: size in pixels that the box file states; None or 0 where it states none.
        enough: (width, height) of the image -> how many times smaller it may be decoded. A JPEG then comes 2, 4
            or 8 times smaller, whatever of that is allowed (libjpeg leaves the finer cosines out: faster, and
            anti-aliased); every other image comes whole.

    Returns:
        The picture. The EXIF orientation is applied if the stated size fits the turned image, or fits both ways (180
        degrees, mirrored, square); it is left alone if the size fits only the stored one. Without a stated size
        the image comes out upright.

    Raises:
        ImageError: it is no image, is damaged or truncated, is too large, or fits the stated size in no
            orientation. The message is the reason, in one line.
    """
    source = _open(data)
    stored = (source.width, source.height)
    upright = (source.height, source.width) if source.orientation >= 5 else stored
    for size, orientation in ((upright, source.orientation), (stored, 1)):
        if (width or size[0], height or size[1]) == size:
            limit = enough(*size)
            # Rounding up adds half a pixel at the right and at the bottom; turned, it would move the picture.
            even = [by for by in SHRINKS if orientation == 1 or (size[0] % by == 0 and size[1] % by == 0)]
            pixels, shrink = source.decode(next((by for by in even if by <= limit), 1))
            return Picture(_orient(pixels, orientation) if orientation != 1 else pixels, *size, shrink)
    raise ImageError(f"image is {upright[0]} x {upright[1]} pixels, the box file says {width} x {height}")


def read_bytes(path: Path) -> bytes:
    """Content of an image file.

    Raises:
        ImageError: it cannot be read, is empty or too long, or is no regular file.
    """
    try:
        status = path.stat()
        # Opening a pipe would wait for a writer, and a device may never end.
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"file has {status.st_size} bytes, the limit is {MAX_BYTES}")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read: {_reason(error)}") from None
    if not data:
        raise ImageError("file is empty")
    return data


def _open(data: bytes) -> _Source:
    if data.startswith(b"\xff\xd8\xff"):
        source, limit = _open_jpeg(data), MAX_PIXELS
    else:
        plugin = next((plugin for magic, plugin in _PLUGINS.items() if data.startswith(magic)), None)
        if plugin is None:
            raise ImageError("is not a JPEG, PNG, WebP, BMP or TIFF image")
        source = _open_pillow(plugin, data)
        limit = MAX_TIFF_PIXELS if plugin is TiffImagePlugin.TiffImageFile else MAX_PIXELS
    if source.width * source.height > limit:
        raise ImageError(f"image is {source.width} x {source.height} pixels, more than the limit of {limit}")
    if max(source.width, source.height) > MAX_SIDE:
        raise ImageError(f"image is {source.width} x {source.height} pixels; a side may have {MAX_SIDE}")
    return source


def _open_jpeg(data: bytes) -> _Source:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: a subsampling it has no name for
        return _open_pillow(JpegImagePlugin.JpegImageFile, data)

    def decode(shrink: int) -> tuple[Pixels, int]:
        try:
            # These are the sizes that libjpeg makes, so this one is what it takes.
            small = {"min_width": -(-int(width) // shrink), "min_height": -(-int(height) // shrink)}
            return simplejpeg.decode_jpeg(data, "RGB", strict=True, **small), shrink
        except (ValueError, KeyError) as error:
            if any(sign in str(error) for sign in _DAMAGE):
                raise ImageError(f"damaged JPEG: {_reason(error)}") from None
        return _open_pillow(JpegImagePlugin.JpegImageFile, data).decode(1)

    return _Source(int(width), int(height), _orientation(_jpeg_exif(data)), decode)


def _open_pillow(plugin: type[ImageFile.ImageFile], data: bytes) -> _Source:
    # Pillow raises almost anything on a broken file, hence the wide `except` here and in `decode`.
    try:
        image = plugin(BytesIO(data))
        width, height = image.size
        orientation = 1
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            tag = image.tag_v2.get(_ORIENTATION, 1)
            orientation = next((value for value in range(1, 9) if value == tag), 1)
        else:
            exif = _jpeg_exif(data) if plugin is JpegImagePlugin.JpegImageFile else image.info.get("exif")
            orientation = _orientation(exif) if isinstance(exif, bytes) else 1
    except Exception as error:
        raise ImageError(f"damaged or unsupported image: {_reason(error)}") from None

    def decode(_: int) -> tuple[Pixels, int]:
        try:
            pixels = _to_rgb(image)
        except Exception as error:
            raise ImageError(f"damaged or unsupported image: {_reason(error)}") from None
        return (_orient(pixels, back) if back != 1 else pixels), 1

    back = 1
    if isinstance(image, TiffImagePlugin.TiffImageFile) and orientation != 1:
        # Pillow turns a TIFF upright by itself, in size and in pixels: turn it back.
        if orientation >= 5:
            width, height = height, width
        back = _INVERSE.get(orientation, orientation)
    return _Source(width, height, orientation, decode)


def _to_rgb(image: ImageFile.ImageFile) -> Pixels:
    image.load()
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
    elif image.mode in ("I", "F"):
        grey = _to_eight_bits(np.asarray(image))
    else:
        image.info.pop("transparency", None)  # else Pillow warns that a palette's alpha gets lost
        return np.array(image.convert("RGB"))
    return np.repeat(grey[:, :, None], 3, axis=2)


def _to_eight_bits(grey: NDArray[np.number]) -> Pixels:
    """Scale grey values of unknown range (H, W); the module's table says how."""
    values = np.nan_to_num(grey.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    tops = (1.0, 255.0, 65535.0) if grey.dtype.kind == "f" else (255.0, 65535.0)
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:
        values, top = values - low, (high - low) or 1.0
    return (values * (255.0 / top) + 0.5).astype(np.uint8)


def _jpeg_exif(data: bytes) -> bytes:
    """The EXIF block of a JPEG, or nothing: walk the segments before the scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 10 : end]
        at = end
    return b""


def _orientation(exif: bytes) -> int:
    """Orientation 1..8 from an EXIF block; 1 where it says nothing sensible.

    Read by hand because Pillow's reader warns about every other oddity in the block.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, directory)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, directory + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _orient(image: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation.

    2 mirror, 3 turn by 180 degrees, 4 flip, 5 transpose, 6 turn right, 7 transverse, 8 turn left.
    """
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _reason(error: Exception) -> str:
    """One short line from an exception of the system or of a library."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.splitlines() or [type(error).__name__])[0][:120]
