"""The fakes are not our own dialect: official clients understand what they say, and are understood by them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from botocore.config import Config
from botocore.session import Session

from promptlooper.completion import ToolCall
from promptlooper.testing.wires import Reply, Said, WireServer
from promptlooper.testing.wires.azure import AzureWire
from promptlooper.testing.wires.bedrock import BedrockWire
from promptlooper.testing.wires.openai_responses import OpenAIResponsesWire

CALL = ToolCall("call_1", "weather", '{"city":"Paris"}')
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
SAID = Said("one two", "Hm hm.", "c2ln", (CALL,), "tool_calls", tokens_in=100, tokens_out=9, tokens_cached_in=60)


@pytest.fixture
async def responses() -> AsyncIterator[WireServer]:
    async with WireServer(OpenAIResponsesWire(), SAID) as server:
        yield server


@pytest.fixture
async def azure() -> AsyncIterator[WireServer]:
    async with WireServer(AzureWire(), Said("ok")) as server:
        yield server


@pytest.fixture
async def bedrock() -> AsyncIterator[WireServer]:
    async with WireServer(BedrockWire(), SAID) as server:
        yield server


async def test_openais_client_understands_responses_and_their_turns_are_taken(responses):
    strict: dict[str, Any] = {"_strict_response_validation": True}
    tool: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
    settings: Any = {"model": "gpt-5", "tools": [tool], "store": False, "include": ["reasoning.encrypted_content"]}
    question: Any = {"role": "user", "content": "hi"}
    async with openai.AsyncOpenAI(base_url=responses.base_url, api_key="k", max_retries=0, **strict) as client:
        first = await client.responses.create(input=[question], **settings)
        assert (first.output_text, first.usage.input_tokens_details.cached_tokens) == (SAID.text, 60)
        assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
        call = first.output[2].model_dump(include={"type", "call_id", "name", "arguments"})
        result: Any = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
        await client.responses.create(input=[question, call, result], **settings)
        async with client.responses.stream(input=[question], **settings) as stream:
            deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert ("".join(deltas), final.status) == (SAID.text, "completed")
    assert not responses.refused


async def test_openais_client_for_azure_is_taken_at_both_paths(azure):
    question: Any = {"model": "my-chat", "messages": [{"role": "user", "content": "hi"}]}
    async with openai.AsyncAzureOpenAI(azure_endpoint=azure.address, api_key="k", api_version="2024-10-21") as dated:
        assert (await dated.chat.completions.create(**question)).choices[0].message.content == "ok"
    headers = {"api-key": "k"}
    async with openai.AsyncOpenAI(base_url=azure.address + "/openai/v1", api_key="k", default_headers=headers) as v1:
        assert (await v1.chat.completions.create(**question)).choices[0].message.content == "ok"
    assert not azure.refused


async def test_awss_client_understands_answers_streams_and_errors_and_its_signature_is_good(bedrock):
    session = Session()
    session.set_credentials("AKIAEXAMPLE", BedrockWire.secret)
    config = Config(retries={"total_max_attempts": 1})
    client = await asyncio.to_thread(
        lambda: session.create_client("bedrock-runtime", "eu-west-1", endpoint_url=bedrock.address, config=config)
    )
    tools = {"tools": [{"toolSpec": {"name": "weather", "inputSchema": {"json": SCHEMA}}}]}
    turn = {"role": "user", "content": [{"text": "hi"}]}
    settings: Any = {"modelId": "us.anthropic.claude-opus-5-v1:0", "toolConfig": tools}

    def talk() -> tuple[Any, list[Any], str]:
        first = client.converse(messages=[turn], **settings)
        message = first["output"]["message"]
        result = {"toolUseId": "call_1", "content": [{"text": "rain"}]}
        again = [turn, message, {"role": "user", "content": [{"toolResult": result}]}]
        events = list(client.converse_stream(messages=again, **settings)["stream"])
        bedrock.answer = Reply(status=429, message="slow down")
        with pytest.raises(client.exceptions.ClientError) as caught:
            client.converse(messages=[turn], **settings)
        return first, events, str(caught.value)

    first, events, said = await asyncio.to_thread(talk)
    assert not bedrock.refused
    assert (first["stopReason"], first["usage"]["cacheReadInputTokens"]) == ("tool_use", 60)
    assert [next(iter(block)) for block in first["output"]["message"]["content"]] == [
        "reasoningContent",
        "text",
        "toolUse",
    ]
    deltas = [event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event]
    assert "".join(delta.get("text", "") for delta in deltas) == SAID.text
    assert "".join(delta["toolUse"]["input"] for delta in deltas if "toolUse" in delta) == CALL.arguments
    assert events[-1]["metadata"]["usage"]["outputTokens"] == 9
    assert "slow down" in said
