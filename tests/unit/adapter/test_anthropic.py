"""The Anthropic Messages format over the real wire: what is sent, what is refused, and what answers mean."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from promptlooper.adapter.gateway import Gateway
from promptlooper.completion import CompletionRequest, Message, Tool, ToolCall
from promptlooper.errors import (
    CompletionFailed,
    ContextTooLong,
    ProviderCredentials,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)
from promptlooper.testing.wires import Reply, Said, WireServer
from promptlooper.testing.wires.anthropic import AnthropicWire

TOOL = Tool("weather", "", {"type": "object"})
CALL = ToolCall("toolu_1", "weather", '{"city":"Paris"}')


@pytest.fixture
async def server() -> AsyncIterator[WireServer]:
    async with WireServer(AnthropicWire()) as server:
        yield server


@pytest.fixture
def gateway(gateways, server, key) -> Gateway:
    return gateways(ANTHROPIC_BASE_URL=server.base_url, ANTHROPIC_API_KEY=key)


def asking(*messages: Message, **params) -> CompletionRequest:
    return CompletionRequest("anthropic/claude-opus-5", messages or (Message("user", "hi"),), params)


async def test_request_holds_what_is_set_and_a_limit_of_tokens(gateway, server, key):
    messages = (Message("system", "a"), Message("system", "b"), Message("user", "hi"))
    await gateway.complete(asking(*messages, temperature=0, top_k=5, stop="END", metadata={"user_id": "u"}))
    (asked,) = server.asked
    assert asked.body == {
        "model": "claude-opus-5",
        "max_tokens": 8192,
        "system": "a\n\nb",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "top_k": 5,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u"},
    }
    assert (asked.path, asked.headers["x-api-key"]) == ("/v1/messages", key)
    assert asked.headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in asked.headers


async def test_operator_may_set_another_version(gateways, server):
    settings = f"type: anthropic, base_url: '{server.base_url}/v1', headers: {{Anthropic-Version: '2026-10-21'}}"
    gateway = gateways(f"providers: [{{name: a, {settings}, api_key_env: KEY}}]", KEY="k")
    await gateway.complete(replace(asking(), model="a/claude"))
    assert (server.asked[0].path, server.asked[0].headers["anthropic-version"]) == ("/v1/messages", "2026-10-21")
    with pytest.raises(ProviderRejected, match="temperature: removed in this version"):
        await gateway.complete(replace(asking(temperature=1), model="a/claude"))


@pytest.mark.parametrize(
    ("params", "sent"),
    [
        ({"reasoning_effort": "low"}, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
        ({"reasoning_effort": "max"}, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"reasoning_tokens": 2000}, {"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 10192}),
        ({"reasoning_tokens": 2000, "max_tokens": 3000}, {"max_tokens": 3000}),
        ({"reasoning_tokens": 0}, {"thinking": {"type": "disabled"}, "max_tokens": 8192}),
        ({"output_config": {"effort": "max"}}, {"output_config": {"effort": "max"}}),
        ({"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        ({"logprobs": False}, {"max_tokens": 8192}),
    ],
)
async def test_parameters_are_mapped(gateway, server, params, sent):
    await gateway.complete(asking(**params))
    assert {name: server.asked[0].body[name] for name in sent} == sent
    assert not {"reasoning_effort", "reasoning_tokens", "logprobs"} & set(server.asked[0].body)


async def test_ids_of_calls_that_another_provider_gave_are_put_into_its_form(gateway, server):
    calls = (ToolCall("functions.weather:0", "weather", "{}"), ToolCall("", "weather", "{}"))
    results = (Message("tool", "rain", tool_call_id=call.id, name="weather") for call in calls)
    await gateway.complete(replace(asking(Message("assistant", "", tool_calls=calls), *results), tools=(TOOL,)))
    asked, answered = server.asked[0].body["messages"]
    ids = [block["id"] for block in asked["content"]]
    assert ids == [block["tool_use_id"] for block in answered["content"]]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"seed": 7}, "'seed'"),
        ({"logprobs": True}, "'logprobs'"),
        ({"frequency_penalty": 0.5}, "'frequency_penalty'"),
        ({"reasoning_effort": "minimal"}, "use one of none, low, medium, high"),
        ({"reasoning_effort": "low", "thinking": {"type": "adaptive"}}, "keep one of them"),
        ({"system": "x"}, "'system' is set by the Adapter"),
    ],
)
async def test_what_the_format_cannot_say_is_refused_before_the_call(gateway, server, params, said):
    with pytest.raises(ProviderRejected, match=said):
        await gateway.complete(asking(**params))
    assert not server.asked


async def test_images_go_inline_or_as_addresses(gateway, server):
    images = ("data:image/PNG;base64,aGk=", "https://example.test/a.png")
    await gateway.complete(asking(Message("user", "", images=images)))
    assert [block["source"] for block in server.asked[0].body["messages"][0]["content"]] == [
        {"type": "base64", "media_type": "image/png", "data": "aGk="},
        {"type": "url", "url": "https://example.test/a.png"},
    ]
    with pytest.raises(ProviderRejected, match="neither an https address nor"):
        await gateway.complete(asking(Message("user", "", images=("http://example.test/a.png",))))


async def test_results_of_tools_and_what_follows_are_one_turn(gateway, server):
    calls = (CALL, replace(CALL, id="toolu_2"))
    results = [Message("tool", "rain", tool_call_id=call.id, name=call.name) for call in calls]
    turns = (Message("user", "hi"), Message("assistant", "", tool_calls=calls), *results, Message("user", "and?"))
    await gateway.complete(replace(asking(*turns), tools=(TOOL,), tool_choice="none"))
    last = server.asked[0].body["messages"][-1]["content"]
    assert [block["type"] for block in last] == ["tool_result", "tool_result", "text"]
    await gateway.complete(asking(*turns))
    assert [tool["name"] for tool in server.asked[1].body["tools"]] == ["weather"]  # else its calls are refused
    assert server.asked[1].body["tool_choice"] == {"type": "none"}
    broken = (Message("user", "hi"), Message("assistant", "", tool_calls=(replace(CALL, arguments="{"),)))
    with pytest.raises(ProviderRejected, match="no JSON object"):
        await gateway.complete(asking(*broken))


@pytest.mark.parametrize(
    ("choice", "parallel", "sent"),
    [
        ("auto", None, {"type": "auto"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ("weather", True, {"type": "tool", "name": "weather", "disable_parallel_tool_use": False}),
        ("", False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("none", False, {"type": "none"}),
    ],
)
async def test_choice_of_tools_is_mapped(gateway, server, choice, parallel, sent):
    params = {} if parallel is None else {"parallel_tool_calls": parallel}
    await gateway.complete(replace(asking(**params), tools=(TOOL,), tool_choice=choice))
    assert server.asked[0].body["tool_choice"] == sent


async def test_schema_says_that_objects_are_closed_where_it_did_not(gateway, server):
    inner = {"type": "object", "properties": {"type": {"const": {"type": "object"}}}}
    schema = {"type": "object", "properties": {"a": {"anyOf": [inner, {"type": "null"}]}}, "$defs": {"b": inner}}
    await gateway.complete(replace(asking(output_config={"effort": "low"}), response_schema=schema))
    closed = {**inner, "additionalProperties": False}
    assert server.asked[0].body["output_config"] == {
        "effort": "low",
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {"a": {"anyOf": [closed, {"type": "null"}]}},
                "$defs": {"b": closed},
                "additionalProperties": False,
            },
        },
    }


@pytest.mark.parametrize("streamed", [False, True])
async def test_signed_reasoning_comes_back_in_the_next_turn_as_it_came(gateway, server, streamed):
    server.answer = Said("It is", "I ponder it", "c2ln", (CALL,), tokens_out=40, tokens_reasoning=30)
    pieces: list[str] = []
    answer = await gateway.complete(replace(asking(), tools=(TOOL,)), pieces.append if streamed else None)
    assert (answer.output, answer.reasoning, answer.tool_calls) == ("It is", "I ponder it", (CALL,))
    assert (answer.tokens_out, answer.tokens_reasoning, answer.finish_reason) == (40, 30, "tool_calls")
    before = Message("assistant", "It is", tool_calls=answer.tool_calls, provider_data=answer.provider_data)
    result = Message("tool", "rain", tool_call_id="toolu_1")
    await gateway.complete(replace(asking(Message("user", "hi"), before, result), tools=(TOOL,)))
    first = server.asked[1].body["messages"][1]["content"][0]
    assert first == {"type": "thinking", "thinking": "I ponder it", "signature": "c2ln"}
    assert not server.refused
    other = replace(before, provider_data='{"gemini":[]}', tool_calls=())
    await gateway.complete(asking(Message("user", "hi"), other, Message("user", "so?")))
    assert server.asked[2].body["messages"][1]["content"] == "It is"


@pytest.mark.parametrize("streamed", [False, True])
async def test_tokens_in_count_what_the_prompt_cache_holds(gateway, server, streamed):
    server.answer = Said(tokens_in=100, tokens_cached_in=60, tokens_cache_write_in=30)
    answer = await gateway.complete(asking(), (lambda piece: None) if streamed else None)
    assert (answer.tokens_in, answer.tokens_cached_in, answer.tokens_cache_write_in) == (100, 60, 30)


def error(kind: str, message: str) -> bytes:
    return f'{{"type": "error", "error": {{"type": "{kind}", "message": "{message}"}}}}'.encode()


@pytest.mark.parametrize(
    ("status", "kind", "message", "cls"),
    [
        (400, "invalid_request_error", "Your credit balance is too low to access the API", ProviderCredentials),
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", ContextTooLong),
        (400, "invalid_request_error", "input length and `max_tokens` exceed context limit: 1 + 2 > 3", ContextTooLong),
        (403, "permission_error", "no", ProviderCredentials),
        (413, "request_too_large", "Request exceeds the maximum size", ProviderRejected),
        (529, "overloaded_error", "Overloaded", ProviderUnavailable),
    ],
)
async def test_errors_are_what_they_mean(gateway, server, status, kind, message, cls):
    server.answer = Reply(status=status, body=error(kind, message))
    with pytest.raises(CompletionFailed, match=message[:20]) as caught:
        await gateway.complete(asking())
    assert type(caught.value) is cls


async def test_an_account_without_credit_is_asked_again_later(gateway, server):
    server.script.append(Reply(status=400, body=error("invalid_request_error", "Your credit balance is too low")))
    with pytest.raises(ProviderCredentials):
        await gateway.complete(asking())
    (check,) = await gateway.check_models(["anthropic/claude-opus-5"])
    assert check.problem is None


@pytest.mark.parametrize(
    ("kind", "cls", "attempts"),
    [
        ("overloaded_error", ProviderUnavailable, 3),
        ("invalid_request_error", ProviderRejected, 1),
        ("rate_limit_error", ProviderRateLimited, None),
    ],
)
async def test_an_error_within_a_stream_is_that_error(gateway, server, kind, cls, attempts):
    server.answer = Reply(body=b"event: error\ndata: " + error(kind, "so it is") + b"\n\n")
    with pytest.raises(cls, match="so it is") as caught:
        await gateway.complete(asking(), lambda piece: None)
    assert attempts is None or caught.value.attempts == attempts


async def test_key_of_the_variable_goes_only_to_its_owner(gateways, server):
    text = f"providers: [{{name: mine, type: anthropic, base_url: '{server.base_url}'}}]"
    gateway = gateways(text, ANTHROPIC_API_KEY="canary")
    with pytest.raises(ProviderCredentials, match="x-api-key"):
        await gateway.complete(replace(asking(), model="mine/claude"))
    (check,) = await gateways().check_models(["anthropic/claude-opus-5"])
    assert check.problem_reason == "PROVIDER_CREDENTIALS"
    assert "'ANTHROPIC_API_KEY'" in str(check.problem)
