"""Input rows: from every kind of file, with types, selections and ids."""

# ruff: noqa: E501 (tables are read best with one case a line)

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptlooper.digest import sha256_hex
from promptlooper.experiment import InputRow
from promptlooper.runner.spec.rows import row_of, sampled, with_ids

HEAD = "model: a/b\nprompt: '{{ input }}'\n"


def rows(desk: Any, inputs: str) -> list[Any]:
    return [row.value for row in desk.spec(f"{HEAD}inputs: {inputs}\n").inputs]


def test_row_is_a_mapping_a_scalar_or_a_list_and_stays_what_it_is(desk: Any) -> None:
    found = rows(desk, "[{a: 1}, France, 0, false, '', [], 1.5, null, [1, [2]], {}]")
    assert found == [{"a": 1}, "France", 0, False, "", [], 1.5, None, [1, [2]], {}]
    assert [type(value) for value in found[2:4]] == [int, bool]


def test_cells_of_csv_are_text_unless_a_type_is_said_and_null_when_empty(desk: Any) -> None:
    desk.write("r.csv", 'name,n,x,ok,j,expected\n"a, ""b""\nc",3,0.5,TRUE,"{""k"": [1]}",7\n00,,,,,\n')
    assert rows(desk, "{file: r.csv}") == [
        {"name": 'a, "b"\nc', "n": "3", "x": "0.5", "ok": "TRUE", "j": '{"k": [1]}'},
        {"name": "00", "n": None, "x": None, "ok": None, "j": None},
    ]
    spec = desk.spec(f"{HEAD}inputs: {{file: r.csv, types: {{n: int, x: float, ok: bool, j: json, expected: int}}}}\n")
    assert [(row.value, row.expected) for row in spec.inputs] == [
        ({"name": 'a, "b"\nc', "n": 3, "x": 0.5, "ok": True, "j": {"k": [1]}}, 7),
        ({"name": "00", "n": None, "x": None, "ok": None, "j": None}, None),
    ]


def test_csv_may_have_a_byte_order_mark_and_windows_line_ends(desk: Any) -> None:
    desk.write("r.csv", b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n3,4\r\n")
    assert rows(desk, "{file: r.csv}") == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.jsonl", '{"a": 1, "expected": "x"}\n\n["l"]\n"s"\n3\n'),
        ("r.json", '[{"a": 1, "expected": "x"}, ["l"], "s", 3]'),
        ("r.yaml", "- {a: 1, expected: x}\n- [l]\n- s\n- 3\n"),
        ("r.yml", "- {a: 1, expected: x}\n- [l]\n- s\n- 3\n"),
    ],
)
def test_data_comes_from_json_lines_json_and_yaml(desk: Any, name: str, text: str) -> None:
    desk.write(name, text)
    assert rows(desk, f"{{file: {name}}}") == [{"a": 1}, ["l"], "s", 3]


def test_special_keys_are_not_part_of_the_row(desk: Any) -> None:
    row = "{q: 1, expected: [a], _id: one, _tags: [hard, x], _metadata: {n: '3', s: t}}"
    assert desk.spec(f"{HEAD}inputs: [{row}]\n").inputs == (
        InputRow("one", {"q": 1}, ["a"], ("hard", "x"), {"n": "3", "s": "t"}),
    )
    desk.write("r.csv", 'q,expected,_id,_tags,_metadata\n1,a,7,"hard, x","{""n"": ""3""}"\n2,,8,,\n')
    assert desk.spec(f"{HEAD}inputs: {{file: r.csv}}\n").inputs == (
        InputRow("7", {"q": "1"}, "a", ("hard", "x"), {"n": "3"}),
        InputRow("8", {"q": "2"}, None, (), {}),
    )


