"""Check a config of nvdspreprocess against the nvinfer behind it: our crops in place of its own.

nvdspreprocess looks at few of its keys twice: a wrong one costs masks without a word.

Source: Gst-nvdspreprocess of DeepStream 9.1, its property parser.
"""

from collections.abc import Iterator
from pathlib import Path

from mal.config import ModelConstants
from mal.export.key_file import Group, find_unknown, numbers, read_groups, whole

# Without one of these it refuses the whole config, and does not say which.
_PROPERTY_NEEDS = (
    "processing-width", "processing-height", "network-input-order", "network-input-shape", "network-color-format",
    "tensor-data-type", "tensor-name", "custom-lib-path", "custom-tensor-preparation-function", "scaling-filter",
    "scaling-pool-memory-type",
)  # fmt: skip
_GROUP_NEEDS = ("src-ids", "process-on-all-objects")
# Key, what it takes where the key is missing, what it must be, and why.
_PROPERTY = (
    ("enable", 1, 1, "otherwise it passes everything on"),
    ("process-on-frame", 1, 0, "masks are made of objects"),
    ("network-input-order", 0, 0, "the crops are NCHW"),
    ("network-color-format", 0, 0, "the crops are RGB"),
    ("tensor-data-type", 0, 0, "the crops are FP32"),
    ("maintain-aspect-ratio", 0, 0, "a crop fills its tensor"),
    ("symmetric-padding", 0, 0, "a crop fills its tensor"),
)
_GROUP = (
    ("src-ids", 0, -1, "objects of the other sources would get no mask"),
    ("process-on-all-objects", 0, 1, "objects outside its regions would get no mask"),
    ("interval", 0, 0, "objects of the frames in between would get no mask; [mal] every passes masks on"),
    ("draw-roi", 1, 0, "it would draw a rectangle around every frame"),
)


def find_preprocess_problems(
    path: Path, nvinfer: Path, given: Group, constants: ModelConstants | None
) -> Iterator[str]:
    """What is wrong with it, one line each.

    Args:
        path: nvdspreprocess's config.
        nvinfer: nvinfer's config.
        given: the group [property] of that.
        constants: the model's; None: not known.

    Raises:
        InputError: it is no key file.
    """
    if not path.is_file():
        yield f"[mal] preprocess-config: there is no {path.name} beside {nvinfer.name}"
        return
    groups = read_groups(path)
    names = {"property": "preprocess property", "user-configs": "user-configs"}
    for problem in (*find_unknown(groups, names, "group"), *_find(groups, path, nvinfer, given, constants)):
        yield f"{path.name}: {problem}"


def _find(
    groups: dict[str, Group], path: Path, nvinfer: Path, given: Group, constants: ModelConstants | None
) -> Iterator[str]:
    its, group, user = (groups.get(name, {}) for name in ("property", "group-0", "user-configs"))
    for name, keys, needs in (("property", its, _PROPERTY_NEEDS), ("group-0", group, _GROUP_NEEDS)):
        yield from (f"[{name}] needs {key}: it refuses a config without" for key in needs if key not in keys)
    for keys, wishes in ((its, _PROPERTY), (group, _GROUP)):
        for key, missing, wanted, why in wishes:
            if whole(keys, key, missing) != wanted:
                yield f"{key} must be {wanted}: {why}"
    if any(name.startswith("group-") and name != "group-0" for name in groups):
        yield "only [group-0] may be there: objects in two groups are cut twice"

    own = whole(given, "gie-unique-id", 0)
    detector, gpu = whole(given, "operate-on-gie-id", -1), whole(given, "gpu-id", 0)
    shape = [float(whole(given, "batch-size", 1)), *numbers(given, "infer-dims")]
    checks = {
        f"target-unique-ids must name {own}, nvinfer's gie-unique-id": own in numbers(its, "target-unique-ids"),
        f"[user-configs] gie-unique-id must be {own}": whole(user, "gie-unique-id", 0) == own,
        f"unique-id must differ from {own} and {detector}": whole(its, "unique-id", 0) not in (own, detector),
        f"gpu-id must be nvinfer's, {gpu}": whole(its, "gpu-id", 0) == gpu,
        "operate-on-gie-id must be nvinfer's": whole(its, "operate-on-gie-id", -1) == detector,
        "operate-on-class-ids of [group-0] must be nvinfer's": (
            numbers(group, "operate-on-class-ids") == numbers(given, "operate-on-class-ids")
        ),
        "tensor-name must be crops": its.get("tensor-name") == "crops",
        "network-input-shape must be batch-size and infer-dims of nvinfer": numbers(its, "network-input-shape")
        == shape,
        "input-object-min-width and -height must be 1 or more": (
            min(whole(group, "input-object-min-width", 0), whole(group, "input-object-min-height", 0)) >= 1
        ),
        "custom-tensor-preparation-function must be MalTensorPreparation": (
            its.get("custom-tensor-preparation-function") == "MalTensorPreparation"
        ),
        "custom-input-transformation-function of [group-0] must be MalTransformation": (
            group.get("custom-input-transformation-function") == "MalTransformation"
        ),
        "custom-lib-path must be nvinfer's": (
            (path.parent / its.get("custom-lib-path", "")).resolve()
            == (nvinfer.parent / given.get("custom-lib-path", "")).resolve()
        ),
    }
    if constants:
        checks[f"[user-configs] fill must be {constants.fill}"] = user.get("fill") == constants.fill
    yield from (problem for problem, good in checks.items() if not good)
