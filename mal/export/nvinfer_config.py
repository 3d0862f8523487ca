"""Check a config of nvinfer before nvinfer sees it, which prints a line about an unknown key and runs on.

    python -m mal.export.nvinfer_config CONFIG.txt

Checked are keys and values against those that Gst-nvinfer documents, keys that contradict each other or that this kind
of network never reads, and, with a [mal] group, what our probes need: also against the model that onnx-file names and
against nvdspreprocess's config.

Source: Gst-nvinfer and Gst-nvdspreprocess of DeepStream 9.1, keys of their property parsers.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from mal.config import ModelConstants
from mal.errors import InputError, MalError
from mal.export.engine_options import Profile
from mal.export.key_file import Group, find_unknown, is_on, numbers, read_groups, whole
from mal.export.nvinfer_keys import NETWORK_TYPES, READ_BY, is_number
from mal.export.preprocess_config import find_preprocess_problems
from mal.runtime.onnx_file import read_metadata
from mal.runtime.plan_file import manifest_path, read_manifest


def check_config(path: Path) -> None:
    """Check a config of nvinfer, and the nvdspreprocess config that it names.

    Raises:
        InputError: something is wrong; the message lists all of it, in one line.
        ModelFileError: in a config with a [mal] group: the model, or the manifest of an engine, is none of ours.
    """
    if found := list(find_problems(path)):
        raise InputError(f"{path}: {'; '.join(found)}")


def find_problems(path: Path) -> Iterator[str]:
    """What is wrong with a config, one line each.

    Raises:
        InputError: no such file, or it is no key file.
        ModelFileError: as `check_config`.
    """
    groups = read_groups(path)
    if "property" not in groups:
        yield "it has no [property] group"
        return
    yield from find_unknown(groups, {"property": "property", "mal": "mal"}, "class-attrs")
    given = groups["property"]
    yield from _contradictions(given)
    if any(name.startswith("class-attrs") for name in groups) and given.get("network-type", "0") not in ("0", "3"):
        yield "class-attrs are for detectors; this network-type never reads them"
    if "mal" in groups:
        yield from _for_our_probes(path, given, groups["mal"])


def _contradictions(given: Group) -> Iterator[str]:
    kind = given.get("network-type", "0").strip()
    if kind not in NETWORK_TYPES:
        yield f"network-type={kind}: expected {', '.join(NETWORK_TYPES)}"
        return
    for key, types in READ_BY.items():
        if key in given and (kind == "100" or kind not in types):
            yield f"{key} is never read for network-type={kind} ({NETWORK_TYPES[kind]})"
    if "gie-unique-id" not in given:
        yield "gie-unique-id is missing; nvinfer asks for one above 0"
    sources = sorted({"onnx-file", "tlt-encoded-model", "custom-network-config"} & given.keys())
    if not sources and "model-engine-file" not in given:
        yield "it names no model: onnx-file or model-engine-file"
    if len(sources) > 1:
        yield f"{' and '.join(sources)} name two models"
    if kind == "100" and not is_on(given, "output-tensor-meta"):
        yield "network-type=100 without output-tensor-meta=1: nobody would see what the network says"
    if is_on(given, "output-tensor-meta") and is_on(given, "disable-output-host-copy"):
        yield "disable-output-host-copy leaves the host buffers of output-tensor-meta unfilled"
    if is_on(given, "output-instance-mask") and given.get("cluster-mode") != "4":
        yield "output-instance-mask needs cluster-mode=4"
    if is_on(given, "strongly-typed") and whole(given, "network-mode", 0) != 0:
        yield "strongly-typed takes the precision from the model; network-mode contradicts it"
    if given.get("network-mode") == "1" and "int8-calib-file" not in given and not is_on(given, "strongly-typed"):
        yield "network-mode=1 (INT8) needs an int8-calib-file"
    if is_on(given, "symmetric-padding") and not is_on(given, "maintain-aspect-ratio"):
        yield "symmetric-padding means nothing without maintain-aspect-ratio=1"
    if "mean-file" in given and "offsets" in given:
        yield "mean-file and offsets contradict each other"
    if "use-dla-core" in given and not is_on(given, "enable-dla"):
        yield "use-dla-core means nothing without enable-dla=1"
    yield from _sizes(given)
    if min(numbers(given, "operate-on-class-ids"), default=0) < 0:
        yield f"operate-on-class-ids={given['operate-on-class-ids']}: nvinfer crashes on a class below 0"
    secondary = given.get("process-mode") == "2"
    if not secondary:
        for key in ("operate-on-gie-id", "operate-on-class-ids", "input-object-min-width", "input-object-min-height"):
            if key in given:
                yield f"{key} is for secondary networks, process-mode=2"
    elif "interval" in given:
        yield "interval is for whole frames, process-mode=1"
    if "gie-unique-id" in given and given.get("operate-on-gie-id") == given["gie-unique-id"]:
        yield "operate-on-gie-id is this network's own gie-unique-id: it would wait for itself"


def _sizes(given: Group) -> Iterator[str]:
    dims = numbers(given, "infer-dims")
    if "infer-dims" in given and (len(dims) != 3 or min(dims, default=0) < 1):
        yield f"infer-dims={given['infer-dims']}: expected channels;height;width, each at least 1"
    channels = 1 if given.get("model-color-format") == "2" else 3
    if "offsets" in given and len(numbers(given, "offsets")) != channels:
        yield f"offsets={given['offsets']}: expected {channels}, one a channel"
    if "net-scale-factor" in given and is_number(given["net-scale-factor"]) and float(given["net-scale-factor"]) <= 0:
        yield "net-scale-factor must be above 0"
    for side in ("width", "height"):
        least, most = whole(given, f"input-object-min-{side}", 0), whole(given, f"input-object-max-{side}", 0)
        if 0 < most < least:
            yield f"input-object-max-{side}={most} is below input-object-min-{side}={least}: no object passes"
    _, mark, rest = given.get("model-engine-file", "").rpartition("_b")
    built = rest.partition("_")[0]
    if mark and built.isdecimal() and int(built) < whole(given, "batch-size", 1):
        yield f"model-engine-file is for batches of {built}, batch-size={given['batch-size']}"


# What nvinfer takes where a key is missing, and what it must be, for our probes.
_FOR_PROBES = {
    "process-mode": (1, 2), "network-type": (0, 100), "model-color-format": (0, 0), "network-input-order": (0, 0),
    "maintain-aspect-ratio": (0, 0), "force-implicit-batch-dim": (0, 0), "overwrite-input-tensor": (0, 0),
    "overwrite-output-tensor": (0, 0),
}  # fmt: skip


def _for_our_probes(path: Path, given: Group, ours: Group) -> Iterator[str]:
    for key, (missing, wanted) in _FOR_PROBES.items():
        if whole(given, key, missing) != wanted:
            yield f"[mal] needs {key}={wanted}"
    for key in ("output-io-formats", "layer-device-precision"):
        if key in given:
            yield f"{key}: the probes read float32 outputs, as the model has them"
    if "output-blob-names" in given and not {"logits", "score"} <= set(given["output-blob-names"].split(";")):
        yield f"output-blob-names={given['output-blob-names']}: the probes read logits and score"
    if "onnx-file" in given and not is_on(given, "strongly-typed"):
        yield "[mal] needs strongly-typed=1: the precision is in the file, and was checked there"
    if is_on(given, "input-tensor-from-meta") != ("preprocess-config" in ours):
        yield "input-tensor-from-meta=1 and [mal] preprocess-config go together: both, or neither"
    if whole(given, "scaling-filter", 6) != 1 and "preprocess-config" not in ours:
        yield "scaling-filter must be 1 (bilinear); nvinfer's default takes the nearest pixel"
    scaled = numbers(given, "net-scale-factor") not in ([], [1.0]) or any(numbers(given, "offsets"))
    if scaled or "mean-file" in given:
        yield "the graph normalises: net-scale-factor=1, offsets=0;0;0 and no mean-file"
    yield from _library(path.parent, given)
    if "expansion" not in ours:
        yield "[mal] needs expansion"
    constants = None
    model, engine = (path.parent / given[key] if key in given else None for key in ("onnx-file", "model-engine-file"))
    if model and model.is_file():
        constants = ModelConstants.from_metadata(read_metadata(model.read_bytes(), str(model)), str(model))
        if numbers(given, "infer-dims") != [3.0, constants.size, constants.size]:
            size = f"3;{constants.size};{constants.size}"
            yield f"infer-dims is {given.get('infer-dims', 'missing')}: {model.name} takes {size}"
        if "expansion" in ours and numbers(ours, "expansion") != [constants.expansion]:
            yield f"[mal] expansion={ours['expansion']}: {model.name} was made with {constants.expansion}"
    elif not (engine and engine.is_file()):
        yield "neither onnx-file nor model-engine-file is there"
    elif model:
        yield f"onnx-file={given['onnx-file']}: there is no such file beside {path.name}"
    if engine and manifest_path(engine).is_file():
        yield from _engine(engine, given)
    if "preprocess-config" in ours:
        yield from find_preprocess_problems(path.parent / ours["preprocess-config"], path, given, constants)


def _library(folder: Path, given: Group) -> Iterator[str]:
    if "custom-lib-path" not in given:
        yield "[mal] needs custom-lib-path: libnvdsinfer_mal.so holds the CRF plugin"
        return
    library = folder / given["custom-lib-path"]
    if library.name != "libnvdsinfer_mal.so":
        yield f"custom-lib-path={given['custom-lib-path']}: the CRF plugin is in libnvdsinfer_mal.so"
    # Before `make` its sources are there.
    elif not library.is_file() and not library.with_name("mal_masks.h").is_file():
        yield f"custom-lib-path={given['custom-lib-path']}: there is neither this library nor its sources"


def _engine(engine: Path, given: Group) -> Iterator[str]:
    """What the manifest says, of an engine that `mal export` built."""
    facts = read_manifest(engine).engine
    profile = Profile.parse(facts.profile)
    if facts.package != "tensorrt":
        yield f"model-engine-file={engine.name} was built by {facts.tensorrt}; nvinfer runs engines of TensorRT"
    if whole(given, "batch-size", 1) > profile.maximum or profile.minimum > 1:
        yield (
            f"model-engine-file={engine.name} takes {profile.minimum} to {profile.maximum} crops a call, nvinfer sends "
            f"1 to {whole(given, 'batch-size', 1)} (batch-size)"
        )


def main(arguments: list[str]) -> int:
    """Print what is wrong with the configs; 2 if anything is."""
    try:
        for name in arguments:
            check_config(Path(name))
            print(f"{name}: no problem found")
    except MalError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
