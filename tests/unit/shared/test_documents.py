"""YAML and JSON texts as values: the core schema, nothing twice, and the line of everything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptlooper.document import NotUtf8, decoded, read_document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("~", None),
        ("", None),
        ("Null", None),
        ("true", True),
        ("False", False),
        ("off", "off"),
        ("on", "on"),
        ("NO", "NO"),
        ("yes", "yes"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("1,5", "1,5"),
        ("0x1F", 31),
        ("0o17", 15),
        ("0b11", "0b11"),
        ("017", 17),
        ("+4", 4),
        ("-3", -3),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1.5e-3", 0.0015),
        ("3", 3),
        ("3.0", 3.0),
        ("'3'", "3"),
        ('"true"', "true"),
        ("=", "="),
        ("<<", "<<"),
        ("1.2.3", "1.2.3"),
        ("e3", "e3"),
        (".", "."),
        ("-", "-"),
    ],
)
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: Any) -> None:
    document = read_document(f"key: {text}\n" if text != "-" else "key: '-'\n")
    assert document.problems == []
    assert document.value == {"key": value}
    assert type(document.value["key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is there twice"),
        ("x:\n  - {b: 1, c: 2,\n     b: 3}\n", 3, "'b' is there twice"),
        ("a: 1\n'a': 2\n", 2, "'a' is there twice"),
        ("a: 1\nb: !!python/object:os.system x\n", 2, "'!!python/object:os.system' is not allowed"),
        ("a: !!str 5\n", 1, "'!!str' is not allowed"),
        ("a: !x [1]\n", 1, "'!x' is not allowed"),
        ("a: !!map {b: 1}\n", 1, "'!!map' is not allowed"),
        ("a: 1\n---\nb: 2\n", 2, "second YAML document"),
        ("a: [1, 2\nb: 3\n", 2, "not YAML"),
        ("a: b: c\n", 1, "not YAML"),
        ("a:\n\tb: 1\n", 2, "a tab stands"),
        ("a: @x\n", 1, "a text cannot begin with '@'"),
        ("a: %x\n", 1, "a text cannot begin with '%'"),
        ("prompt: {{ input.x }}\n", 1, "put a template in quotes"),
        ("a: 1\n? [x]\n: 2\n", 2, "a key must be text"),
        ("a: 1\nb: *nope\n", 2, "no anchor &nope"),
        ("a: &a [*a]\n", 1, "no anchor &a"),
        ("a: .inf\n", 1, ".inf is not a number that JSON has"),
        ("a: .nan\n", 1, ".nan is not a number that JSON has"),
        ("a: 1e999\n", 1, "too large"),
        ("a: 99999999999999999999\n", 1, "not an integer of at most 64 bits"),
        ("a: " + "9" * 5000 + "\n", 1, "not an integer of at most 64 bits"),
        ("a: \x07\n", 1, "U+0007 is not allowed"),
        ("- " * 70 + "x\n", 1, "nested deeper"),
    ],
)
def test_what_is_not_allowed_in_yaml_is_said_with_its_line(text: str, line: int, said: str) -> None:
    document = read_document(text)
    assert [problem for problem in document.problems if problem[0] == line and said in problem[1]]


def test_aliases_are_values_until_they_explode() -> None:
    assert read_document("a: &x [1, 2]\nb: *x\n").value == {"a": [1, 2], "b": [1, 2]}
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    document = read_document(bomb)
    assert document.value is None
    assert "aliases stand for more than" in document.problems[0][1]


def test_keys_are_text_as_in_json() -> None:
    assert read_document("1: a\nnull: b\ntrue: c\n1.0: d\n").value == {"1": "a", "null": "b", "true": "c", "1.0": "d"}


def test_reading_goes_on_after_a_double_key_and_keeps_the_first() -> None:
    document = read_document("a: 1\na: 2\nb: !!int 3\nc: .nan\n")
    assert [line for line, _ in document.problems] == [2, 3, 4]
    assert document.value == {"a": 1, "b": "3", "c": ".nan"}


YAML = """\
# a comment
name: x
scorers:
  - {icontains: a,
     threshold: 1}
  -
    type: b
    value:
      - 1
      - deep: 2
"""
JSON = """\
{
 "name": "x",
 "scorers": [
  {"icontains": "a",
   "threshold": 1},
  {
   "type": "b",
   "value": [1,
    {"deep": 2}]
  }
 ]
}"""


@pytest.mark.parametrize(
    ("path", "yaml_line", "json_line"),
    [
        ((), 1, 1),
        (("name",), 2, 2),
        (("scorers",), 3, 3),
        (("scorers", 0), 4, 4),
        (("scorers", 0, "icontains"), 4, 4),
        (("scorers", 0, "threshold"), 5, 5),
        (("scorers", 1, "type"), 7, 7),
        (("scorers", 1, "value", 0), 9, 8),
        (("scorers", 1, "value", 1, "deep"), 10, 9),
        (("scorers", 1, "value", 1, "absent", "too"), 10, 9),
        (("absent",), 1, 1),
    ],
)
def test_line_of_a_path_is_that_of_its_key_or_of_what_is_around_it(
    path: tuple[str | int, ...], yaml_line: int, json_line: int
) -> None:
    assert read_document(YAML).line(path) == yaml_line
    assert read_document(JSON, json=True).line(path) == json_line


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('{"a": 1,\n "b": {"c": 1,\n "c": 2}}', 3, "'c' is there twice"),
        ('{"a": NaN}', 1, "NaN"),
        ('{"a": Infinity}', 1, "Infinity"),
        ('{"a":\n}', 2, "not JSON"),
        ("[" * 100_000, 1, "nested too deeply"),
        ('{"a": "\\ud800"}', 1, "cannot be kept"),
        ('{"a": 123456789012345678901234567890}', 1, "cannot be kept"),
        ("[" * 300 + "]" * 300, 1, "cannot be kept"),
        ('{"a": 1} x', 1, "not JSON"),
    ],
)
def test_what_is_not_allowed_in_json_is_said_with_its_line(text: str, line: int, said: str) -> None:
    document = read_document(text, json=True)
    assert [problem for problem in document.problems if problem[0] == line and said in problem[1]]
    assert document.line(("a",)) >= 1


def test_json_may_have_tabs_and_escapes_of_two_halves() -> None:
    assert read_document('{\t"a": "\\ud83d\\ude00\\/"}', json=True).value == {"a": "😀/"}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values)
def test_json_document_is_the_value_that_was_written_and_every_path_has_a_line(value: Any) -> None:
    text = json.dumps(value, indent=1)
    document = read_document(text, json=True)
    assert document.problems == []
    assert document.value == value
    if isinstance(value, dict) and value:
        lines = [document.line((key,)) for key in value]
        assert lines == sorted(lines)
        assert lines[0] == 2


@given(st.dictionaries(st.text("abcxyz", min_size=1, max_size=4), st.lists(st.integers(0, 9), max_size=3), max_size=5))
def test_json_is_yaml_too(value: dict[str, list[int]]) -> None:
    assert read_document(json.dumps(value)).value == (value or {})


def test_bytes_that_are_not_utf_8_are_told_with_their_line() -> None:
    assert decoded(b"\xef\xbb\xbfa: 1") == "a: 1"
    with pytest.raises(NotUtf8, match=r"this is not UTF-8 \(byte 0xe9\)") as caught:
        decoded(b"a: 1\nb: caf\xe9\n")
    assert caught.value.line == 2
