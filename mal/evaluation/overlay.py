"""Draw masks over their photograph: the picture one would put into a talk."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mal.boxes import pixel_window
from mal.evaluation.agreement import tight_window

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]
Spot = tuple[int, int, int, int]  # x0, y0, x1, y1 in the picture's pixels

SHORTEST, LONGEST = 1280, 1600
"""Longest side of a picture in pixels: small photographs are enlarged (at most 3 x), so that labels stay readable."""

FILL_SMALL, FILL_LARGE = 0.45, 0.22
"""Opacity of a mask that covers nothing, or all, of the picture: a large one must not drown the photograph."""

PALETTE: tuple[Colour, ...] = (
    (0, 200, 235),  # cyan
    (255, 190, 20),  # amber
    (255, 100, 190),  # pink
    (60, 220, 120),  # green
    (85, 145, 255),  # blue
    (255, 100, 90),  # coral
    (175, 125, 255),  # violet
    (195, 230, 60),  # lime
    (255, 145, 60),  # orange
    (40, 210, 185),  # teal
)
CONTRAST = 70.0
"""Lab distance that is contrast enough: beyond it the palette's order decides."""
CHROMA = 30.0
"""Chroma of a mask's tint that is colour enough, in Lab."""
FEW = 6
"""On a picture of more objects those smaller than their name tag go without it."""
GREY: Colour = (168, 172, 180)
"""Of a box without a mask."""


@dataclass(frozen=True)
class Drawn:
    """One object to draw."""

    box: NDArray[np.float64]
    """(4,) x0, y0, x1, y1 in image pixels, clipped to the image, with an area."""
    mask: NDArray[np.bool_] | None
    """(H, W) bool; None draws the box alone, in grey."""
    name: str
    score: float | None


class _Label(NamedTuple):
    """A name tag as it is pasted."""

    pixels: Pixels  # (h, w, 3)
    opacity: NDArray[np.float32]  # (h, w, 1), 0..1


def draw(image: Pixels, objects: Sequence[Drawn]) -> tuple[Pixels, list[Colour]]:
    """Draw all objects of one photograph, large ones first so that small ones stay on top.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        objects: N objects.

    Returns:
        The picture, (h, w, 3) uint8 RGB, longest side SHORTEST..LONGEST where the photograph allows it, and the
        colour of each object: as unlike its surroundings, and as rarely used on this picture, as the palette allows.
    """
    longest = max(image.shape[:2])
    scale = min(3.0, SHORTEST / longest) if longest < SHORTEST else min(1.0, LONGEST / longest)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA).astype(np.uint8)
    colours = choose_colours(image, objects)
    order = sorted(range(len(objects)), key=lambda row: -_area(objects[row].box))
    for row in order:
        mask = objects[row].mask
        if mask is not None:
            _paint(picture, mask, colours[row])
    for row in order:
        _outline_box(picture, objects[row].box * scale, colours[row])
    boxes = [_whole(objects[row].box * scale) for row in range(len(objects))]
    taken: list[Spot] = []
    for row in order:
        label = _label(objects[row].name, objects[row].score, colours[row], max(13, round(max(size) / 66)))
        if len(objects) <= FEW or _size(boxes[row]) >= label.opacity.size:
            _tag(picture, label, boxes[row], taken, [box for box in boxes if box != boxes[row]])
    return picture, colours


def choose_colours(image: Pixels, objects: Sequence[Drawn]) -> list[Colour]:
    """A colour for each object, in their order; GREY where there is no mask."""
    palette = _lab(np.array(PALETTE, np.uint8))
    uses = np.zeros(len(PALETTE))
    colours: list[Colour] = []
    for drawn in objects:
        window = None if drawn.mask is None else tight_window(drawn.mask)
        if drawn.mask is None or window is None:
            colours.append(GREY)
            continue
        part, mask = image[window], drawn.mask[window]
        # The colour must stand out from the object and from what lies around it in its window.
        grounds = [part[mask], part[~mask]] if not mask.all() else [part[mask]]
        means = np.array([ground.mean(axis=0) for ground in grounds])
        distances = np.linalg.norm(palette[:, None] - _lab(means.astype(np.uint8))[None], axis=2)
        contrast = np.minimum(distances, CONTRAST).sum(axis=1)
        # Over its complement a colour turns to mud: what is left of its chroma counts as well.
        mixed = _lab((0.7 * means[0] + 0.3 * np.array(PALETTE)).astype(np.uint8))
        chroma = np.minimum(np.linalg.norm(mixed[:, 1:], axis=1), CHROMA)
        # All this sums to 170 at most, so a colour comes back only when all have been used as often.
        best = int(np.argmax(contrast + chroma - 1000 * uses))
        uses[best] += 1
        colours.append(PALETTE[best])
    return colours


