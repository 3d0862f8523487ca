"""What nvinfer's crops cost in mIoU, against ours; objects at the image's border apart.

    python benchmarks/nvinfer_crop.py [STUDENT.onnx] TRUTH.json [--images DIR] [--share 1] [--json OUT.json]

One row a kind of crop and of `inside`. "border": the crop of `mal.crops` would leave the image.
"""

import argparse
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from PIL import Image

from mal import boxes as geometry
from mal.config import ModelConstants
from mal.crops import cut_crop, to_input
from mal.datasets import open_boxes
from mal.datasets.segmentations import to_mask
from mal.evaluation.nvinfer_crop import crop_in_frame, cut_as_nvinfer
from mal.evaluation.pairs import pair_up
from mal.export.refinement import box_coverage, normalisation, take_out
from mal.images import decode_image
from mal.masks import mask_in_crop
from mal.plugins.crf_refine.compiled import crf_refine

STUDENT = Path(__file__).parents[1] / "mal" / "models" / "student.onnx"
KINDS = ("ours", "nvinfer, bilinear", "nvinfer, nearest", "even and clipped, anti-aliased", "not clipped, bilinear")
INSIDES = ("map", "1", "unrefined")


def cut(kind: str, image, box, constants):
    """(crop (S, S, 3) uint8, rectangle) of one object."""
    exact = geometry.expand(box[None], constants.expansion)[0]
    if kind == "ours":
        return cut_crop(image, exact, constants.size, constants.fill), exact
    if kind == "not clipped, bilinear":  # what is left of the loss when only the resampling is nvinfer's
        low = np.floor(exact / 2 + 0.5)[:2] * 2
        high = np.maximum(np.floor(exact / 2 + 0.5)[2:] * 2, low + 2)
        margin = int(max(0, -low.min(), *(high - image.shape[1::-1])))
        border = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "symmetric") if margin else image
        rect = np.concatenate([low, high])
        return cut_as_nvinfer(border, rect + margin, constants.size), rect
    rect = crop_in_frame(box, image.shape[1], image.shape[0], constants.expansion)
    if kind == "even and clipped, anti-aliased":
        pixels = Image.fromarray(image).resize((constants.size,) * 2, Image.Resampling.BILINEAR, box=tuple(rect))
        return np.asarray(pixels), rect
    return cut_as_nvinfer(image, rect, constants.size, "nearest" if "nearest" in kind else "bilinear"), rect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path, nargs="?", default=STUDENT)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the images")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    model = onnx.load(str(options.student))
    constants = ModelConstants.from_metadata({p.key: p.value for p in model.metadata_props}, str(options.student))
    mean, std = (onnx.numpy_helper.to_array(each) for each in normalisation(model, str(options.student)))
    take_out(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    pairs, file = pair_up(options.truth, options.truth), open_boxes(options.truth, options.images)
    images = np.random.default_rng(0).permutation(len(file.images))
    chosen = set(images[: max(1, round(options.share * len(images)))].tolist())
    objects = sorted((each for each in pairs.objects if each.image in chosen), key=lambda each: each.image)
    ious = {(kind, inside): [] for kind in KINDS for inside in INSIDES}
    border = []
    for row, group in itertools.groupby(objects, key=lambda each: each.image):
        group = list(group)
        image = decode_image(file.source.read(file.images.file_names[row])).pixels
        truths = [to_mask(each.truth) for each in group]
        height, width = image.shape[:2]
        for each in group:
            x0, y0, x1, y1 = geometry.expand(each.box[None], constants.expansion)[0]
            border.append(bool(x0 < 0 or y0 < 0 or x1 > width or y1 > height))
        for kind in KINDS:
            crops, rects = zip(*(cut(kind, image, each.box, constants) for each in group), strict=True)
            for start in range(0, len(group), 32):
                part = to_input(np.stack(crops[start : start + 32]))
                logits = session.run(["logits"], {"crops": part})[0]
                cells = logits.shape[-1]
                step = constants.size // cells
                pooled = part.reshape(len(part), 3, cells, step, cells, step).mean(axis=(3, 5))
                guide = ((pooled - mean) / std).astype(np.float32)
                soft = box_coverage(constants.expansion, cells, cells)
                refined = {"unrefined": logits}
                for inside, values in (("map", soft), ("1", np.ones_like(soft))):
                    steps, zeta = constants.crf_iterations, constants.crf_zeta
                    refined[inside] = crf_refine(logits, guide, values, steps, zeta)
                for inside, out in refined.items():
                    for index, z in enumerate(out[:, 0], start):
                        mask = mask_in_crop(z, group[index].box, np.asarray(rects[index]))
                        truth = truths[index]
                        h, w = mask.pixels.shape
                        common = int((truth[mask.y0 : mask.y0 + h, mask.x0 : mask.x0 + w] & mask.pixels).sum())
                        union = int(truth.sum()) + int(mask.pixels.sum()) - common
                        ious[kind, inside].append(common / max(1, union))

    at_border = np.array(border)
    print(f"{len(objects)} objects, {at_border.sum()} at the border; {constants.name}, S {constants.size}")
    print(f"{'crop':32s} {'inside':10s}    all  border  others   (minus ours, map, in points)")
    reference = np.array(ious["ours", "map"])
    rows = []
    for (kind, inside), values in ious.items():
        values = np.array(values)
        parts = {"all": np.ones_like(at_border), "border": at_border, "others": ~at_border}
        parts = {name: which for name, which in parts.items() if which.any()}  # a part without objects has no mean
        means = {name: float(values[which].mean()) for name, which in parts.items()}
        losses = {name: float(100 * (values - reference)[which].mean()) for name, which in parts.items()}
        rows.append({"crop": kind, "inside": inside, **{k: round(v, 4) for k, v in means.items()}})
        rows[-1]["points"] = {k: round(v, 2) for k, v in losses.items()}
        columns = "  ".join(f"{means[name]:.4f}" if name in means else "     -" for name in ("all", "border", "others"))
        print(f"{kind:32s} {inside:10s} {columns}   {'  '.join(f'{k} {loss:+.2f}' for k, loss in losses.items())}")
    if options.json:
        sha256 = hashlib.sha256(options.student.read_bytes()).hexdigest()
        about = {"objects": len(objects), "border": int(at_border.sum()), "student_sha256": sha256, "rows": rows}
        options.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
