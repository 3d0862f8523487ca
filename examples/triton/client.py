"""Masks from a Triton server that serves a folder of `mal export --target triton`.

    pip install "tritonclient[grpc]" opencv-python-headless
    python examples/triton/client.py photo.jpg 40,60,210,330 250,80,400,300

A box is x0,y0,x1,y1 in pixels. Prints one JSON object a box.
"""

import argparse
import json

import cv2
import numpy as np
import tritonclient.grpc as triton


def label(client, image, boxes):
    """(H, W, 3) uint8 RGB and (N, 4) boxes -> N run lengths (ASCII), N scores, N flags."""
    inputs = [triton.InferInput("image", image.shape, "UINT8"), triton.InferInput("boxes", boxes.shape, "FP32")]
    inputs[0].set_data_from_numpy(image)
    inputs[1].set_data_from_numpy(boxes.astype(np.float32))
    found = client.infer("mal_label", inputs)
    rle, scores, flags = (found.as_numpy(name) for name in ("rle", "scores", "flags"))
    return [text.decode() for text in rle], scores.tolist(), [text.decode() for text in flags]


def main():
    """Read the command line, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("boxes", nargs="+")
    parser.add_argument("--server", default="localhost:8001")
    options = parser.parse_args()
    image = cv2.cvtColor(cv2.imread(options.image), cv2.COLOR_BGR2RGB)
    boxes = np.array([[float(value) for value in box.split(",")] for box in options.boxes])
    with triton.InferenceServerClient(options.server) as client:
        for rle, score, flags in zip(*label(client, image, boxes), strict=True):
            # An object without a mask has no run lengths, and its flags say why.
            segmentation = {"size": list(image.shape[:2]), "counts": rle} if rle else None
            print(json.dumps({"segmentation": segmentation, "score": round(score, 4), "flags": flags}))


if __name__ == "__main__":
    main()