def _paint(picture: Pixels, mask: NDArray[np.bool_], colour: Colour) -> None:
    """Fill one mask and draw its outline, into `picture`."""
    window = tight_window(mask)
    if window is None:
        return
    height, width = picture.shape[:2]
    scale = width / mask.shape[1]
    line = max(2, round(max(height, width) / 560))
    # Work on the part of the picture that the mask and its outline can touch.
    margin = int(np.ceil(2 * line / scale)) + 2
    y0, x0 = max(0, window[0].start - margin), max(0, window[1].start - margin)
    y1, x1 = min(mask.shape[0], window[0].stop + margin), min(mask.shape[1], window[1].stop + margin)
    left, top = round(x0 * scale), round(y0 * scale)
    right, bottom = min(width, round(x1 * scale)), min(height, round(y1 * scale))
    part = picture[top:bottom, left:right]
    if not part.size:
        return
    coverage = _smooth(mask[y0:y1, x0:x1], (right - left, bottom - top), scale)
    contours = _contours(coverage, scale)
    share = float(mask.mean())
    opacity = FILL_LARGE + (FILL_SMALL - FILL_LARGE) * (1 - share) ** 3
    fill = np.clip((coverage - 0.5) * 2 * max(1.0, scale) + 0.5, 0, 1) * np.float32(opacity)
    _blend(part, fill, colour)
    _blend(part, _strokes(part.shape[:2], contours, line + 2) * 0.35, (0, 0, 0))
    _blend(part, _strokes(part.shape[:2], contours, line), colour)


def _smooth(mask: NDArray[np.bool_], size: tuple[int, int], scale: float) -> NDArray[np.float32]:
    """The mask at the picture's size, 0..1, its stairs rounded; .5 is the outline.

    The blur of .45 image pixels is the widest that keeps a single pixel above .5.
    """
    values = mask.astype(np.float32)
    if scale > 1:
        values = cv2.GaussianBlur(values, (3, 3), 0.45, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), np.float32)
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def _contours(coverage: NDArray[np.float32], scale: float) -> list[NDArray[np.float64]]:
    """Outlines as (K, 2) x, y points in the part's pixels, smoothed along their way; holes included."""
    inside = (coverage > 0.5).astype(np.uint8)
    found, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # The mean over about three image pixels along the closed line takes the pixels' stairs and leaves the shape.
    reach = max(2, round(1.6 * scale))
    smoothed: list[NDArray[np.float64]] = []
    for contour in found:
        points = contour.reshape(-1, 2).astype(np.float64)
        if len(points) >= 6 * reach:
            points = np.mean([np.roll(points, shift, axis=0) for shift in range(-reach, reach + 1)], axis=0)
        smoothed.append(points)
    return smoothed


def _strokes(shape: tuple[int, ...], contours: Sequence[NDArray[np.float64]], thickness: int) -> NDArray[np.float32]:
    """Closed lines of `thickness` pixels, anti-aliased, as coverage 0..1."""
    canvas = np.zeros(shape, np.uint8)
    # Four fractional bits: OpenCV draws at sixteenths of a pixel.
    lines = [np.round(points * 16).astype(np.int32).reshape(-1, 1, 2) for points in contours]
    cv2.polylines(canvas, lines, True, (255,), thickness, cv2.LINE_AA, 4)
    return np.asarray(canvas, np.float32) / np.float32(255)


def _blend(part: Pixels, opacity: NDArray[np.float32], colour: Colour) -> None:
    mixed = part + (np.array(colour, np.float32) - part) * opacity[..., None]
    part[:] = np.round(mixed).astype(np.uint8)


