"""Ollama's own format: options by their names, images as bytes, and what it cannot do."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from promptlooper.completion import CompletionRequest, Message, Tool, ToolCall
from promptlooper.errors import ContextTooLong, ProviderRejected, ProviderUnavailable
from promptlooper.testing.wires import Reply, Said, WireServer
from promptlooper.testing.wires.ollama import OllamaWire

CALL = ToolCall("call_1", "weather", '{"city":"Oslo"}')
WEATHER = Tool("weather", "Says it", {"type": "object"})
SCHEMA = {"type": "object"}


@pytest.fixture
async def server():
    async with WireServer(OllamaWire()) as server:
        yield server


@pytest.fixture
def ask(gateways, server):
    gateway = gateways(OLLAMA_HOST=server.address)

    async def asked(*messages: Message, on_delta: Any = None, **fields: Any):
        params = fields.pop("params", {})
        question = messages or (Message("user", "hi"),)
        return await gateway.complete(CompletionRequest("ollama/m", question, params, **fields), on_delta)

    return asked


async def test_the_built_in_provider_speaks_it_without_a_key(ask, server):
    await ask(
        params={
            **{"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "stop": "\n", "num_ctx": 8192},
            **{"frequency_penalty": 1, "presence_penalty": -1, "reasoning_effort": "high"},
            **{"logprobs": True, "top_logprobs": 1, "keep_alive": "5m"},
        },
        response_schema=SCHEMA,
    )
    (asked,) = server.asked
    assert "authorization" not in asked.headers
    assert asked.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
        "truncate": False,
        "shift": False,
        "format": SCHEMA,
        "think": "high",
        "logprobs": True,
        "top_logprobs": 1,
        "keep_alive": "5m",
        "options": {
            **{"num_predict": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "stop": ["\n"]},
            **{"num_ctx": 8192, "frequency_penalty": 1, "presence_penalty": -1},
        },
    }


async def test_turns_with_images_calls_and_results_are_said_in_its_words(ask, server):
    server.answer = Said("", "Hm.", tool_calls=(CALL,))
    first = await ask(Message("user", "Look", images=("data:image/png;base64,AAAA",)), tools=(WEATHER,))
    assert (first.reasoning, first.finish_reason, first.tool_calls) == ("Hm.", "tool_calls", (CALL,))
    server.answer = Said("4 °C", logprob=-0.5, tokens_cached_in=8)
    last = await ask(
        Message("user", "Look", images=("data:image/png;base64,AAAA",)),
        Message("assistant", "", tool_calls=first.tool_calls, provider_data=first.provider_data),
        Message("tool", "4", tool_call_id="call_1", name="weather"),
        tools=(WEATHER,),
        tool_choice="none",
    )
    assert (last.output, last.tokens_cached_in) == ("4 °C", 8)
    assert last.logprobs == [{"token": "4 °C", "logprob": -0.5, "top": [{"token": "4 °C", "logprob": -0.5}]}]
    assert server.asked[1].body["messages"] == [
        {"role": "user", "content": "Look", "images": ["AAAA"]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm.",
            "tool_calls": [{"id": "call_1", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "content": "4", "tool_name": "weather", "tool_call_id": "call_1"},
    ]
    assert "tools" not in server.asked[1].body


async def test_a_stream_brings_reasoning_output_and_counts(ask, server):
    server.answer = Said("one two", "Hm hm", tokens_in=7, tokens_out=4)
    pieces: list[str] = []
    answer = await ask(on_delta=pieces.append)
    assert (answer.output, pieces, answer.reasoning) == ("one two", ["one ", "two"], "Hm hm")
    assert (answer.tokens_in, answer.tokens_out) == (7, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"params": {"reasoning_tokens": 5}}, "'reasoning_tokens' has no equivalent"),
        ({"params": {"parallel_tool_calls": True}}, "'parallel_tool_calls' has no equivalent"),
        ({"params": {"temprature": 1}}, "'temprature' has no equivalent at this provider; write it into 'options'"),
        ({"params": {"format": "json"}}, "'format' is set by the Adapter itself"),
        ({"tools": (WEATHER,), "tool_choice": "required"}, "can't be told which tool to call"),
    ],
)
async def test_what_it_would_ignore_is_refused(ask, server, fields, message):
    with pytest.raises(ProviderRejected, match=message):
        await ask(**fields)
    assert not server.asked


async def test_what_it_cannot_be_sent_is_refused(ask, server):
    with pytest.raises(ProviderRejected, match="not at a public address"):
        await ask(Message("user", "Look", images=("https://127.0.0.1/b.png",)))
    with pytest.raises(ProviderRejected, match="the call to tool 'weather' are not a JSON object"):
        await ask(Message("assistant", "", tool_calls=(ToolCall("c", "weather", "[1"),)))
    assert not server.asked


async def test_options_that_are_not_known_here_go_into_options(ask, server):
    await ask(params={"options": {"num_batch": 64}, "seed": 1})
    assert server.asked[0].body["options"] == {"num_batch": 64, "seed": 1}


async def test_errors_are_read_also_in_the_middle_of_a_stream(ask, server):
    server.answer = Reply(status=400, message="the input length exceeds the context length")
    with pytest.raises(ContextTooLong):
        await ask()
    line = b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n{"error":"model runner died"}\n'
    server.answer = Reply(body=line)
    with pytest.raises(ProviderUnavailable, match="model runner died"):
        await ask(on_delta=lambda piece: None)


@pytest.mark.parametrize("streamed", [False, True])
async def test_calls_get_ids_where_it_gives_none(ask, server, streamed):
    call = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    answer = {"message": {"role": "assistant", "content": "", "tool_calls": [call, call]}, "done": True}
    server.answer = Reply(body=orjson.dumps(answer))
    said = await ask(on_delta=(lambda piece: None) if streamed else None)
    assert [called.id for called in said.tool_calls] == ["call_0", "call_1"]