def test_id_is_the_digest_of_the_row_without_expected_and_special_keys(desk: Any) -> None:
    text = f"{HEAD}inputs: [{{q: 1, expected: a, _tags: [x]}}, {{q: 1}}, {{q: 1.0}}, {{q: '1'}}, {{_id: x, q: 1}}, {{q: 1}}]\n"
    ids = [row.input_id for row in desk.spec(text).inputs]
    base = sha256_hex({"q": 1})[:16]
    assert ids == [base, f"{base}-2", f"{base}-3", sha256_hex({"q": "1"})[:16], "x", f"{base}-4"]


def test_id_that_a_row_says_is_never_given_to_another() -> None:
    base = sha256_hex(1)[:16]
    found = with_ids([row_of(1), row_of(1), InputRow(f"{base}-2", 9), row_of(1)])
    assert [row.input_id for row in found] == [base, f"{base}-3", f"{base}-2", f"{base}-4"]


def test_selection_does_not_change_ids(desk: Any) -> None:
    desk.write("r.jsonl", '{"a": 1}\n{"a": 1}\n{"a": 1}\n')
    every = desk.spec(f"{HEAD}inputs: {{file: r.jsonl}}\n").inputs
    some = desk.spec(f"{HEAD}inputs: {{file: r.jsonl, sample: 2, seed: 3}}\n").inputs
    assert {row.input_id for row in some} < {row.input_id for row in every}


def test_where_sample_and_limit_select_rows_in_this_order(desk: Any) -> None:
    desk.write("r.csv", "lang,n,expected\n" + "".join(f"{'fr' if i % 2 else 'de'},{i},{i % 3}\n" for i in range(40)))

    def chosen(settings: str) -> list[int]:
        return [row["n"] for row in rows(desk, f"{{file: r.csv, types: {{n: int}}, {settings}}}")]

    assert chosen("where: {lang: fr}, limit: 3") == [1, 3, 5]
    assert chosen("where: {lang: fr, n: 7}") == [7]
    assert chosen("where: {n: [3, 4, '5']}") == [3, 4, 5]
    assert chosen("where: {expected: 2}, limit: 2") == [2, 5]
    first = chosen("where: {lang: fr}, sample: 5, seed: 7")
    assert first == sorted(first)
    assert len(first) == 5
    assert all(number % 2 for number in first)
    assert first == chosen("where: {lang: fr}, sample: 5, seed: 7")
    assert first[:2] == chosen("where: {lang: fr}, sample: 5, seed: 7, limit: 2")
    assert first != chosen("where: {lang: fr}, sample: 5, seed: 8")
    assert chosen("sample: 100") == list(range(40))