def _outline_box(picture: Pixels, box: NDArray[np.float64], colour: Colour) -> None:
    """A thin line along the box, into `picture`."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = pixel_window(np.clip(box, 0, [width, height, width, height]))
    for rows, columns in (
        (slice(y0, y0 + 1), slice(x0, x1)),
        (slice(y1 - 1, y1), slice(x0, x1)),
        (slice(y0, y1), slice(x0, x0 + 1)),
        (slice(y0, y1), slice(x1 - 1, x1)),
    ):
        part = picture[rows, columns]
        _blend(part, np.full(part.shape[:2], 0.75, np.float32), colour)


def _tag(picture: Pixels, label: _Label, box: Spot, taken: list[Spot], others: Sequence[Spot]) -> None:
    """Paste a name tag beside its object's box and note the spot in `taken`.

    Best where it hides neither a tag nor another small object, else where it hides no tag; where neither is
    to be had there is no tag: the page lists the object all the same.
    """
    height, width = picture.shape[:2]
    tall, wide = label.pixels.shape[:2]
    if wide > width or tall > height:
        return
    x0, y0, x1, y1 = box
    corners = [(x0, y0 - tall), (x0, y0), (x1 - wide, y0 - tall), (x0, y1), (x1 - wide, y1 - tall), (x0, y1 - tall)]
    spots: list[Spot] = []
    for x, y in corners:
        x, y = max(0, min(x, width - wide)), max(0, min(y, height - tall))
        spots.append((x, y, x + wide, y + tall))
    small = [other for other in others if _size(other) < 4 * wide * tall]
    for hidden in ([*taken, *small], taken):
        spot = next((spot for spot in spots if not any(_overlap(spot, other) for other in hidden)), None)
        if spot is not None:
            break
    else:
        return
    taken.append(spot)
    part = picture[spot[1] : spot[3], spot[0] : spot[2]]
    part[:] = np.round(part + (label.pixels.astype(np.float32) - part) * label.opacity).astype(np.uint8)


def _whole(box: NDArray[np.float64]) -> Spot:
    x0, y0, x1, y1 = (round(edge) for edge in box.tolist())
    return x0, y0, x1, y1


def _size(spot: Spot) -> int:
    return (spot[2] - spot[0]) * (spot[3] - spot[1])


def _overlap(a: Spot, b: Spot) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _label(name: str, score: float | None, colour: Colour, size: int) -> _Label:
    """A rounded tag in the object's colour: the name, and the score beside it."""
    fine = 4  # drawn four times as large and shrunk: Pillow's rounded corners are not anti-aliased
    font = _font(size * fine)
    ink = (16, 18, 22) if _brightness(colour) > 110 else (255, 255, 255)
    faint = tuple(round(0.72 * a + 0.28 * b) for a, b in zip(ink, colour, strict=True))
    text, number = " ".join(name.split()), "" if score is None else f"{score:.2f}"
    gap, pad, tall = 0.35 * size * fine, 0.4 * size * fine, round(1.42 * size) * fine
    text_wide, number_wide = font.getlength(text), font.getlength(number)
    wide = 2 * pad + text_wide + (gap + number_wide if number else 0)
    canvas = Image.new("RGBA", (int(np.ceil(wide / fine)) * fine, tall), (*colour, 0))
    pen = ImageDraw.Draw(canvas)
    pen.rounded_rectangle((0, 0, canvas.width - 1, tall - 1), radius=0.28 * size * fine, fill=(*colour, 255))
    pen.text((pad, tall / 2), text, ink, font, anchor="lm")
    if number:
        pen.text((pad + text_wide + gap, tall / 2), number, faint, font, anchor="lm")
    pixels = np.asarray(canvas.resize((canvas.width // fine, tall // fine), Image.Resampling.BOX))
    return _Label(pixels[:, :, :3], np.asarray(pixels[:, :, 3:], np.float32) / np.float32(255))


def _brightness(colour: Colour) -> float:
    """Rec. 601 luma, 0..255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _lab(colours: Pixels) -> NDArray[np.float32]:
    """(N, 3) uint8 RGB to (N, 3) CIE Lab."""
    return cv2.cvtColor((colours[None] / np.float32(255)).astype(np.float32), cv2.COLOR_RGB2LAB)[0].astype(np.float32)


def _area(box: NDArray[np.float64]) -> float:
    return float(np.prod(box[2:] - box[:2]))
