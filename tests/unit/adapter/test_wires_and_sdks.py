"""The fakes are not our own dialect: the official SDKs accept what they say, and are accepted by them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from promptlooper.completion import ToolCall
from promptlooper.testing.wires import Reply, Said, WireServer
from promptlooper.testing.wires.anthropic import AnthropicWire
from promptlooper.testing.wires.embeddings import numbers_of
from promptlooper.testing.wires.openai_chat import OpenAIChatWire

CALL = ToolCall("call_1", "weather", '{"city":"Paris"}')
SAID = Said("It is € so", "Let me think", "c2ln", (CALL,), tokens_in=100, tokens_out=9, tokens_cached_in=60)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "additionalProperties": False}


@pytest.fixture
async def openai_server() -> AsyncIterator[WireServer]:
    async with WireServer(OpenAIChatWire(), SAID) as server:
        yield server


@pytest.fixture
async def openai_sdk(openai_server) -> AsyncIterator[openai.AsyncOpenAI]:
    strict: dict[str, Any] = {"_strict_response_validation": True}
    async with openai.AsyncOpenAI(base_url=openai_server.base_url, api_key="k", max_retries=0, **strict) as client:
        yield client


@pytest.fixture
async def anthropic_server() -> AsyncIterator[WireServer]:
    async with WireServer(AnthropicWire(), SAID) as server:
        yield server


@pytest.fixture
async def anthropic_sdk(anthropic_server) -> AsyncIterator[anthropic.AsyncAnthropic]:
    strict: dict[str, Any] = {"_strict_response_validation": True}
    url = anthropic_server.base_url
    async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0, **strict) as client:
        yield client


async def test_openais_sdk_understands_an_answer_and_its_turns_are_taken(openai_sdk, openai_server):
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    question: Any = {"role": "user", "content": "hi"}
    first = await openai_sdk.chat.completions.create(model="gpt-4.1", messages=[question], tools=[tool])
    message = first.choices[0].message
    assert (message.content, first.choices[0].finish_reason) == (SAID.text, "tool_calls")
    assert message.tool_calls[0].function.arguments == CALL.arguments
    assert first.usage.prompt_tokens_details.cached_tokens == 60
    turn = message.model_dump(include={"role", "content", "tool_calls"})
    result: Any = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    await openai_sdk.chat.completions.create(model="gpt-4.1", messages=[question, turn, result], tools=[tool])
    assert not openai_server.refused


async def test_openais_sdk_understands_a_stream(openai_sdk):
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    stream = await openai_sdk.chat.completions.create(
        model="gpt-4.1", messages=[{"role": "user", "content": "hi"}], **options
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SAID.text
    assert chunks[-1].usage.completion_tokens == 9


async def test_openais_sdk_understands_embeddings(openai_sdk, openai_server):
    texts: Any = {"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 3}
    found = await openai_sdk.embeddings.create(**texts, encoding_format="float")
    assert {item.index: item.embedding for item in found.data} == {0: numbers_of("a", 3), 1: numbers_of("b", 3)}
    assert found.usage.prompt_tokens == 100
    # Without a format it asks for base64, which its strict validation does not know.
    async with openai.AsyncOpenAI(base_url=openai_server.base_url, api_key="k", max_retries=0) as usual:
        found = await usual.embeddings.create(**texts)
    assert openai_server.asked[1].body["encoding_format"] == "base64"
    assert {item.index: item.embedding for item in found.data} == {0: numbers_of("a", 3), 1: numbers_of("b", 3)}
    assert not openai_server.refused


async def test_anthropics_sdk_understands_an_answer_and_its_turns_are_taken(anthropic_sdk, anthropic_server):
    tool: Any = {"name": "weather", "input_schema": SCHEMA}
    settings: Any = {"model": "claude-opus-5", "max_tokens": 50, "tools": [tool]}
    question: Any = {"role": "user", "content": "hi"}
    first = await anthropic_sdk.messages.create(messages=[question], **settings)
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use"]
    assert (first.content[2].input, first.stop_reason) == ({"city": "Paris"}, "tool_use")
    assert (first.usage.input_tokens, first.usage.cache_read_input_tokens) == (40, 60)
    turn: Any = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in first.content]}
    result: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "rain"}]}
    await anthropic_sdk.messages.create(messages=[question, turn, result], **settings)
    assert not anthropic_server.refused


async def test_anthropics_sdk_understands_a_stream(anthropic_sdk):
    settings: Any = {"model": "claude-opus-5", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
    async with anthropic_sdk.messages.stream(**settings) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == SAID.text
    assert (final.content[0].signature, final.content[2].input) == ("c2ln", {"city": "Paris"})
    assert (final.usage.output_tokens, final.stop_reason) == (9, "tool_use")


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 529])
async def test_both_know_errors_by_their_status(openai_sdk, openai_server, anthropic_sdk, anthropic_server, status):
    openai_server.answer = anthropic_server.answer = Reply(status=status, message="so it is")
    question: Any = {"messages": [{"role": "user", "content": "hi"}], "model": "m"}
    with pytest.raises(openai.APIStatusError, match="so it is") as theirs:
        await openai_sdk.chat.completions.create(**question)
    with pytest.raises(anthropic.APIStatusError, match="so it is") as other:
        await anthropic_sdk.messages.create(max_tokens=5, **question)
    assert theirs.value.status_code == other.value.status_code == status
    assert isinstance(other.value.body, dict)
