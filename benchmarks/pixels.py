"""How fast are the steps between an image file and the network, and between the network and COCO's run lengths?

    python benchmarks/pixels.py [--boxes FILE [--images DIR]] [--size 192] [--limit 1000] [--json]

Default data: the built-in photographs with 600 random boxes of COCO's sizes (half of them under 50 pixels, one in
twenty over 300). Rates are per second of processor time of one thread: the clock does not run while others have
the core. Best of three. Peers in the same run, for the same results:

    decode      Pillow
    crops       Pillow resizing the whole photograph, padded by numpy.pad beforehand (padding not counted)
    to_input    NumPy into fresh memory: transpose, astype (ours into memory used before)
    mask+RLE    logits enlarged to the box by OpenCV, pasted into the whole image, pycocotools.mask.encode
    RLE         the mask pasted into the whole image, pycocotools.mask.encode

Logits are blobs made up here: no model is needed, and their outlines are about as long as those of objects.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL
import pycocotools.mask
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

import mal
from mal import boxes, crops, masks
from mal.datasets import open_boxes
from mal.images import find_image, read_image

EXPANSION = 0.3
PHOTOS = Path(mal.__file__).parent / "models" / "photos"


def load(file: Path | None, folder: Path | None, limit: int) -> list[tuple[Path, NDArray[np.float64]]]:
    """Images and their clipped, usable boxes (N, 4)."""
    if file is None:
        rng = np.random.default_rng(0)
        files = sorted(PHOTOS.glob("*.jpg"))
        return [(path, random_boxes(rng, path, 600 // len(files))) for path in files]
    data = open_boxes(file, folder)
    found: list[tuple[Path, NDArray[np.float64]]] = []
    for row, name in enumerate(data.images.file_names):
        path = find_image(name, Path(data.source.address))
        height, width = read_image(path).shape[:2]
        mine = boxes.clip(data.boxes[(data.image_row == row) & ~data.crowd], width, height)
        found.append((path, mine[boxes.usable(mine)]))
        if sum(len(some) for _, some in found) >= limit:
            break
    return found


def random_boxes(rng: np.random.Generator, path: Path, count: int) -> NDArray[np.float64]:
    """Log-normal sides, uniform centres, as COCO's sizes are spread on images of 640 pixels."""
    height, width = read_image(path).shape[:2]
    side = np.exp(rng.normal(np.log(50), 1.05, (count, 1)) + rng.normal(0, 0.3, (count, 2)))
    side = np.clip(side, 2, [width, height])
    low = rng.uniform(0, np.array([width, height]) - side)
    return np.concatenate([low, low + side], axis=1)


