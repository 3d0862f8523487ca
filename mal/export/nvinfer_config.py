"""Check a config of nvinfer before nvinfer sees it, which prints a line about an unknown key and runs on.

    python -m mal.export.nvinfer_config CONFIG.txt

Checked are keys and values against those that Gst-nvinfer documents, keys that contradict each other or that this kind
of network never reads, and, with a [mal] group, what our probes need: also against the model that onnx-file names and
against nvdspreprocess's config.

Source: Gst-nvinfer and Gst-nvdspreprocess of DeepStream 9.1, keys of their property parsers.
"""

import configparser
import difflib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from mal.config import ModelConstants
from mal.errors import InputError, MalError
from mal.export.nvinfer_keys import DEAD, KIND_OF, KINDS, NETWORK_TYPES, RANGES, READ_BY, is_number, is_whole, list_of
from mal.runtime.onnx_file import read_metadata

Group = Mapping[str, str]


def check_config(path: Path) -> None:
    """Check a config of nvinfer, and the nvdspreprocess config that it names.

    Raises:
        InputError: something is wrong; the message lists all of it, in one line.
        ModelFileError: onnx-file is there and is none of ours, in a config with a [mal] group.
    """
    if found := list(find_problems(path)):
        raise InputError(f"{path}: {'; '.join(found)}")


def find_problems(path: Path) -> Iterator[str]:
    """What is wrong with a config, one line each.

    Raises:
        InputError: no such file, or it is no key file.
        ModelFileError: as `check_config`.
    """
    groups = _read(path)
    if "property" not in groups:
        yield "it has no [property] group"
        return
    yield from _known(groups, {"property": "property", "mal": "mal"}, "class-attrs")
    given = groups["property"]
    yield from _contradictions(given)
    if any(name.startswith("class-attrs") for name in groups) and given.get("network-type", "0") not in ("0", "3"):
        yield "class-attrs are for detectors; this network-type never reads them"
    if "mal" in groups:
        yield from _for_our_probes(path, given, groups["mal"])


