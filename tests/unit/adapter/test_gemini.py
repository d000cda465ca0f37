"""The Gemini generateContent format over the real wire: what is sent, what is refused, and what answers mean."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest

from promptlooper.adapter.gateway import Gateway
from promptlooper.completion import CompletionRequest, Message, Tool, ToolCall
from promptlooper.errors import (
    CompletionFailed,
    ContextTooLong,
    ProviderCredentials,
    ProviderMalformed,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)
from promptlooper.testing.wires import Reply, Said, WireServer
from promptlooper.testing.wires.gemini import GeminiWire

TOOL = Tool("weather", "Of a city", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCall("call_1", "weather", '{"city":"Paris"}')


@pytest.fixture
async def server() -> AsyncIterator[WireServer]:
    async with WireServer(GeminiWire()) as server:
        yield server


@pytest.fixture
def gateway(gateways, server, key) -> Gateway:
    return gateways(GOOGLE_GEMINI_BASE_URL=server.base_url, GEMINI_API_KEY=key)


def asking(*messages: Message, model: str = "gemini-3-flash", **params) -> CompletionRequest:
    return CompletionRequest(f"gemini/{model}", messages or (Message("user", "hi"),), params)


async def test_request_holds_what_is_set_and_nothing_else(gateway, server, key):
    params = {"temperature": 0, "top_k": 5, "max_tokens": 9, "stop": ["END"], "seed": 7, "safetySettings": []}
    more = {"generationConfig": {"candidateCount": 1, "topK": 1}, "logprobs": True, "top_logprobs": 2}
    await gateway.complete(asking(Message("system", "a"), Message("user", "hi"), **params, **more))
    (asked,) = server.asked
    assert asked.body == {
        "systemInstruction": {"parts": [{"text": "a"}]},
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
        "generationConfig": {
            "candidateCount": 1,
            "temperature": 0,
            "topK": 5,
            "maxOutputTokens": 9,
            "stopSequences": ["END"],
            "seed": 7,
            "responseLogprobs": True,
            "logprobs": 2,
        },
        "safetySettings": [],
    }
    assert asked.path == "/v1beta/models/gemini-3-flash:generateContent"
    assert asked.headers["x-goog-api-key"] == key
    assert key not in asked.path


@pytest.mark.parametrize(
    ("model", "params", "sent"),
    [
        ("gemini-3-flash", {"reasoning_effort": "low"}, {"thinkingLevel": "LOW", "includeThoughts": True}),
        ("gemini-2.5-pro", {"reasoning_effort": "low"}, {"thinkingBudget": 1024, "includeThoughts": True}),
        ("gemini-2.5-flash", {"reasoning_effort": "none"}, {"thinkingBudget": 0}),
        ("gemini-2.5-flash", {"reasoning_tokens": 300}, {"thinkingBudget": 300, "includeThoughts": True}),
        ("models/gemini-2.5-flash", {"reasoning_effort": "high"}, {"thinkingBudget": 24576, "includeThoughts": True}),
    ],
)
async def test_reasoning_is_a_level_or_a_budget(gateway, server, model, params, sent):
    await gateway.complete(asking(model=model, **params))
    assert server.asked[0].body["generationConfig"] == {"thinkingConfig": sent}
    assert server.asked[0].path == f"/v1beta/models/{model.removeprefix('models/')}:generateContent"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"parallel_tool_calls": False}, "one tool at a time"),
        ({"reasoning_effort": "huge"}, "use one of none, minimal, low, medium, high"),
        ({"reasoning_effort": "low", "reasoning_tokens": 5}, "keep one of them"),
        ({"contents": []}, "'contents' is set by the Adapter"),
    ],
)
async def test_what_the_format_cannot_say_is_refused_before_the_call(gateway, server, params, said):
    with pytest.raises(ProviderRejected, match=said):
        await gateway.complete(asking(**params))
    late = (Message("user", "hi"), Message("assistant", "yes"), Message("system", "be brief"))
    with pytest.raises(ProviderRejected, match="system messages only before"):
        await gateway.complete(asking(*late))
    assert not server.asked


async def test_a_model_is_one_part_of_the_path(gateway, server):
    await gateway.complete(asking(model="a/../../files?x#y"))
    assert server.asked[0].path == "/v1beta/models/a%2F..%2F..%2Ffiles%3Fx%23y:generateContent"


async def test_images_go_inline_or_as_addresses(gateway, server):
    images = ("data:image/png;base64,aGk=", "https://example.test/a.png?size=2", "https://example.test/b")
    await gateway.complete(asking(Message("user", "", images=images)))
    assert server.asked[0].body["contents"][0]["parts"] == [
        {"inlineData": {"mimeType": "image/png", "data": "aGk="}},
        {"fileData": {"mimeType": "image/png", "fileUri": "https://example.test/a.png?size=2"}},
        {"fileData": {"fileUri": "https://example.test/b"}},
    ]


async def test_tools_their_calls_and_results_are_mapped(gateway, server):
    calls = (CALL, replace(CALL, id="call_2"))
    results = (Message("tool", "rain", tool_call_id="call_1"), Message("tool", '{"t":1}', tool_call_id="call_2"))
    turns = (Message("user", "hi"), Message("assistant", "", tool_calls=calls), *results)
    await gateway.complete(replace(asking(*turns), tools=(TOOL,), tool_choice="weather"))
    body = server.asked[0].body
    declared = {"name": "weather", "description": "Of a city", "parametersJsonSchema": TOOL.parameters}
    assert body["tools"] == [{"functionDeclarations": [declared]}]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}}
    assert [part["functionResponse"] for part in body["contents"][2]["parts"]] == [
        {"id": "call_1", "name": "weather", "response": {"output": "rain"}},
        {"id": "call_2", "name": "weather", "response": {"t": 1}},
    ]
    lost = (Message("user", "hi"), Message("tool", "rain", tool_call_id="call_9"))
    with pytest.raises(ProviderRejected, match="the name of the tool that answers 'call_9'"):
        await gateway.complete(asking(*lost))


@pytest.mark.parametrize("streamed", [False, True])
async def test_signed_reasoning_comes_back_in_the_next_turn_as_it_came(gateway, server, streamed):
    server.answer = Said("It is", "I ponder it", "c2ln", (CALL,), tokens_out=40, tokens_reasoning=30)
    pieces: list[str] = []
    answer = await gateway.complete(replace(asking(), tools=(TOOL,)), pieces.append if streamed else None)
    assert (answer.output, answer.reasoning, answer.tool_calls) == ("It is", "I ponder it", (CALL,))
    assert (answer.tokens_out, answer.tokens_reasoning, answer.finish_reason) == (40, 30, "tool_calls")
    before = Message("assistant", "It is", tool_calls=answer.tool_calls, provider_data=answer.provider_data)
    result = Message("tool", "rain", tool_call_id="call_1")
    await gateway.complete(replace(asking(Message("user", "hi"), before, result), tools=(TOOL,)))
    parts = server.asked[1].body["contents"][1]["parts"]
    assert parts == [
        {"text": "I ponder it", "thought": True},
        {"text": "It is"},
        {
            "functionCall": {"id": "call_1", "name": "weather", "args": {"city": "Paris"}},
            "thoughtSignature": "c2ln",
        },
    ]


async def test_a_call_without_an_id_gets_one_that_its_result_can_name(gateway, server):
    part = {"functionCall": {"name": "weather", "args": {}}, "thoughtSignature": "c2ln"}
    candidate = {"content": {"parts": [part]}, "finishReason": "STOP"}
    server.script.append(Reply(body=orjson.dumps({"candidates": [candidate]})))
    answer = await gateway.complete(replace(asking(), tools=(TOOL,)))
    (call,) = answer.tool_calls
    before = Message("assistant", "", tool_calls=(call,), provider_data=answer.provider_data)
    await gateway.complete(asking(Message("user", "hi"), before, Message("tool", "rain", tool_call_id=call.id)))
    contents = server.asked[1].body["contents"]
    assert contents[1]["parts"][0]["functionCall"]["id"] == contents[2]["parts"][0]["functionResponse"]["id"] == call.id


@pytest.mark.parametrize("streamed", [False, True])
async def test_tokens_and_logprobs_are_counted(gateway, server, streamed):
    server.answer = Said(tokens_in=100, tokens_cached_in=60, tokens_out=9, logprob=-0.5)
    answer = await gateway.complete(asking(logprobs=True), (lambda piece: None) if streamed else None)
    assert (answer.tokens_in, answer.tokens_cached_in, answer.tokens_out) == (100, 60, 9)
    token = {"token": "ok", "logprob": -0.5}
    assert answer.logprobs == [{**token, "top": [token]}]


async def test_what_the_model_wrote_and_google_could_not_read_is_no_answer(gateway, server):
    candidate = {"content": {"parts": []}, "finishReason": "MALFORMED_FUNCTION_CALL"}
    server.answer = Reply(body=orjson.dumps({"candidates": [candidate]}))
    with pytest.raises(ProviderMalformed, match="it ended with MALFORMED_FUNCTION_CALL"):
        await gateway.complete(asking())


async def test_a_refused_question_is_a_filtered_answer(gateway, server):
    usage = {"promptTokenCount": 7}
    server.answer = Reply(body=orjson.dumps({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage}))
    answer = await gateway.complete(asking())
    assert (answer.output, answer.finish_reason, answer.tokens_in, answer.tokens_out) == ("", "content_filter", 7, 0)
    server.answer = Reply(body=b'{"usageMetadata": {}}')
    with pytest.raises(ProviderMalformed, match="no candidates"):
        await gateway.complete(asking())


def error(status: int, message: str, **detail: str) -> Reply:
    data = {"error": {"code": status, "message": message, "status": "X", "details": [detail]}}
    return Reply(status=status, body=orjson.dumps(data))


@pytest.mark.parametrize(
    ("reply", "cls"),
    [
        (error(400, "API key not valid", reason="API_KEY_INVALID"), ProviderCredentials),
        (error(403, "no", reason="SERVICE_DISABLED"), ProviderCredentials),
        (error(400, "The input token count (9) exceeds the maximum number of tokens allowed (8)."), ContextTooLong),
        (error(503, "The model is overloaded"), ProviderUnavailable),
        (Reply(status=400, body=b'[{"error": {"code": 400, "message": "in a list"}}]'), ProviderRejected),
    ],
)
async def test_errors_are_what_they_mean(gateway, server, reply, cls):
    server.answer = reply
    with pytest.raises(CompletionFailed) as caught:
        await gateway.complete(asking())
    assert type(caught.value) is cls


async def test_a_key_that_is_not_known_is_not_sent_again(gateway, server):
    server.answer = error(400, "API key not valid", reason="API_KEY_INVALID")
    for _ in range(2):
        with pytest.raises(ProviderCredentials):
            await gateway.complete(asking())
    assert len(server.asked) == 1


async def test_how_long_to_wait_stands_in_the_body(gateway, server):
    server.answer = error(429, "quota", retryDelay="36.5s")
    with pytest.raises(ProviderRateLimited) as caught:
        await gateway.complete(asking())
    assert caught.value.retry_after == 36.5


async def test_an_error_within_a_stream_is_that_error(gateway, server):
    server.answer = Reply(body=b'data: {"error": {"code": 503, "message": "gone now"}}\n\n')
    with pytest.raises(ProviderUnavailable, match="gone now"):
        await gateway.complete(asking(), lambda piece: None)


async def test_the_older_variable_comes_first_as_in_their_own_tools(gateways, server):
    gateway = gateways(GOOGLE_GEMINI_BASE_URL=server.base_url, GEMINI_API_KEY="new-one", GOOGLE_API_KEY="old-one")
    await gateway.complete(asking())
    assert server.asked[0].headers["x-goog-api-key"] == "old-one"
    (check,) = await gateways().check_models(["gemini/gemini-3-flash"])
    assert "'GEMINI_API_KEY'" in str(check.problem)
