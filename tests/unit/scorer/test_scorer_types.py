"""Every scorer type with its positive, negative and error cases."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from promptlooper.scorer.registry import BUILT_IN, NEGATION, ScorerCore
from promptlooper.scoring import ScoreItem, ScorerCall, ScoreValue

A_SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}

# type, value, output, wanted value or a piece of the error, settings
CASES: list[tuple[str, Any, str, float | str, dict[str, Any]]] = [
    ("exact", "Paris", "Paris", 1.0, {}),
    ("exact", "Paris", "Paris.", 0.0, {}),
    ("exact", "Paris", " paris\n", 0.0, {}),
    ("exact", "Paris", " paris\n", 1.0, {"ignore_case": True, "trim": True}),
    ("exact", 42, "42", 1.0, {}),
    ("exact", 42, " 42.0\n", 1.0, {}),
    ("exact", 42, "43", 0.0, {}),
    ("exact", True, "1", 0.0, {}),
    ("exact", True, "True", 1.0, {"ignore_case": True}),
    ("exact", {"a": [1, None]}, '{ "a": [1, null] }', 1.0, {}),
    ("exact", [1], "no JSON", 0.0, {}),
    ("exact", None, "x", "needs a value", {}),
    ("contains", "is Par", "It is Paris.", 1.0, {}),
    ("contains", "paris", "It is Paris.", 0.0, {}),
    ("contains", "paris", "It is Paris.", 1.0, {"ignore_case": True}),
    ("contains", 42, "It is 42.", 1.0, {}),
    ("contains", "", "anything", "not ''", {}),
    ("contains", ["a"], "a", 'not ["a"]', {}),
    ("icontains", "PARIS", "It is Paris.", 1.0, {}),
    ("icontains", "straße", "STRASSE", 1.0, {}),
    ("icontains", "Lyon", "It is Paris.", 0.0, {}),
    ("icontains", None, "It is Paris.", "needs a value", {}),
    ("starts-with", "It", "It is Paris.", 1.0, {}),
    ("starts-with", "It", "\nIt is Paris.", 0.0, {}),
    ("starts-with", "It", "\nIt is Paris.", 1.0, {"trim": True}),
    ("starts-with", {"a": 1}, "It", 'not {"a":1}', {}),
    ("regex", r"^\w+\.$", "Paris.", 1.0, {}),
    ("regex", "P.s", "Paris", 0.0, {}),
    ("regex", "PARIS", "Paris", 1.0, {"ignore_case": True}),
    ("regex", "(?i)PARIS", "héé Paris", 1.0, {}),
    ("regex", "(", "Paris", "missing )", {}),
    ("regex", "(?=a)b", "Paris", "RE2 has no look-ahead", {}),
    ("regex", "a" * 1025, "Paris", "1025 characters; at most 1024", {}),
    ("json-valid", None, ' {"a": 1}\n', 1.0, {}),
    ("json-valid", None, "```json\n{}\n```", 0.0, {}),
    ("json-valid", None, '{"a": NaN}', 0.0, {}),
    ("json-valid", True, "{}", "takes no value, and has true", {}),
    ("json-schema", A_SCHEMA, '{"city": "Paris"}', 1.0, {}),
    ("json-schema", '{"type": "array"}', "[1]", 1.0, {}),
    ("json-schema", A_SCHEMA, '{"city": 3}', 0.0, {}),
    ("json-schema", A_SCHEMA, "Paris", 0.0, {}),
    ("json-schema", True, "3", 1.0, {}),
    ("json-schema", {"type": "objekt"}, "{}", "not a valid JSON Schema at /type", {}),
    ("json-schema", "no JSON", "{}", "the schema is not JSON", {}),
    (
        "json-schema",
        {"$ref": "http://127.0.0.1:9/s"},
        "{}",
        "'http://127.0.0.1:9/s', and nothing is fetched",
        {},
    ),
    ("json-schema", {"$ref": "file:///etc/passwd"}, "{}", "'file:///etc/passwd', and nothing is fetched", {}),
    ("json-schema", {"$ref": "other.json"}, "{}", "'other.json', and nothing is fetched", {}),
    ("json-schema", {"$schema": "http://x/y"}, "{}", "names a $schema that is not known", {}),
    ("json-schema", {"pattern": "(?=a)"}, "{}", "at /pattern", {}),
    ("json-schema", {"description": "x" * 70_000}, "{}", "at most 65536 are allowed", {}),
    ("json-path-equals", 3, '{"a": {"b": 3}}', 1.0, {"path": "$.a.b"}),
    ("json-path-equals", 3, '{"a": {"b": 4}}', 0.0, {"path": "$.a.b"}),
    ("json-path-equals", 3, '{"a": {}}', 0.0, {"path": "$.a.b"}),
    ("json-path-equals", 3, "no JSON", 0.0, {"path": "$.a.b"}),
    ("json-path-equals", 3, "3", 1.0, {"path": "$"}),
    ("json-path-equals", "[1]", '"[1]"', 1.0, {"path": "$"}),
    ("json-path-equals", [1, 2], '{"a": [{"b": 1}, {"b": 2}]}', 1.0, {"path": "$.a[*].b"}),
    ("json-path-equals", ["Rome"], '{"a": [{"id": 1, "n": "Rome"}, {"id": 2}]}', 1.0, {"path": "$.a[?@.id == 1].n"}),
    ("json-path-equals", 1, "{}", "needs the setting 'path'", {}),
    ("json-path-equals", 1, "{}", "'a.b' is not a JSONPath", {"path": "a.b"}),
    ("json-path-equals", 1, "{}", "more than one '..'", {"path": "$..a..b"}),
    ("json-path-equals", 1, "{}", "a '$' in a filter", {"path": "$[?@.a == $.b]"}),
    ("json-path-equals", 1, "{}", "a ','", {"path": "$['a','b']"}),
    ("json-path-equals", 1, "{}", "is not a JSONPath", {"path": "$[?match(@.a, 'x')]"}),
    ("json-path-equals", 1, "[" + "1," * 10_001 + "1]", "more than 10000 values", {"path": "$[*]"}),
    ("numeric", 42, "The answer is 42.", 1.0, {}),
    ("numeric", "1,234.50", "It costs $1,234.5 today", 1.0, {}),
    ("numeric", 42, "The answer is 41.", 0.0, {}),
    ("numeric", 42, "No idea.", 0.0, {}),
    ("numeric", 1.0, "about 1.1", 1.0, {"tolerance": 0.1}),
    ("numeric", 1.0, "about 1.11", 0.0, {"tolerance": 0.1}),
    ("numeric", 3, "3 of 4", 0.0, {}),
    ("numeric", 3, "3 of 4", 1.0, {"take": "first"}),
    ("numeric", -5, "it is -5 degrees", 1.0, {}),
    ("numeric", 5, "it is 2024-5", 1.0, {}),
    ("numeric", 6e23, "6e23", 1.0, {}),
    ("numeric", 0.5, ".5", 1.0, {}),
    ("numeric", "-.5", "is −.5", 1.0, {}),
    ("numeric", 3, "version 1.2.3", 1.0, {}),
    ("numeric", 56, "1,234,56", 1.0, {}),
    ("numeric", "1 2", "2", "the value '1 2' is not a number", {}),
    ("numeric", "five", "5", "the value 'five' is not a number", {}),
    ("numeric", True, "1", "must be a number", {}),
    ("numeric", 1, "1e999999999", "that can be compared", {}),
    ("numeric", 1, "1", "cannot be -1", {"tolerance": -1}),
    ("levenshtein", "Paris", "Paris", 1.0, {}),
    ("levenshtein", "abcd", "abce", 0.75, {}),
    ("levenshtein", "abc", "xyz", 0.0, {}),
    ("levenshtein", "PARIS", " paris ", 1.0, {"ignore_case": True, "trim": True}),
    ("levenshtein", "a", "b" * 50_001, "too long", {}),
    ("min-words", 2, "two words", 1.0, {}),
    ("min-words", 3, "two words", 0.0, {}),
    ("min-words", "2", "two words", "must be a whole number of words", {}),
    ("max-words", 2, "two words", 1.0, {}),
    ("max-words", 1, "two words", 0.0, {}),
    ("max-words", -1, "two words", "must be a whole number of words", {}),
    ("latency", 100, "took 100 ms", 1.0, {}),
    ("latency", 99.5, "took 100 ms", 0.0, {}),
    ("latency", "1s", "took 100 ms", "must be a number of milliseconds", {}),
    ("cost", 0.1, "cost 0.1 USD", 1.0, {}),
    ("cost", 0.09, "cost 0.1 USD", 0.0, {}),
    ("cost", 0.1, "cost unknown", "is not known", {}),
]


async def scored(kind: str, value: Any, output: str, settings: dict[str, Any]) -> ScoreValue:
    cost = None if output == "cost unknown" else 100_000_000
    item = ScoreItem(output, (ScorerCall(kind, value, settings),), latency_ms=100, cost_nanousd=cost)
    [[score]] = await ScorerCore().score([item])
    return score


@pytest.mark.parametrize(("kind", "value", "output", "wanted", "settings"), CASES)
async def test_type_gives_the_wanted_value_or_error(
    kind: str, value: Any, output: str, wanted: float | str, settings: dict[str, Any]
) -> None:
    score = await scored(kind, value, output, settings)
    if isinstance(wanted, str):
        assert score.value is None
        assert score.error is not None
        assert wanted in score.error
    else:
        assert (score.error, score.value) == (None, pytest.approx(wanted))
        assert score.explanation
        assert len(score.explanation) < 800


@pytest.mark.parametrize(("kind", "value", "output", "wanted", "settings"), CASES)
async def test_negated_type_gives_the_rest_to_one_or_the_same_error(
    kind: str, value: Any, output: str, wanted: float | str, settings: dict[str, Any]
) -> None:
    score = await scored(NEGATION + kind, value, output, settings)
    if isinstance(wanted, str):
        assert score.value is None
        assert score.error is not None
    else:
        assert score.value == pytest.approx(1 - wanted)


@pytest.mark.parametrize("kind", [kind.type for kind in BUILT_IN])
def test_type_has_positive_negative_and_error_cases(kind: str) -> None:
    wanted = [case[3] for case in CASES if case[0] == kind]
    assert 1.0 in wanted
    assert 0.0 in wanted
    assert any(isinstance(what, str) for what in wanted)


async def test_every_type_is_listed_with_description_and_schemas() -> None:
    infos = await ScorerCore().list_scorers()
    assert [info.type for info in infos] == sorted(kind.type for kind in BUILT_IN)
    for info in infos:
        assert info.description.endswith(".")
        assert info.value_schema["description"]
        assert info.settings_schema["additionalProperties"] is False
        properties = info.settings_schema["properties"]
        assert isinstance(properties, dict)
        for name, schema in properties.items():
            assert schema["description"].endswith("."), name
        jsonschema_rs.meta.validate(dict(info.value_schema))
        jsonschema_rs.meta.validate(dict(info.settings_schema))


def test_no_type_looks_negated() -> None:
    assert not [kind.type for kind in BUILT_IN if kind.type.startswith(NEGATION)]


async def test_hostile_pattern_is_linear_on_a_long_output() -> None:
    score = await scored("regex", "(a+)+$", "a" * 100_000 + "b", {})
    assert score.value == 0.0