BAD = {
    "no rows": ("r.csv", "a,b\n", "", "e.yaml:3: the data file 'r.csv' has no rows"),
    "empty file": ("r.csv", "", "", "r.csv:1: the file is empty; its first line must name the columns"),
    "double column": ("r.csv", "a,a\n1,2\n", "", "r.csv:1: the column 'a' is there twice"),
    "column without a name": ("r.csv", "a,\n1,2\n", "", "r.csv:1: column 2 has no name"),
    "column that begins with _": ("r.csv", "a,_tag\n1,2\n", "", "r.csv:1: '_tag' is not a column that begins with _; did you mean '_tags'?"),
    "later column": ("r.csv", "a,_weight\n1,2\n", "", "r.csv:1: the column '_weight' is not available yet"),
    "too many cells": ("r.csv", 'a,b\n"1\n",2\n1,2,3\n', "", "r.csv:4: this row has 3 cells, the header has 2"),
    "too few cells": ("r.csv", "a,b\n1\n", "", "r.csv:2: this row has 1 cells, the header has 2"),
    "open quote": ("r.csv", 'a\n"x\n', "", "r.csv:2: this is not CSV: unexpected end of data"),
    "unknown type": ("r.csv", "a\n1\n", "types: {a: integer}", "e.yaml:3: the type of column 'a' must be 'text', 'str', 'int'"),
    "type of no column": ("r.csv", "name\n1\n", "types: {nam: int}", "e.yaml:3: there is no column 'nam'; did you mean 'name'?"),
    "types of json": ("r.jsonl", "1\n", "types: {a: int}", "e.yaml:3: 'types' is for .csv files"),
    "not an integer": ("r.csv", "a\n1\nx\n", "types: {a: int}", "r.csv:3: column 'a': 'x' is not an integer"),
    "an integer with _": ("r.csv", "a\n1_0\n", "types: {a: int}", "r.csv:2: column 'a': '1_0' is not an integer"),
    "not a number": ("r.csv", "a\nnan\n", "types: {a: float}", "r.csv:2: column 'a': 'nan' is not a number"),
    "not a boolean": ("r.csv", "a\nyes\n", "types: {a: bool}", "r.csv:2: column 'a': 'yes' is not true or false"),
    "not json": ("r.csv", "a\n{\n", "types: {a: json}", "r.csv:2: column 'a': '{' is not JSON"),
    "where of no column": ("r.csv", "lang\nfr\n", "where: {land: fr}", "e.yaml:3: no row has 'land'; did you mean 'lang'?"),
    "where that lets nothing through": ("r.csv", "lang\nfr\n", "where: {lang: de}", "e.yaml:3: 'where' lets no row through"),
    "sample of 0": ("r.csv", "a\n1\n", "sample: 0", "e.yaml:3: 'sample' must be an integer of at least 1"),
    "other ending": ("r.txt", "a\n", "", "e.yaml:3: the data file 'r.txt' must end in '.csv', '.jsonl', '.json', '.yaml' or '.yml'"),
    "json lines": ("r.jsonl", '{"a": 1}\n{"a"\n', "", "r.jsonl:2: this is not JSON"),
    "double key in json lines": ("r.jsonl", '{"a": 1, "a": 2}\n', "", "r.jsonl:1: the key 'a' is there twice"),
    "json that is no list": ("r.json", '{"a": 1}', "", "r.json:1: a data file must be a list of rows, not a mapping"),
    "yaml with a tag": ("r.yaml", "- a\n- !x b\n", "", "r.yaml:2: the tag '!x' is not allowed"),
    "row of a json file": ("r.json", '[\n {"a": 1},\n {"_x": 1}\n]', "", "r.json:3: '_x' is not a key of rows"),
    "two ids": ("r.csv", "_id,a\nx,1\ny,2\nx,3\n", "", "r.csv:4: two rows have the '_id' 'x'"),
    "not utf-8": ("r.csv", b"a\nb\xff\n", "", "r.csv:2: this is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_refused_with_its_own_file_and_line(desk: Any, name: str) -> None:
    file, text, settings, said = BAD[name]
    desk.write(file, text)
    problems = desk.problems(f"{HEAD}inputs: {{file: {file}{', ' if settings else ''}{settings}}}\n")
    assert [problem for problem in problems if problem.startswith(said)], problems
    assert len(problems) == 1


def test_of_many_bad_rows_the_first_are_told_and_the_rest_counted(desk: Any) -> None:
    desk.write("r.csv", "a\n" + "x\n" * 50)
    problems = desk.problems(f"{HEAD}inputs: {{file: r.csv, types: {{a: int}}}}\n")
    assert len(problems) == 21
    assert "r.csv: 30 more rows have problems" in problems


@given(st.integers(0, 300), st.integers(1, 50), st.integers(0, 2**40))
def test_sample_is_in_order_without_doubles_and_the_same_for_a_seed(count: int, size: int, seed: int) -> None:
    found = sampled(count, size, seed)
    assert found == sorted(set(found)) == sampled(count, size, seed)
    assert len(found) == min(count, size)
    assert all(0 <= index < count for index in found)


scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=3)


@given(
    st.lists(scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from("abc"), scalars), max_size=12)
)
def test_ids_are_unique_and_do_not_depend_on_the_order_of_keys(values: list[Any]) -> None:
    found = [row.input_id for row in with_ids([row_of(value) for value in values])]
    assert len(set(found)) == len(found)
    turned = [dict(reversed(value.items())) if isinstance(value, dict) else value for value in values]
    assert found == [row.input_id for row in with_ids([row_of(value) for value in turned])]
