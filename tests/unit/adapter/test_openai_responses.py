"""The OpenAI Responses format: what is sent, what is refused, and how reasoning goes from turn to turn."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from promptlooper.adapter.providers.responses import OpenAIResponses
from promptlooper.completion import CompletionRequest, Message, Tool, ToolCall
from promptlooper.errors import ContextTooLong, ProviderRateLimited, ProviderRejected, ProviderUnavailable
from promptlooper.testing.wires import Reply, Said, WireServer
from promptlooper.testing.wires.openai_responses import OpenAIResponsesWire

SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
CALL = ToolCall("call_1", "now", "{}")


@pytest.fixture
async def server():
    async with WireServer(OpenAIResponsesWire()) as server:
        yield server


@pytest.fixture
def ask(gateways, server, key):
    gateway = gateways("providers: [{name: openai, type: openai-responses}]", **variables(server, key))

    async def asked(*messages: Message, model: str = "gpt-5", on_delta: Any = None, **fields: Any):
        params = fields.pop("params", {})
        question = messages or (Message("user", "hi"),)
        return await gateway.complete(CompletionRequest(f"openai/{model}", question, params, **fields), on_delta)

    return asked


def variables(server: WireServer, key: str) -> dict[str, str]:
    return {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": key}


async def test_everything_is_said_in_the_formats_words_and_nothing_is_kept_there(ask, server):
    await ask(
        Message("system", "Be brief."),
        Message("user", "Look", images=("https://a.test/b.png",)),
        params={
            **{"max_tokens": 50, "reasoning_effort": "low", "reasoning": {"summary": "auto"}, "verbosity": "low"},
            **{"logprobs": True, "top_logprobs": 1, "temperature": 1, "parallel_tool_calls": False},
        },
        tools=(Tool("now"),),
        tool_choice="now",
        response_schema=SCHEMA,
    )
    (asked,) = server.asked
    assert asked.body == {
        "model": "gpt-5",
        "store": False,
        "input": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Look"},
                    {"type": "input_image", "image_url": "https://a.test/b.png"},
                ],
            },
        ],
        "max_output_tokens": 50,
        "reasoning": {"summary": "auto", "effort": "low"},
        "text": {
            "verbosity": "low",
            "format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True},
        },
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "top_logprobs": 1,
        "temperature": 1,
        "parallel_tool_calls": False,
        "tools": [
            {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}, "strict": False}
        ],
        "tool_choice": {"type": "function", "name": "now"},
    }


async def test_answer_brings_counts_reasoning_and_log_probabilities(ask, server):
    server.answer = Said(
        "Yes", "Hm.", tokens_in=20, tokens_out=9, tokens_reasoning=6, tokens_cached_in=16, logprob=-0.5
    )
    answer = await ask()
    assert (answer.output, answer.reasoning, answer.finish_reason) == ("Yes", "Hm.", "stop")
    assert (answer.tokens_in, answer.tokens_out, answer.tokens_reasoning, answer.tokens_cached_in) == (20, 9, 6, 16)
    assert answer.logprobs == [{"token": "Yes", "logprob": -0.5, "top": [{"token": "Yes", "logprob": -0.5}]}]


@pytest.mark.parametrize("streamed", [False, True])
async def test_encrypted_reasoning_is_given_back_before_the_calls_it_led_to(ask, server, streamed):
    server.answer = Said("Let me look.", "Hm.", "gAAAA", (CALL,))
    first = await ask(tools=(Tool("now"),), on_delta=(lambda piece: None) if streamed else None)
    assert first.tool_calls == (CALL,)
    turns = (
        Message("user", "hi"),
        Message("assistant", first.output, tool_calls=first.tool_calls, provider_data=first.provider_data),
        Message("tool", "noon", tool_call_id="call_1", name="now"),
    )
    await ask(*turns, tools=(Tool("now"),))
    assert server.asked[1].body["input"][1:] == [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Hm."}],
            "encrypted_content": "gAAAA",
        },
        {"type": "message", "role": "assistant", "content": "Let me look."},
        {"type": "function_call", "call_id": "call_1", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "noon"},
    ]


@pytest.mark.parametrize("model", ["gpt-4.1", "gpt-5-chat-latest"])
async def test_models_that_do_not_reason_are_not_asked_for_it(ask, server, model):
    assert (await ask(model=model)).provider_data == ""
    assert "include" not in server.asked[0].body


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stop", "'stop' has no equivalent at this provider; remove it from 'params', or ask the same model with"),
        ("seed", "'seed' has no equivalent"),
        ("reasoning_tokens", "'reasoning_tokens' has no equivalent"),
        ("store", "'store' is set by the Adapter itself"),
        ("previous_response_id", "'previous_response_id' is set by the Adapter itself"),
    ],
)
async def test_what_would_be_dropped_is_refused(ask, server, name, message):
    with pytest.raises(ProviderRejected, match=message):
        await ask(params={name: 1})
    assert not server.asked


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("server_error", ProviderUnavailable),
        ("rate_limit_exceeded", ProviderRateLimited),
        ("invalid_prompt", ProviderRejected),
        ("invalid_image", ProviderRejected),
        ("context_length_exceeded", ContextTooLong),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_failed_is_the_error_that_it_names(ask, server, code, error, streamed):
    failed = {"status": "failed", "output": [], "error": {"code": code, "message": "it did not work"}}
    event = b"data: " + orjson.dumps({"type": "response.failed", "response": failed}) + b"\n\n"
    server.answer = Reply(body=event if streamed else orjson.dumps(failed))
    with pytest.raises(error, match="it did not work" if error is not ContextTooLong else "too long"):
        await ask(timeout=0.5, on_delta=(lambda piece: None) if streamed else None)


def test_a_refusal_is_the_output():
    item = {"type": "message", "content": [{"type": "refusal", "refusal": "I won't."}]}
    body = orjson.dumps({"status": "completed", "model": "m", "output": [item]})
    assert OpenAIResponses().completion(body, "m", 1).output == "I won't."
