"""Keys set in the text of one annotation, worked by hand."""

import json

import pytest

from mal.datasets.splice import splice


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", '{"area": 9, "mal": {}}'),
        ("{ }", '{"area": 9, "mal": {}}'),
        ('{"a":1 }', '{"a":1, "area": 9, "mal": {}}'),
        ('{"area":1}', '{"area":9, "mal": {}}'),
        ('{"mal":null , "b": 2}', '{"mal":{} , "b": 2, "area": 9}'),
        ('{"mal" : [1, {"mal": 2}], "area":\t1e5\n}', '{"mal" : {}, "area":\t9}'),
        ('{"x": {"area": 1}}', '{"x": {"area": 1}, "area": 9, "mal": {}}'),
        ('{"x": {"area": 1}, "area": 2}', '{"x": {"area": 1}, "area": 9, "mal": {}}'),
        ('{"x": "area", "area": 2}', '{"x": "area", "area": 9, "mal": {}}'),
        ('{"area": 1, "area": 2}', '{"area": 1, "area": 9, "mal": {}}'),  # the last one counts for every JSON reader
        ('{"\\u0061rea": 1}', '{"\\u0061rea": 9, "mal": {}}'),
        ('{"a": "\\"area\\"", "mal": NaN}', '{"a": "\\"area\\"", "mal": {}, "area": 9}'),
        ('{"a": -Infinity, "area": NaN}', '{"a": -Infinity, "area": 9, "mal": {}}'),
        ('{"a": "\\ud800", "area": "\\udc00"}', '{"a": "\\ud800", "area": 9, "mal": {}}'),
        ('{"ä": "ö", "area": 1.50}', '{"ä": "ö", "area": 9, "mal": {}}'),
    ],
)
def test_worked_by_hand(text: str, expected: str) -> None:
    new = {"area": b"9", "mal": b"{}"}
    assert splice(text.encode(), new).decode() == expected
    assert json.loads(expected) == json.loads(text) | {"area": 9, "mal": {}}


def test_keys_that_are_no_utf8_stay(*_: object) -> None:
    assert splice(b'{"\xff": "\xfe", "area": 1}', {"area": b"2"}) == b'{"\xff": "\xfe", "area": 2}'


def test_a_new_value_that_looks_like_a_key() -> None:
    new = {"segmentation": b'{"area": 1}', "area": b"2"}
    assert splice(b'{"area": 0, "segmentation": [[]]}', new) == b'{"area": 2, "segmentation": {"area": 1}}'
