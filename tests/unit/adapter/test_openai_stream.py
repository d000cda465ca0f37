"""Answers in the OpenAI chat completions format that come piece by piece, put together again."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.openai_format import completion_of
from promptlooper.adapter.providers.openai_stream import Gathered
from promptlooper.adapter.retrying import AttemptFailed
from promptlooper.completion import ToolCall


def gathered(*deltas: dict[str, Any], finish_reason: str = "stop", kept: tuple[str, ...] = ()) -> tuple[Any, list[str]]:
    pieces: list[str] = []
    gathering = Gathered(Heard(pieces.append))
    for delta in deltas:
        gathering.add({"model": "m-1", "choices": [{"delta": delta, "finish_reason": None}]})
    gathering.add({"choices": [{"delta": {}, "finish_reason": finish_reason}]})
    return completion_of(gathering.body(), "m", 1, kept), pieces


def test_a_stream_of_reasoning_details_is_put_together_again():
    said, pieces = gathered(
        {"reasoning": "H", "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "H"}]},
        {"reasoning": "m", "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "m"}]},
        {"reasoning_details": [{"type": "reasoning.text", "index": 0, "signature": "s", "text": None}]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "index": 1, "data": "e"}]},
        {"content": "Yes"},
        kept=("reasoning_details",),
    )
    assert (said.output, said.reasoning, pieces) == ("Yes", "Hm", ["Yes"])
    assert orjson.loads(said.provider_data) == {
        "openai": {
            "reasoning_details": [
                {"type": "reasoning.text", "index": 0, "text": "Hm", "signature": "s"},
                {"type": "reasoning.encrypted", "index": 1, "data": "e"},
            ]
        }
    }


def test_a_stream_of_parts_is_output_and_reasoning():
    said, pieces = gathered(
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]},
        {"content": [{"type": "text", "text": "Ye"}]},
        {"content": "s"},
        finish_reason="model_length",
    )
    assert (said.output, said.reasoning, said.finish_reason, pieces) == ("Yes", "Hm.", "length", ["Ye", "s"])


def test_a_refusal_in_a_stream_is_the_output():
    said, pieces = gathered({"refusal": "I "}, {"refusal": "won't."})
    assert (said.output, pieces) == ("I won't.", [])


def part(arguments: Any, index: int | None = None, call_id: str | None = None, name: str | None = None):
    """Of a call of a tool in a stream."""
    function = {**({"name": name} if name else {}), "arguments": arguments}
    said = {"index": index, "id": call_id, "function": function}
    return {"tool_calls": [{key: value for key, value in said.items() if value is not None}]}


FIRST, SECOND = ToolCall("c1", "now", '{"a":1}'), ToolCall("c2", "then", '{"b":2}')


@pytest.mark.parametrize(
    "deltas",
    [
        # In turn, as OpenAI may send them.
        (
            part("", 0, "c1", "now"),
            part("", 1, "c2", "then"),
            part('{"a"', 0),
            part('{"b":', 1),
            part(":1}", 0),
            part("2}", 1),
        ),
        # All with the same number, as Ollama and others send them.
        (part('{"a":1}', 0, "c1", "now"), part('{"b":', 0, "c2", "then"), part("2}", 0)),
        # Without a number, also with the id in every part.
        (part('{"a":1}', None, "c1", "now"), part('{"b":', None, "c2", "then"), part("2}", None, "c2")),
        # With an object where the format has its text.
        (part({"a": 1}, 0, "c1", "now"), part({"b": 2}, 1, "c2", "then")),
    ],
)
def test_calls_of_tools_in_a_stream_are_kept_apart_however_they_are_numbered(deltas):
    said, _ = gathered(*deltas, finish_reason="tool_calls")
    assert said.tool_calls == (FIRST, SECOND)


def test_calls_without_a_number_and_an_id_are_told_apart_by_their_names():
    said, _ = gathered(part("{}", None, None, "now"), part('{"b"', None, None, "then"), part(":2}"))
    assert [(call.name, call.arguments) for call in said.tool_calls] == [("now", "{}"), ("then", '{"b":2}')]


def test_a_call_without_a_name_is_malformed():
    with pytest.raises(AttemptFailed, match="a tool without a name"):
        gathered(part("{}", 0, "c1"), finish_reason="tool_calls")


def test_empty_texts_are_kept_where_they_go_back_and_hide_nothing():
    deltas = ({"content": "", "refusal": None}, {"reasoning_content": ""}, {"refusal": "I "}, {"refusal": "can't."})
    said, pieces = gathered(*deltas, kept=("reasoning_content",))
    assert (said.output, said.reasoning, pieces) == ("I can't.", None, [])
    assert orjson.loads(said.provider_data) == {"openai": {"reasoning_content": ""}}
