"""The keys that Gst-nvinfer and Gst-nvdspreprocess read, with the values they take, and those of our [mal] group.

Source: property parsers of DeepStream 9.1.
"""

import re
from collections.abc import Callable


def is_whole(text: str) -> bool:
    """A whole number."""
    return re.fullmatch(r"[+-]?\d+", text, re.ASCII) is not None


def is_number(text: str) -> bool:
    """A number as GLib reads it: Python would take 1_000 and nan too."""
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII | re.IGNORECASE) is not None


def list_of(kind: Callable[[str], bool]) -> Callable[[str], bool]:
    """Values of one kind, with ; between them."""
    return lambda text: all(kind(word.strip()) for word in text.strip(";").split(";"))


KINDS: dict[str, Callable[[str], bool]] = {
    "0 or 1": lambda text: text in ("0", "1", "true", "false"),
    "a whole number": is_whole,
    "a number": is_number,
    "whole numbers with ; between them": list_of(is_whole),
    "numbers with ; between them": list_of(is_number),
    "text": bool,
}
# Which keys of a group take a value of which kind.
_KEYS = {
    "property": {
        "0 or 1": """output-tensor-meta disable-output-host-copy auto-inc-mem enable-dla warmup-engine
            dynamic-properties dump-input-tensor dump-output-tensor overwrite-input-tensor overwrite-output-tensor
            raw-output-file-write strongly-typed force-implicit-batch-dim maintain-aspect-ratio symmetric-padding
            input-tensor-from-meta enable-dbscan crop-objects-to-roi-boundary classifier-async-mode
            output-instance-mask""",
        "a whole number": """gie-unique-id process-mode interval gpu-id secondary-reinfer-interval max-gpu-mem-per
            use-dla-core tensor-meta-pool-size batch-size stabilize-buffer-count network-mode workspace-size
            network-type model-color-format scaling-filter scaling-compute-hw network-input-order
            num-detected-classes cluster-mode
            segmentation-output-order input-object-min-width input-object-min-height input-object-max-width
            input-object-max-height operate-on-gie-id""",
        "a number": "net-scale-factor classifier-threshold segmentation-threshold",
        "whole numbers with ; between them": "infer-dims operate-on-class-ids filter-out-class-ids",
        "numbers with ; between them": "offsets",
        "text": """labelfile-path ip-tensor-file op-tensor-files model-engine-file onnx-file int8-calib-file
            output-blob-names output-io-formats layer-device-precision tlt-encoded-model tlt-model-key
            custom-network-config mean-file custom-lib-path parse-bbox-func-name parse-bbox-instance-mask-func-name
            parse-segmentation-func-name parse-classifier-func-name engine-create-func-name classifier-type""",
    },
    "class-attrs": {
        "a whole number": """group-threshold minBoxes roi-top-offset roi-bottom-offset detected-min-w detected-min-h
            detected-max-w detected-max-h topk""",
        "a number": """threshold pre-cluster-threshold post-cluster-threshold eps dbscan-min-score nms-iou-threshold""",
        "numbers with ; between them": "border-color bg-color",
    },
    "mal": {
        "a whole number": "longest-side every attach-polygons",
        "a number": "expansion",
        "text": "preprocess-config",
    },
    "preprocess property": {
        "0 or 1": "enable process-on-frame maintain-aspect-ratio symmetric-padding",
        "a whole number": """operate-on-gie-id unique-id gpu-id processing-width processing-height tensor-buf-pool-size
            scaling-buf-pool-size scaling-filter scaling-pool-compute-hw scaling-pool-memory-type network-input-order
            network-color-format tensor-data-type""",
        "whole numbers with ; between them": "target-unique-ids network-input-shape",
        "text": "tensor-name custom-lib-path custom-tensor-preparation-function",
    },
    "preprocess group": {
        "0 or 1": "process-on-roi process-on-all-objects draw-roi",
        "a whole number": """interval input-object-min-width input-object-min-height input-object-max-width
            input-object-max-height""",
        "whole numbers with ; between them": "src-ids operate-on-class-ids",
        "numbers with ; between them": "roi-color",
        "text": "custom-input-transformation-function",
    },
    "user-configs": {"a whole number": "gie-unique-id", "text": "fill"},
}

KIND_OF = {group: {key: kind for kind, keys in kinds.items() for key in keys.split()} for group, kinds in _KEYS.items()}
DEAD = [
    "model-file",
    "proto-file",
    "uff-file",
    "uff-input-order",
    "uff-input-dims",
    "uff-input-blob-name",
    "input-dims",
    "parse-func",
    "is-classifier",
]
"""Keys of old releases."""

RANGES = {
    "process-mode": (1, 2), "network-mode": (0, 3), "model-color-format": (0, 2), "scaling-filter": (0, 6),
    "network-input-order": (0, 1), "cluster-mode": (0, 4), "batch-size": (1, 1024), "gie-unique-id": (1, 2**31 - 1),
    "max-gpu-mem-per": (1, 100), "operate-on-gie-id": (-1, 2**31 - 1), "gpu-id": (0, 255), "expansion": (0, 10),
    "longest-side": (0, 4096), "every": (1, 10000), "attach-polygons": (0, 1), "tensor-data-type": (0, 7),
    "scaling-buf-pool-size": (2, 1024), "tensor-buf-pool-size": (2, 1024),
}  # fmt: skip

NETWORK_TYPES = {"0": "detector", "1": "classifier", "2": "segmentation", "3": "instance segmentation", "100": "other"}
# Keys that nvinfer reads for these types of network alone.
READ_BY = {
    "num-detected-classes": "03", "cluster-mode": "03", "enable-dbscan": "0", "parse-bbox-func-name": "0",
    "parse-bbox-instance-mask-func-name": "3", "output-instance-mask": "3", "crop-objects-to-roi-boundary": "03",
    "parse-segmentation-func-name": "2", "segmentation-output-order": "2", "segmentation-threshold": "23",
    "parse-classifier-func-name": "1", "classifier-threshold": "1", "classifier-async-mode": "1",
    "classifier-type": "1", "secondary-reinfer-interval": "01", "filter-out-class-ids": "03", "labelfile-path": "0123",
}  # fmt: skip