def _read(path: Path) -> dict[str, Group]:
    parser = configparser.RawConfigParser(
        delimiters=("=",), comment_prefixes=("#",), interpolation=None, default_section="", empty_lines_in_values=False
    )
    parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]  keys keep their case, as the manual says
    try:
        # An indented line is a key to GLib, and would be the rest of the line above to this parser.
        parser.read_string("\n".join(map(str.strip, path.read_text().splitlines())), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no config of groups and keys: {' '.join(str(error).split())}") from None
    return {name: dict(parser[name]) for name in parser.sections()}


def _known(groups: Mapping[str, Group], names: Mapping[str, str], numbered: str) -> Iterator[str]:
    """Unknown groups and keys, and values of the wrong kind. `numbered`: groups NAME-0, NAME-1, NAME-all."""
    for name, keys in groups.items():
        table = names.get(name)
        start, _, number = name.rpartition("-")
        if table is None and start == numbered and (number.isdecimal() or number == "all"):
            table = "class-attrs" if numbered == "class-attrs" else "preprocess group"
        if table is None:
            yield f"unknown group [{name}]"
            continue
        kinds = KIND_OF[table]
        for key, value in keys.items():
            kind = kinds.get(key)
            if key.startswith("roi-params-src-") and table == "preprocess group":
                kind = "numbers with ; between them"
            if kind is None:
                near = difflib.get_close_matches(key, kinds, 1)
                hint = f"did you mean {near[0]}?" if near else ""
                hint = "a key of old releases" if key in DEAD else hint
                yield f"[{name}] has no key {key}{f' ({hint})' if hint else ''}"
            elif not KINDS[kind](value.strip()):
                yield f"[{name}] {key}={value}: expected {kind}"
            elif key in RANGES and not RANGES[key][0] <= float(value) <= RANGES[key][1]:
                yield f"[{name}] {key}={value}: expected {RANGES[key][0]} to {RANGES[key][1]}"


def _on(given: Group, key: str) -> bool:
    return given.get(key, "0").strip() in ("1", "true")


def _int(given: Group, key: str, missing: int) -> int:
    text = given.get(key, "").strip()
    return int(text) if is_whole(text) else missing


def _numbers(given: Group, key: str) -> list[float]:
    text = given.get(key, "").strip().strip(";")
    return [float(word) for word in text.split(";")] if text and list_of(is_number)(text) else []


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
    if not {"onnx-file", "model-engine-file", "tlt-encoded-model", "custom-network-config"} & given.keys():
        yield "it names no model: onnx-file or model-engine-file"
    if kind == "100" and not _on(given, "output-tensor-meta"):
        yield "network-type=100 without output-tensor-meta=1: nobody would see what the network says"
    if _on(given, "output-tensor-meta") and _on(given, "disable-output-host-copy"):
        yield "disable-output-host-copy leaves the host buffers of output-tensor-meta unfilled"
    if _on(given, "output-instance-mask") and given.get("cluster-mode") != "4":
        yield "output-instance-mask needs cluster-mode=4"
    if _on(given, "strongly-typed") and _int(given, "network-mode", 0) != 0:
        yield "strongly-typed takes the precision from the model; network-mode contradicts it"
    if given.get("network-mode") == "1" and "int8-calib-file" not in given and not _on(given, "strongly-typed"):
        yield "network-mode=1 (INT8) needs an int8-calib-file"
    if _on(given, "symmetric-padding") and not _on(given, "maintain-aspect-ratio"):
        yield "symmetric-padding means nothing without maintain-aspect-ratio=1"
    if "mean-file" in given and "offsets" in given:
        yield "mean-file and offsets contradict each other"
    if "use-dla-core" in given and not _on(given, "enable-dla"):
        yield "use-dla-core means nothing without enable-dla=1"
    yield from _sizes(given)
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
    dims = _numbers(given, "infer-dims")
    if "infer-dims" in given and (len(dims) != 3 or min(dims, default=0) < 1):
        yield f"infer-dims={given['infer-dims']}: expected channels;height;width, each at least 1"
    channels = 1 if given.get("model-color-format") == "2" else 3
    if "offsets" in given and len(_numbers(given, "offsets")) != channels:
        yield f"offsets={given['offsets']}: expected {channels}, one a channel"
    if "net-scale-factor" in given and is_number(given["net-scale-factor"]) and float(given["net-scale-factor"]) <= 0:
        yield "net-scale-factor must be above 0"
    for side in ("width", "height"):
        least, most = _int(given, f"input-object-min-{side}", 0), _int(given, f"input-object-max-{side}", 0)
        if 0 < most < least:
            yield f"input-object-max-{side}={most} is below input-object-min-{side}={least}: no object passes"
    _, mark, rest = given.get("model-engine-file", "").rpartition("_b")
    built = rest.partition("_")[0]
    if mark and built.isdecimal() and int(built) < _int(given, "batch-size", 1):
        yield f"model-engine-file is for batches of {built}, batch-size={given['batch-size']}"


def _for_our_probes(path: Path, given: Group, ours: Group) -> Iterator[str]:
    needs = {
        "process-mode": "2", "network-type": "100", "model-color-format": "0", "network-input-order": "0",
        "maintain-aspect-ratio": "0",
    }  # fmt: skip
    for key, value in needs.items():
        if given.get(key, "0").strip() != value:
            yield f"[mal] needs {key}={value}"
    if "custom-lib-path" not in given:
        yield "[mal] needs custom-lib-path: libnvdsinfer_mal.so holds the CRF plugin"
    if _on(given, "input-tensor-from-meta") != ("preprocess-config" in ours):
        yield "input-tensor-from-meta=1 and [mal] preprocess-config go together: both, or neither"
    if given.get("scaling-filter", "6").strip() != "1" and "preprocess-config" not in ours:
        yield "scaling-filter must be 1 (bilinear); nvinfer's default takes the nearest pixel"
    if _numbers(given, "net-scale-factor") not in ([], [1.0]) or any(_numbers(given, "offsets")):
        yield "the graph normalises: net-scale-factor=1 and offsets=0;0;0"
    if "expansion" not in ours:
        yield "[mal] needs expansion"
    model, constants = path.parent / given.get("onnx-file", ""), None
    if not any((path.parent / given[key]).is_file() for key in ("onnx-file", "model-engine-file") if key in given):
        yield "neither onnx-file nor model-engine-file is there"
    if model.is_file():
        constants = ModelConstants.from_metadata(read_metadata(model.read_bytes(), str(model)), str(model))
        size = float(constants.size)
        if _numbers(given, "infer-dims") != [3.0, size, size]:
            yield f"infer-dims={given.get('infer-dims')}: {model.name} takes 3;{constants.size};{constants.size}"
        if "expansion" in ours and _numbers(ours, "expansion") != [constants.expansion]:
            yield f"[mal] expansion={ours['expansion']}: {model.name} was made with {constants.expansion}"
    if "preprocess-config" in ours:
        yield from _preprocess(path.parent / ours["preprocess-config"], given, constants)


def _preprocess(path: Path, given: Group, constants: ModelConstants | None) -> Iterator[str]:
    if not path.is_file():
        yield f"[mal] preprocess-config: there is no {path.name} beside it"
        return
    groups = _read(path)
    its = groups.get("property", {})
    for problem in _known(groups, {"property": "preprocess property", "user-configs": "user-configs"}, "group"):
        yield f"{path.name}: {problem}"
    own_id = given.get("gie-unique-id", "")
    shape = _numbers(its, "network-input-shape")
    user = groups.get("user-configs", {})
    group = groups.get("group-0", {})
    checks = {
        f"target-unique-ids must name {own_id}, nvinfer's gie-unique-id": (
            own_id in its.get("target-unique-ids", "").split(";")
        ),
        f"[user-configs] gie-unique-id must be {own_id}": user.get("gie-unique-id") == own_id,
        "operate-on-gie-id must be nvinfer's": its.get("operate-on-gie-id") == given.get("operate-on-gie-id"),
        "operate-on-class-ids of [group-0] must be nvinfer's": (
            group.get("operate-on-class-ids") == given.get("operate-on-class-ids")
        ),
        "enable must be 1": _on({"enable": "1", **its}, "enable"),
        "process-on-frame must be 0": its.get("process-on-frame") in ("0", "false"),
        "tensor-name must be crops": its.get("tensor-name") == "crops",
        "tensor-data-type must be 0 (FP32)": its.get("tensor-data-type") == "0",
        "network-input-shape must be batch-size and infer-dims of nvinfer": (
            shape == [float(_int(given, "batch-size", 1)), *_numbers(given, "infer-dims")]
        ),
        "input-object-min-width and -height must be 1 or more": (
            min(_int(group, "input-object-min-width", 0), _int(group, "input-object-min-height", 0)) >= 1
        ),
        "custom-tensor-preparation-function must be MalTensorPreparation": (
            its.get("custom-tensor-preparation-function") == "MalTensorPreparation"
        ),
        "custom-input-transformation-function of [group-0] must be MalTransformation": (
            group.get("custom-input-transformation-function") == "MalTransformation"
        ),
        "custom-lib-path must be nvinfer's": its.get("custom-lib-path") == given.get("custom-lib-path"),
    }  # fmt: skip
    if constants:
        checks[f"[user-configs] fill must be {constants.fill}"] = user.get("fill") == constants.fill
    yield from (f"{path.name}: {problem}" for problem, good in checks.items() if not good)


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
