"""The keys of questions, and what is kept of their answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import key_lab
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptlooper.caching import Found, LookupStatus
from promptlooper.completion import Completion, CompletionRequest, Message, Tool, ToolCall
from promptlooper.digest import canonical
from promptlooper.experiment import CacheMode, CachePolicy
from promptlooper.questions import LARGEST_VALUE, Question, cache_key, completion_of, entry_of, key_in

KEY = "default.default:" + "ab" * 32
CALL = ToolCall("1", "weather", '{"city": "Oslo"}')
MESSAGE = Message("user", "why?", ("https://a/b.png",), (CALL,), "1", "weather", "{}")
TOOL = Tool("weather", "The weather.", {"type": "object"})
REQUEST = CompletionRequest("mock/m", (MESSAGE,), {"temperature": 0.5}, 30, False, (TOOL,), "auto", {"type": "object"})
POLICY = CachePolicy()
QUESTION = Question(REQUEST, "here", 0, "default", POLICY)

IN_KEY: dict[type, dict[str, Any]] = {
    ToolCall: {"id": "2", "name": "time", "arguments": "{}"},
    Message: {
        "role": "assistant",
        "content": "what?",
        "images": ("https://a/c.png",),
        "tool_calls": (),
        "tool_call_id": "2",
        "name": "time",
        "provider_data": "",
    },
    Tool: {"name": "time", "description": "", "parameters": {}},
    CompletionRequest: {
        "model": "mock/other",
        "messages": (MESSAGE, MESSAGE),
        "params": {"temperature": 0.6},
        "tools": (),
        "tool_choice": "none",
        "response_schema": None,
    },
    CachePolicy: {"namespace": "n"},
    Question: {"endpoint": "there", "repeat": 1, "project": "p"},
}
NOT_IN_KEY: dict[type, dict[str, Any]] = {
    ToolCall: {},
    Message: {},
    Tool: {},
    CompletionRequest: {"timeout": 1.0, "once": True, "experiment_id": "e"},
    CachePolicy: {"mode": CacheMode.REFRESH, "max_age": 5.0},
    Question: {},
}
PARTS = {Question: {"request", "policy"}}  # each with lists of its own


def changed(kind: type, **change: Any) -> Question:
    """The question with one field of one of its parts changed."""
    if kind is Question:
        return replace(QUESTION, **change)
    if kind is CachePolicy:
        return replace(QUESTION, policy=replace(POLICY, **change))
    if kind is CompletionRequest:
        return replace(QUESTION, request=replace(REQUEST, **change))
    if kind is Tool:
        return replace(QUESTION, request=replace(REQUEST, tools=(replace(TOOL, **change),)))
    if kind is ToolCall:
        change = {"tool_calls": (replace(CALL, **change),)}
    return replace(QUESTION, request=replace(REQUEST, messages=(replace(MESSAGE, **change),)))


@pytest.mark.parametrize("kind", list(IN_KEY), ids=lambda kind: kind.__name__)
def test_every_field_of_a_question_is_in_the_key_or_known_not_to_be(kind: type) -> None:
    """A new field fails here until it is put into one of the lists, and into the key if it can change the answer."""
    in_key, not_in_key = IN_KEY[kind], NOT_IN_KEY[kind]
    assert {field.name for field in fields(kind)} == in_key.keys() | not_in_key.keys() | PARTS.get(kind, set())
    for name, value in in_key.items():
        assert cache_key(changed(kind, **{name: value})) != cache_key(QUESTION), name
    for name, value in not_in_key.items():
        assert cache_key(changed(kind, **{name: value})) == cache_key(QUESTION), name


def test_keys_and_digests_are_those_of_every_version() -> None:
    """Stored answers are found by them. Where a change is meant, KEY_VERSION is raised and the file made anew."""
    known = key_lab.golden()
    assert key_lab.made_here() == {
        "keys": [question["key"] for question in known["questions"].values()],
        "digests": [vector["sha256"] for vector in known["values"]],
    }


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_keys_are_the_same_in_processes_with_other_hash_seeds(seed: str) -> None:
    env = {**os.environ, "PYTHONHASHSEED": seed}
    program = Path(key_lab.__file__)
    said = subprocess.run([sys.executable, program], env=env, capture_output=True, check=True).stdout
    known = key_lab.golden()
    assert json.loads(said)["keys"] == [question["key"] for question in known["questions"].values()]
    assert json.loads(said)["digests"] == [vector["sha256"] for vector in known["values"]]


SAME = [
    {"temperature 0", "temperature 0.0", "temperature -0.0"},
    {"temperature 1", "temperature 1.0"},
    {"params in one order", "params in another order"},
    {"tool", "tool, its schema in another order"},
    {"schema", "schema in another order"},
]


def test_only_the_order_of_keys_and_the_way_to_write_a_number_make_no_difference() -> None:
    """So NFC and NFD, LF and CRLF, the order of stop sequences, and the spelling of a tool call's arguments do: models
    read them differently."""
    by_key: dict[str, set[str]] = {}
    for name, question in key_lab.golden()["questions"].items():
        by_key.setdefault(question["key"], set()).add(name)
    shared = [names for names in by_key.values() if len(names) > 1]
    assert sorted(map(sorted, shared)) == sorted(map(sorted, SAME))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def comparable(value: Any) -> Any:
    """Equal exactly where two JSON values mean the same: True is not 1, and 1 is 1.0."""
    if isinstance(value, dict):
        return {key: comparable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [comparable(inner) for inner in value]
    return ("bool", value) if isinstance(value, bool) else value


@given(json_values, json_values)
def test_canonical_bytes_are_equal_exactly_where_the_values_are(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == (comparable(one) == comparable(other))


@given(json_values)
def test_canonical_bytes_do_not_know_the_order_of_keys(value: Any) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(inner) for key, inner in reversed(value.items())}
        return [turned(inner) for inner in value] if isinstance(value, list) else value

    assert canonical(turned(value)) == canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_numbers_that_json_has_not_have_no_key(value: Any) -> None:
    with pytest.raises(ValueError, match="no canonical form"):
        canonical(value)


def test_other_kinds_of_questions_have_keys_of_the_same_form() -> None:
    meaning = ["embedding", "openai/text-embedding-3-small", "here", ["why?"], {}]
    assert key_in("p", "n", meaning).startswith("p.n:")
    assert key_in("p", "n", meaning) != key_in("p", "n", ["embedding", *meaning])


FREE = replace(REQUEST, response_schema=None)


def kept(completion: Completion, request: CompletionRequest = FREE) -> bool:
    return entry_of(KEY, request, completion) is not None


WHOLE = Completion(
    output="It is cold.",
    model="m-2026",
    finish_reason="tool_calls",
    tokens_in=10,
    tokens_out=5,
    tokens_reasoning=2,
    tokens_cached_in=3,
    latency_ms=120,
    ttft_ms=30,
    cost_nanousd=1_000,
    attempts=2,
    reasoning="Norway.",
    tool_calls=(CALL,),
    tokens_cache_write_in=1,
    logprobs=[{"token": "It", "logprob": -0.5, "top": [{"token": "So", "logprob": -1.5}]}],
    provider_data='{"signature": "s"}',
    fallback=False,  # else it would not be kept
)


def test_every_field_of_an_answer_is_kept() -> None:
    """A new field fails here until it is given a value above."""
    left_out = {field.name for field in fields(Completion) if getattr(WHOLE, field.name) == field.default}
    assert left_out == {"fallback", "price_version"}  # what is remembered costs nothing
    entry = entry_of(KEY, REQUEST, WHOLE)
    assert entry is not None
    assert completion_of(Found(LookupStatus.HIT, entry.value)) == WHOLE


@pytest.mark.parametrize("finish_reason", ["stop", "length", "tool_calls", "content_filter", "other"])
def test_answers_that_are_not_whole_are_not_kept(finish_reason: str) -> None:
    assert kept(Completion("a", "m", finish_reason)) == (finish_reason in ("stop", "length", "tool_calls"))


@pytest.mark.parametrize("arguments", ["", '{"city": "Os', "[]", "null"])
def test_broken_tool_calls_are_not_kept(arguments: str) -> None:
    assert not kept(Completion("", "m", "tool_calls", tool_calls=(CALL, replace(CALL, arguments=arguments))))


def test_answers_of_another_model_are_not_kept() -> None:
    assert not kept(Completion("a", "openai/other", "stop", fallback=True))


@pytest.mark.parametrize(
    ("output", "is_kept"),
    [('{"a": 1}', True), ('{"a": "1"}', False), ("{}", False), ('{"a": 1', False), ("", False), ("a: 1", False)],
)
def test_answers_that_do_not_fit_their_schema_are_not_kept(output: str, is_kept: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    request = replace(REQUEST, response_schema=schema)
    assert kept(Completion(output, "m", "stop"), request) == is_kept
    assert kept(Completion(output, "m", "stop"))
    assert kept(Completion("", "m", "tool_calls", tool_calls=(CALL,)), request)


def test_answers_that_are_too_large_are_not_kept() -> None:
    assert kept(Completion("a" * (LARGEST_VALUE - 200), "m", "stop"))
    assert not kept(Completion("a" * LARGEST_VALUE, "m", "stop"))


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"1", b"{}", b'{"output": "a", "model": "m", "from": "later"}'])
def test_answers_of_another_form_are_misses(value: bytes) -> None:
    assert completion_of(Found(LookupStatus.HIT, value)) is None
