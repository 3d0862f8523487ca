"""Key files of DeepStream's elements: groups of keys, read as GLib reads them and held against the known keys."""

import configparser
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

from mal.errors import InputError
from mal.export.nvinfer_keys import DEAD, KIND_OF, KINDS, RANGES, is_number, is_whole, list_of

Group = Mapping[str, str]


def read_groups(path: Path) -> dict[str, Group]:
    """Groups of a key file by name.

    Raises:
        InputError: no such file, no key file, or a key that stands twice in its group.
    """
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


def find_unknown(groups: Mapping[str, Group], names: Mapping[str, str], numbered: str) -> Iterator[str]:
    """Unknown groups and keys, and values of the wrong kind, one line each.

    Args:
        groups: of the file.
        names: name of a group -> the table of `KIND_OF` that its keys are in.
        numbered: groups NAME-0, NAME-1, NAME-all are known too.
    """
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
            elif not KINDS[kind](value):
                yield f"[{name}] {key}={value}: expected {kind}"
            elif key in RANGES and not RANGES[key][0] <= float(value) <= RANGES[key][1]:
                yield f"[{name}] {key}={value}: expected {RANGES[key][0]} to {RANGES[key][1]}"


def is_on(given: Group, key: str) -> bool:
    """Whether a switch is there and on."""
    return given.get(key, "0") in ("1", "true")


def whole(given: Group, key: str, missing: int) -> int:
    """A whole number, or a switch as 0 or 1; `missing` where there is none."""
    text = {"true": "1", "false": "0"}.get(given.get(key, ""), given.get(key, ""))
    return int(text) if is_whole(text) else missing


def numbers(given: Group, key: str) -> list[float]:
    """Numbers with ; between them; none where one of them is none."""
    text = given.get(key, "").strip(";")
    return [float(word) for word in text.split(";")] if text and list_of(is_number)(text) else []