def blobs(count: int, side: int) -> NDArray[np.float32]:
    """(count, side, side) float32 logits: an ellipse that fills the box, its outline disturbed."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:side, :side] / side * 2 - 1
    noise = [cv2.GaussianBlur(rng.standard_normal((side, side)), (0, 0), side / 12) * side / 4 for _ in range(count)]
    return np.stack([(0.75 - np.hypot(x, y)) * 8 + one for one in noise]).astype(np.float32)


def rate(count: int, work: Callable[[], object]) -> float:
    """Items a second, best of three."""
    seconds: list[float] = []
    for _ in range(3):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return round(count / min(seconds), 1)


def whole(mask: masks.BoxMask, size: tuple[int, int]) -> NDArray[np.uint8]:
    image = np.zeros(size, np.uint8, order="F")
    h, w = mask.pixels.shape
    image[mask.y0 : mask.y0 + h, mask.x0 : mask.x0 + w] = mask.pixels
    return image


def paste(logits: NDArray[np.float32], box: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """What most tools do: enlarge to whole pixels, threshold, paste."""
    x0, y0, x1, y1 = boxes.pixel_window(box)
    part = logits[6:-6, 6:-6]  # about the box: the central 1 / 1.3
    image = np.zeros(size, np.uint8, order="F")
    image[y0:y1, x0:x1] = cv2.resize(part, (x1 - x0, y1 - y0)) > 0
    return image


def measure(data: list[tuple[Path, NDArray[np.float64]]], size: int) -> dict[str, dict[str, float]]:
    images = [read_image(path) for path, _ in data]
    rects = [boxes.expand(some, EXPANSION) for _, some in data]
    flat = np.concatenate([some for _, some in data])
    count = len(flat)
    pairs = list(zip(images, rects, strict=True))
    far = [
        int(max(0, -some.min(initial=0), (some[:, 2:] - image.shape[1::-1]).max(initial=0))) + 8
        for image, some in pairs
    ]
    canvases = [
        Image.fromarray(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), "symmetric"))
        for image, pad in zip(images, far, strict=True)
    ]

    def judge() -> None:
        for canvas, pad, some in zip(canvases, far, rects, strict=True):
            for rect in some:
                np.asarray(canvas.resize((size, size), Image.Resampling.BILINEAR, box=tuple(rect + pad)))

    cut = np.concatenate([crops.cut_crops(image, some[:20], size, "reflect") for image, some in pairs])[:128]
    batch = np.empty((1, 3, size, size), np.float32)
    logits = blobs(64, size // 4)[np.arange(count) % 64]
    sizes = [image.shape[:2] for image, some in pairs for _ in some]
    decided = masks.masks_from_logits(logits, flat, EXPANSION)
    encode_whole = pycocotools.mask.encode
    return {
        "decode": {
            "ours": rate(len(data), lambda: [read_image(path) for path, _ in data]),
            "peer": rate(len(data), lambda: [np.asarray(Image.open(path).convert("RGB")) for path, _ in data]),
        },
        "crops": {
            "ours": rate(count, lambda: [crops.cut_crops(image, some, size, "reflect") for image, some in pairs]),
            "peer": rate(count, judge),
        },
        "to_input": {
            "ours": rate(len(cut), lambda: [crops.to_input(one[None], batch) for one in cut]),
            "peer": rate(len(cut), lambda: [one[None].transpose(0, 3, 1, 2).astype(np.float32, "C") for one in cut]),
        },
        "mask+RLE": {
            "ours": rate(count, lambda: masks.encode(masks.masks_from_logits(logits, flat, EXPANSION), sizes)),
            "peer": rate(count, lambda: [encode_whole(paste(*each)) for each in zip(logits, flat, sizes, strict=True)]),
        },
        "RLE": {
            "ours": rate(count, lambda: masks.encode(decided, sizes)),
            "peer": rate(count, lambda: [encode_whole(whole(*each)) for each in zip(decided, sizes, strict=True)]),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--boxes", type=Path, help="a box file; default the built-in photographs")
    parser.add_argument("--images", type=Path, help="its image folder")
    parser.add_argument("--size", type=int, default=192, help="side of a crop in pixels")
    parser.add_argument("--limit", type=int, default=1000, help="stop loading after so many boxes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    data = load(arguments.boxes, arguments.images, arguments.limit)
    flat = np.concatenate([some for _, some in data])
    sides = np.sqrt(np.prod(flat[:, 2:] - flat[:, :2], axis=1))
    result = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}",
        "images": len(data),
        "boxes": len(flat),
        "box_side_percentiles_5_50_95": np.percentile(sides, [5, 50, 95]).round(1).tolist(),
        "per_second_and_core": measure(data, arguments.size),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(result["machine"])
    print(f"{len(data)} images, {len(flat)} boxes, sides {result['box_side_percentiles_5_50_95']} pixels (5, 50, 95 %)")
    for step, rates in result["per_second_and_core"].items():
        ours, peer = rates["ours"], rates["peer"]
        print(f"{step:9} {ours:9,.0f} / s    peer {peer:9,.0f} / s    x {ours / peer:.2f}")


if __name__ == "__main__":
    main()
