"""The OpenAI chat completions format: what is sent, what is refused, and what answers mean, byte for byte."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.openai_format import completion_of, request_body
from promptlooper.adapter.providers.openai_stream import Gathered
from promptlooper.adapter.providers.quirks import ENDPOINTS, OPENAI, SERVERS, UNKNOWN, Quirks, of_host
from promptlooper.adapter.retrying import AttemptFailed, Kind
from promptlooper.adapter.tariff import Billed, billed
from promptlooper.completion import Completion, CompletionRequest, Message, Tool, ToolCall

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def sent(quirks: Quirks = OPENAI, *messages: Message, stream: bool = False, **fields: Any) -> dict[str, Any]:
    params = fields.pop("params", {})
    request = CompletionRequest("p/m", messages or (Message("user", "hi"),), params, **fields)
    return orjson.loads(request_body("m", request, quirks, stream=stream))


def refused(quirks: Quirks = OPENAI, **fields: Any) -> str:
    with pytest.raises(AttemptFailed) as caught:
        sent(quirks, **fields)
    return str(caught.value)


def answer(message: dict[str, Any], finish_reason: str = "stop", kept: tuple[str, ...] = (), **others: Any):
    choice = {"message": message, "finish_reason": finish_reason, **others.pop("choice", {})}
    return completion_of(orjson.dumps({"model": "m-1", "choices": [choice], **others}), "m", 1, kept)


def test_a_chat_with_images_calls_and_results_is_sent_in_the_formats_words():
    call = ToolCall("call_1", "weather", '{"city":"Oslo"}')
    body = sent(
        OPENAI,
        Message("system", "Be brief."),
        Message("user", "Look", images=("https://a.test/b.png", "data:image/png;base64,AAAA")),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "4 °C", tool_call_id="call_1", name="weather"),
        tools=(Tool("weather", "Says it", {"type": "object"}), Tool("now")),
        tool_choice="weather",
    )
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look"},
                    {"type": "image_url", "image_url": {"url": "https://a.test/b.png"}},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "4 °C"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "description": "Says it", "parameters": {"type": "object"}},
            },
            {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_tool_choices_have_the_formats_names(choice):
    assert sent(tools=(Tool("now"),), tool_choice=choice)["tool_choice"] == choice


def test_schema_is_strict_where_it_may_be():
    assert sent(response_schema=PERSON)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": PERSON, "strict": True},
    }
    loose = {key: value for key, value in PERSON.items() if key != "additionalProperties"}
    for schema in (
        loose,
        {**PERSON, "required": ["name"]},
        {**PERSON, "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer"}}},
        {**PERSON, "properties": {"name": loose, "age": {"type": "integer"}}},
        {"type": "array", "items": PERSON},
        {"anyOf": [PERSON]},
        {"type": "object", "allOf": [PERSON]},
    ):
        named = sent(response_schema=schema)["response_format"]["json_schema"]
        assert named == {"name": "answer", "schema": schema}


def test_schema_with_definitions_and_lists_may_be_strict():
    schema = {
        "type": "object",
        "properties": {
            "people": {"type": "array", "items": {"$ref": "#/$defs/person"}},
            "kind": {"type": "string", "enum": ["a", "b"]},
        },
        "required": ["kind", "people"],
        "additionalProperties": False,
        "$defs": {"person": {"anyOf": [PERSON, {"type": "null"}]}},
    }
    assert sent(response_schema=schema)["response_format"]["json_schema"]["strict"] is True
    untyped = {**schema, "properties": {**schema["properties"], "kind": {"enum": ["a", "b"]}}}
    assert "strict" not in sent(response_schema=untyped)["response_format"]["json_schema"]
    schema["$defs"] = {"person": {**PERSON, "required": []}}
    assert "strict" not in sent(response_schema=schema)["response_format"]["json_schema"]


def test_known_parameters_are_sent_by_their_names_and_unknown_ones_as_they_are():
    params = {
        **{"temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["\n"], "frequency_penalty": 1, "presence_penalty": -1},
        **{"reasoning_effort": "low", "logprobs": True, "top_logprobs": 2, "parallel_tool_calls": False},
        **{"verbosity": "low", "service_tier": "flex", "n": 1},
    }
    assert {name: sent(params=params)[name] for name in params} == params
    assert sent(params={"max_tokens": 5})["max_completion_tokens"] == 5
    assert sent(UNKNOWN, params={"max_tokens": 5, "top_k": 3})["max_tokens"] == 5


@pytest.mark.parametrize(
    ("quirks", "params", "message"),
    [
        (OPENAI, {"top_k": 3}, "'top_k' has no equivalent"),
        (UNKNOWN, {"reasoning_tokens": 100}, "'reasoning_tokens' has no equivalent"),
        (OPENAI, {"n": 2}, "one answer is taken; ask again with 'repeats'"),
        (OPENAI, {"modalities": ["text", "audio"]}, "only text is taken"),
        (OPENAI, {"functions": []}, "use 'tools'"),
        (OPENAI, {"response_format": {}}, "set by the Adapter itself"),
        (ENDPOINTS["groq"].quirks, {"logprobs": True}, "'logprobs' has no equivalent"),
        (ENDPOINTS["deepseek"].quirks, {"seed": 1}, "'seed' has no equivalent"),
        (OPENAI, {"temperature": object()}, "the request is not JSON"),
    ],
)
def test_what_would_be_dropped_is_refused(quirks, params, message):
    assert message in refused(quirks, params=params)


def test_quirks_rename_and_refuse():
    openrouter, mistral = ENDPOINTS["openrouter"].quirks, ENDPOINTS["mistral"].quirks
    params = {"reasoning_tokens": 500, "reasoning": {"exclude": True}, "reasoning_effort": "low"}
    body = sent(openrouter, params=params)
    assert body["reasoning"] == {"exclude": True, "max_tokens": 500, "effort": "low"}
    assert params["reasoning"] == {"exclude": True}
    assert sent(mistral, params={"seed": 3}, stream=True) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "random_seed": 3,
        "stream": True,
    }
    assert sent(SERVERS["vllm"], params={"reasoning_tokens": 9})["thinking_token_budget"] == 9
    assert "strict" not in sent(ENDPOINTS["groq"].quirks, response_schema=PERSON)["response_format"]["json_schema"]
    assert "takes no JSON Schema" in refused(ENDPOINTS["deepseek"].quirks, response_schema=PERSON)


def test_ids_that_another_provider_gave_are_put_into_the_form_that_mistral_takes():
    calls = tuple(ToolCall(known, "weather", "{}") for known in ("call_0fypS1hVX", "Ab3dE6gH9"))
    results = [Message("tool", "rain", tool_call_id=call.id) for call in calls]
    turns = (Message("user", "hi"), Message("assistant", "", tool_calls=calls), *results)
    _, said, *answers = sent(ENDPOINTS["mistral"].quirks, *turns)["messages"]
    ids = [call["id"] for call in said["tool_calls"]]
    assert [answer["tool_call_id"] for answer in answers] == ids
    assert all(re.fullmatch(r"[a-zA-Z0-9]{9}", each) for each in ids)
    assert ids[1] == "Ab3dE6gH9"
    assert [call["id"] for call in sent(OPENAI, *turns)["messages"][1]["tool_calls"]] == [call.id for call in calls]


def test_quirks_are_found_by_the_host_of_an_address():
    assert of_host("api.groq.com") is ENDPOINTS["groq"].quirks
    assert of_host("eu.api.openai.com") is OPENAI
    assert of_host("notapi.openai.com.evil.test") is UNKNOWN


def test_usage_of_a_stream_is_asked_for():
    assert sent(stream=True)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}, (9, 4, None, 8)),
        ({"prompt_tokens": 9, "completion_tokens": 4, "prompt_cache_hit_tokens": 7}, (9, 4, None, 7)),
        ({"prompt_tokens": 9, "completion_tokens": 4, "cached_tokens": 0}, (9, 4, None, 0)),
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 3}},
            (9, 4, 3, None),
        ),
        (  # as xAI counts
            {
                **{"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 16},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            (9, 7, 3, None),
        ),
        (
            {
                **{"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            (9, 4, 3, None),
        ),
    ],
)
def test_tokens_are_counted_as_each_server_says_them(usage, counts):
    said = answer({"content": "ok"}, usage=usage)
    assert (said.tokens_in, said.tokens_out, said.tokens_reasoning, said.tokens_cached_in) == counts


def test_what_is_billed_apart_is_told_to_who_counts_the_price():
    usage = {
        **{"prompt_tokens": 90, "completion_tokens": 4},
        "prompt_tokens_details": {"image_tokens": 80, "audio_tokens": 5, "cache_write_tokens": 3},
    }
    said = answer({"content": "ok"}, usage=usage, service_tier="flex")
    assert billed(said) == Billed(tokens_image_in=80, tokens_audio_in=5, terms=(("service_tier", "flex"),))
    assert said.tokens_cache_write_in == 3
    assert type(answer({"content": "ok"}, usage={"prompt_tokens": 9}, service_tier="default")) is Completion
    gathering = Gathered(Heard(None))
    gathering.add({"service_tier": "priority", "choices": [{"delta": {}, "finish_reason": "stop"}]})
    assert billed(completion_of(gathering.body(), "m", 1)).terms == (("service_tier", "priority"),)


def test_a_call_that_was_demanded_by_name_ends_with_tool_calls():
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    said = answer({"content": None, "tool_calls": [call]}, "stop")
    assert (said.output, said.finish_reason, said.tool_calls) == ("", "tool_calls", (ToolCall("c1", "now", "{}"),))


def test_log_probabilities_are_kept():
    token = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -2.0}]}
    said = answer({"content": "a"}, choice={"logprobs": {"content": [token]}})
    assert said.logprobs == [{"token": "a", "logprob": -0.1, "top": [{"token": "b", "logprob": -2.0}]}]


def test_reasoning_among_the_parts_of_a_content_is_no_output():
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Yes"}]
    said = answer({"content": parts})
    assert (said.output, said.reasoning) == ("Yes", "Hm.")


def test_what_a_provider_wants_back_is_given_to_it_and_to_no_other():
    details = [{"type": "reasoning.text", "text": "Hm.", "signature": "s1"}]
    said = answer({"content": "Yes", "reasoning_details": details}, kept=("reasoning_details",))
    back = Message("assistant", said.output, provider_data=said.provider_data)
    openrouter = ENDPOINTS["openrouter"].quirks
    assert sent(openrouter, back)["messages"] == [{"role": "assistant", "content": "Yes", "reasoning_details": details}]
    assert sent(OPENAI, back)["messages"] == [{"role": "assistant", "content": "Yes"}]
    assert answer({"content": "Yes", "reasoning_details": details}).provider_data == ""
    other = Message("assistant", "Yes", provider_data='{"anthropic": []}')
    assert sent(openrouter, other)["messages"] == [{"role": "assistant", "content": "Yes"}]
    with pytest.raises(AttemptFailed, match="not what a provider gave"):
        sent(openrouter, Message("assistant", "Yes", provider_data="signed"))


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_an_answer_that_broke_off_may_be_tried_again(reason):
    with pytest.raises(AttemptFailed, match=f"broke off: {reason}") as failed:
        answer({"content": "The capital of"}, reason)
    assert failed.value.failure.kind is Kind.TRANSIENT


def test_calls_get_ids_where_a_server_gives_none():
    call = {"function": {"name": "now", "arguments": "{}"}}
    assert [called.id for called in answer({"tool_calls": [call, call]}).tool_calls] == ["call_0", "call_1"]


def test_an_empty_reasoning_goes_back_too():
    call = {"id": "c1", "function": {"name": "now", "arguments": "{}"}}
    said = answer({"reasoning_content": "", "tool_calls": [call]}, "tool_calls", kept=("reasoning_content",))
    before = Message("assistant", "", tool_calls=said.tool_calls, provider_data=said.provider_data)
    assert sent(ENDPOINTS["deepseek"].quirks, before)["messages"][0]["reasoning_content"] == ""
