"""Keys set in the text of many annotations: worked by hand, and against a reader of JSON."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.datasets.splice import Values
from mal.datasets.splice import splice as splice_values

KEYS = ("area", "mal")


def splice(text: bytes, keys: Sequence[str], rows: Sequence[Sequence[bytes] | None]) -> bytes:
    return splice_values(text, keys, Values.of(rows, len(keys)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", '{"area": 9, "mal": {}}'),
        ("{ }", '{"area": 9, "mal": {} }'),
        ('{"a":1 }', '{"a":1, "area": 9, "mal": {} }'),
        ('{"area":1}', '{"area":9, "mal": {}}'),
        ('{"mal":null , "b": 2}', '{"mal":{} , "b": 2, "area": 9}'),
        ('{"mal" : [1, {"mal": 2}], "area":\t1e5\n}', '{"mal" : {}, "area":\t9\n}'),
        ('{"x": {"area": 1}}', '{"x": {"area": 1}, "area": 9, "mal": {}}'),
        ('{"x": {"area": 1}, "area": 2}', '{"x": {"area": 1}, "area": 9, "mal": {}}'),
        ('{"x": "area", "area": 2}', '{"x": "area", "area": 9, "mal": {}}'),
        ('{"area": 1, "area": 2}', '{"area": 9, "area": 9, "mal": {}}'),  # whichever one a reader takes
        ('{"\\u0061rea": 1}', '{"\\u0061rea": 9, "mal": {}}'),
        ('{"a": "\\"area\\"", "mal": NaN}', '{"a": "\\"area\\"", "mal": {}, "area": 9}'),
        ('{"a": "]}, {", "area": "\\\\"}', '{"a": "]}, {", "area": 9, "mal": {}}'),
        ('{"a": -Infinity, "area": NaN}', '{"a": -Infinity, "area": 9, "mal": {}}'),
        ('{"a": "\\ud800", "area": "\\udc00"}', '{"a": "\\ud800", "area": 9, "mal": {}}'),
        ('{"ä": "ö", "area": 1.50}', '{"ä": "ö", "area": 9, "mal": {}}'),
    ],
)
def test_worked_by_hand(text: str, expected: str) -> None:
    assert splice(text.encode(), KEYS, [(b"9", b"{}")]).decode() == expected
    assert json.loads(expected) == json.loads(text) | {"area": 9, "mal": {}}
    # The same between other elements, which stay: an object without values, and no objects.
    around = '{"area": 1}, null, ["area", {"area": 2}] ,\n7, %s , "area", {}'
    values = [None, (b"9", b"{}"), (b"9", b"{}"), None, (b"9", b"{}"), (b"9", b"{}"), None]
    assert splice((around % text).encode(), KEYS, values).decode() == around % expected


def test_keys_that_are_no_utf8_stay() -> None:
    assert splice(b'{"\xff": "\xfe", "area": 1}', ["area"], [(b"2",)]) == b'{"\xff": "\xfe", "area": 2}'


def test_a_new_value_that_looks_like_a_key() -> None:
    new = (b'{"area": 1}', b"2")
    spliced = splice(b'{"area": 0, "segmentation": [[]]}', ("segmentation", "area"), [new])
    assert spliced == b'{"area": 2, "segmentation": {"area": 1}}'


def test_the_wrong_number_of_elements_is_refused() -> None:
    with pytest.raises(ValueError, match="2 elements, 1 values"):
        splice(b"{}, {}", KEYS, [None])


words = st.text(alphabet='ab"\\[]{},: \n\tüarel', max_size=6) | st.sampled_from(["area", "mal", "a"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | words
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4))


@given(
    elements=st.lists(st.tuples(trees | st.dictionaries(words, trees, max_size=5), st.booleans()), min_size=1),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
def test_any_json(elements: list[tuple[Any, bool]], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps([element for element, _ in elements], indent=indent, ensure_ascii=ascii_only)[1:-1]
    values = [(b"[5]", b'"}"') if set_it else None for _, set_it in elements]
    spliced = splice(text.encode(), KEYS, values)
    expected = [
        {**element, "area": [5], "mal": "}"} if set_it and isinstance(element, dict) else element
        for element, set_it in elements
    ]
    assert json.dumps(json.loads(b"[" + spliced + b"]"), sort_keys=True) == json.dumps(expected, sort_keys=True)
