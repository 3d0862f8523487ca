"""What Gst-nvinfer shows the network when our probe asks for a crop, on the CPU. The judge of the DeepStream plugin.

It differs from `mal.crops` in three ways: the rectangle has even edges, it never leaves the frame (so at the frame's
border the box is not its centre), and it is resampled without anti-aliasing. What that costs: docs/deepstream.md.

Source: Gst-nvinfer 9.1, get_converted_buffer (rounding); NvBufSurfTransform_Inter (filters). How NvBufSurfTransform
samples is not public: the half-pixel convention is assumed.
"""

import math
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Filter = Literal["nearest", "bilinear"]
_FILTERS = {"nearest": cv2.INTER_NEAREST_EXACT, "bilinear": cv2.INTER_LINEAR}


def crop_in_frame(box: NDArray[np.float64], width: int, height: int, expansion: float) -> NDArray[np.float64]:
    """The rectangle that the sink probe writes: the box grown by `expansion`, clipped to the frame, even.

    Each grown edge goes to the nearest even pixel, but never into the box, and no further than the frame's last even
    pixel. nvinfer's own rounding then changes nothing.

    Args:
        box: (4,) x0, y0, x1, y1, clipped to the frame, with an area.
        width, height: of the frame, at least 2 pixels each.
        expansion: the model's.

    Returns:
        (4,) even whole numbers, at least 2 pixels wide and high.

    >>> crop_in_frame(np.array([10.0, 0.0, 30.0, 7.0]), 31, 40, 0.3)
    array([ 6.,  0., 30.,  8.])
    """
    left, right = _side(float(box[0]), float(box[2]), width, expansion)
    top, bottom = _side(float(box[1]), float(box[3]), height, expansion)
    return np.array([left, top, right, bottom], np.float64)


def _side(low: float, high: float, length: int, expansion: float) -> tuple[int, int]:
    margin = (high - low) * (expansion / 2)
    last = length // 2  # everything in steps of two pixels
    start = min(math.floor((low - margin) / 2 + 0.5), math.floor(low / 2))
    stop = max(math.floor((high + margin) / 2 + 0.5), math.ceil(high / 2))
    start, stop = min(max(start, 0), last - 1), min(stop, last)
    return 2 * start, 2 * max(stop, start + 1)


def cut_as_nvinfer(
    image: NDArray[np.uint8], rect: NDArray[np.float64], size: int, scaling: Filter = "bilinear"
) -> NDArray[np.uint8]:
    """Crop as nvinfer converts it: whole even pixels, resampled on uint8 by `scaling-filter`.

    Args:
        image: (H, W, 3) uint8 RGB.
        rect: (4,) of `crop_in_frame`.
        size: S, side of the crop.
        scaling: "bilinear" is scaling-filter=1; "nearest" is 0, and 6, nvinfer's default.

    Returns:
        (S, S, 3) uint8 RGB.
    """
    left, top, right, bottom = (int(edge) for edge in rect)
    patch = image[top:bottom, left:right]
    return np.asarray(cv2.resize(patch, (size, size), interpolation=_FILTERS[scaling]), np.uint8)
