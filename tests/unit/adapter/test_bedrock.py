"""AWS Bedrock's Converse: what is sent and how it is signed, streams as AWS sends them, and what it cannot do."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from promptlooper.adapter.providers import aws
from promptlooper.adapter.providers.aws_events import events_of
from promptlooper.adapter.retrying import AttemptFailed
from promptlooper.completion import CompletionRequest, Message, Tool, ToolCall
from promptlooper.errors import ProviderCredentials, ProviderRateLimited, ProviderRejected, ProviderUnavailable
from promptlooper.testing.wires import Reply, Said, WireServer
from promptlooper.testing.wires.bedrock import BedrockWire, event

CALL = ToolCall("call_1", "weather", '{"city":"Oslo"}')
WEATHER = Tool("weather", "Says it", {"type": "object"})
PIXEL = "data:image/png;base64,AAAA"
MODEL = "us.anthropic.claude-opus-5-v1:0"
SIGNED = {"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": BedrockWire.secret}


@pytest.fixture
async def server():
    async with WireServer(BedrockWire()) as server:
        yield server


@pytest.fixture
def ask(gateways, server):
    gateway = gateways(AWS_ENDPOINT_URL_BEDROCK_RUNTIME=server.address, **SIGNED)

    async def asked(*messages: Message, model: str = MODEL, on_delta: Any = None, **fields: Any):
        params = fields.pop("params", {})
        question = messages or (Message("user", "hi"),)
        return await gateway.complete(CompletionRequest(f"bedrock/{model}", question, params, **fields), on_delta)

    return asked


async def test_requests_are_signed_with_what_the_variables_say(ask, server):
    await ask()
    await ask(model="arn:aws:bedrock:eu-west-1:1:inference-profile/a", on_delta=lambda piece: None)
    assert server.refused == []
    paths = [asked.path for asked in server.asked]
    assert paths[0] == "/model/us.anthropic.claude-opus-5-v1:0/converse"
    assert paths[1] == "/model/arn:aws:bedrock:eu-west-1:1:inference-profile%2Fa/converse-stream"
    assert "AKIAEXAMPLE/" in server.asked[0].headers["authorization"]
    assert "/eu-west-1/bedrock/" in server.asked[0].headers["authorization"]


async def test_a_wrong_secret_is_refused_and_not_shown(gateways, server):
    wrong = {**SIGNED, "AWS_SECRET_ACCESS_KEY": "sk-canary-secret"}
    gateway = gateways(AWS_ENDPOINT_URL_BEDROCK_RUNTIME=server.address, **wrong)
    with pytest.raises(ProviderCredentials, match="signature we calculated does not match") as caught:
        await gateway.complete(CompletionRequest(f"bedrock/{MODEL}", (Message("user", "hi"),), {}))
    assert "canary" not in str(caught.value)


async def test_an_api_key_is_a_bearer_token(gateways, server, key):
    gateway = gateways(AWS_ENDPOINT_URL_BEDROCK_RUNTIME=server.address, AWS_BEARER_TOKEN_BEDROCK=key)
    await gateway.complete(CompletionRequest(f"bedrock/{MODEL}", (Message("user", "hi"),), {}))
    assert server.asked[0].headers["authorization"] == f"Bearer {key}"


async def test_credentials_of_a_profile_are_found(gateways, server, tmp_path, monkeypatch):
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[work]\naws_access_key_id = AKIAWORK\naws_secret_access_key = {BedrockWire.secret}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    entry = f"providers: [{{name: mine, type: bedrock, region: eu-west-1, base_url: '{server.address}', profile: %s}}]"
    question = CompletionRequest(f"mine/{MODEL}", (Message("user", "hi"),), {})
    await gateways(entry % "work").complete(question)
    assert "AKIAWORK/" in server.asked[0].headers["authorization"]
    with pytest.raises(ProviderCredentials, match=r"The config profile .gone. could not be found"):
        await gateways(entry % "gone").complete(question)


async def test_everything_is_said_in_its_words(ask, server):
    await ask(
        Message("system", "Be brief."),
        Message("user", "Look", images=(PIXEL,)),
        params={
            **{"max_tokens": 50, "temperature": 0.5, "top_p": 0.9, "stop": "\n", "top_k": 3},
            **{"reasoning_effort": "low", "reasoning_tokens": 1024, "guardrailConfig": {"guardrailIdentifier": "g"}},
        },
        tools=(WEATHER,),
        tool_choice="weather",
        response_schema={"type": "object"},
    )
    schema = {"jsonSchema": {"name": "answer", "schema": '{"type":"object","additionalProperties":false}'}}
    assert server.asked[0].body == {
        "system": [{"text": "Be brief."}],
        "messages": [
            {
                "role": "user",
                "content": [{"text": "Look"}, {"image": {"format": "png", "source": {"bytes": "AAAA"}}}],
            }
        ],
        "inferenceConfig": {"maxTokens": 50, "temperature": 0.5, "topP": 0.9, "stopSequences": ["\n"]},
        "additionalModelRequestFields": {"top_k": 3, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        "guardrailConfig": {"guardrailIdentifier": "g"},
        "outputConfig": {"effort": "low", "textFormat": {"type": "json_schema", "structure": schema}},
        "toolConfig": {
            "tools": [
                {
                    "toolSpec": {
                        "name": "weather",
                        "description": "Says it",
                        "inputSchema": {"json": {"type": "object"}},
                    }
                }
            ],
            "toolChoice": {"tool": {"name": "weather"}},
        },
    }


@pytest.mark.parametrize("streamed", [False, True])
async def test_signed_reasoning_and_calls_go_from_turn_to_turn_and_all_tokens_are_counted(ask, server, streamed):
    server.answer = Said(
        "Let me look.", "Hm hm.", "sig", (CALL,), tokens_in=30, tokens_cached_in=16, tokens_cache_write_in=8
    )
    first = await ask(tools=(WEATHER,), on_delta=(lambda piece: None) if streamed else None)
    assert (first.output, first.reasoning, first.tool_calls) == ("Let me look.", "Hm hm.", (CALL,))
    assert (first.tokens_in, first.tokens_cached_in, first.tokens_cache_write_in) == (30, 16, 8)
    await ask(
        Message("user", "hi"),
        Message("assistant", first.output, tool_calls=first.tool_calls, provider_data=first.provider_data),
        Message("tool", "4 °C", tool_call_id="call_1", name="weather"),
        Message("user", "And?"),
        tools=(WEATHER,),
    )
    assert server.asked[1].body["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": "Hm hm.", "signature": "sig"}}},
                {"text": "Let me look."},
                {"toolUse": {"toolUseId": "call_1", "name": "weather", "input": {"city": "Oslo"}}},
            ],
        },
        {
            "role": "user",
            "content": [{"toolResult": {"toolUseId": "call_1", "content": [{"text": "4 °C"}]}}, {"text": "And?"}],
        },
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"params": {"seed": 1}}, "'seed' has no equivalent at this provider; .*additionalModelRequestFields"),
        ({"params": {"logprobs": True}}, "'logprobs' has no equivalent"),
        ({"params": {"reasoning_effort": "none"}}, "no reasoning effort 'none'; use one of low"),
        ({"params": {"top_k": 1}, "model": "amazon.nova-pro-v1:0"}, "'top_k' has no equivalent"),
        ({"tools": (WEATHER,), "tool_choice": "none"}, "can't be told to call no tool"),
    ],
)
async def test_what_it_would_ignore_is_refused(ask, server, fields, message):
    with pytest.raises(ProviderRejected, match=message):
        await ask(**fields)
    assert not server.asked


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ((Message("user", "a"), Message("system", "b")), "system messages only before all others"),
        ((Message("user", "a", images=("https://127.0.0.1/b.png",)),), "not at a public address"),
        ((Message("user", "a", images=("data:image/tiff;base64,AAAA",)),), "takes no 'image/tiff'"),
    ],
)
async def test_messages_that_it_does_not_take_are_refused(ask, messages, message):
    with pytest.raises(ProviderRejected, match=message):
        await ask(*messages)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("throttlingException", ProviderRateLimited),
        ("validationException", ProviderRejected),
        ("modelStreamErrorException", ProviderUnavailable),
        ("internalServerException", ProviderUnavailable),
    ],
)
async def test_an_exception_in_a_stream_is_the_error_that_it_names(ask, server, code, error):
    delta = event("contentBlockDelta", {"delta": {"text": "a"}, "contentBlockIndex": 0})
    server.answer = Reply(body=delta + event(code, {"message": "it broke"}, message_type="exception"))
    with pytest.raises(error, match="it broke"):
        await ask(timeout=0.5, on_delta=lambda piece: None)


async def test_a_models_own_error_is_tried_again(ask, server):
    server.script.append(Reply(status=424, message="model error"))
    assert (await ask()).attempts == 2


async def test_what_is_missing_is_named(gateways, monkeypatch):
    async def problem(**env: str) -> str:
        return (await gateways(**env).check_models(["bedrock/m"]))[0].problem

    assert "has no credentials; set 'AWS_BEARER_TOKEN_BEDROCK', 'AWS_PROFILE' or" in await problem(AWS_REGION="a-b-1")
    assert "has no region; give it a 'region'" in await problem(AWS_BEARER_TOKEN_BEDROCK="k-1")
    assert await problem(**SIGNED) is None
    monkeypatch.setattr(aws, "find_spec", lambda name: None)
    assert "pip install 'promptlooper[bedrock]'" in await problem(**SIGNED)
    assert await problem(AWS_REGION="eu-west-1", AWS_BEARER_TOKEN_BEDROCK="k-1") is None


@pytest.mark.parametrize(
    ("region", "url"),
    [
        ("eu-west-1", "https://bedrock-runtime.eu-west-1.amazonaws.com"),
        ("cn-north-1", "https://bedrock-runtime.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_addresses_are_those_of_the_region(region, url):
    assert aws.bedrock_base_url(region) == url
    assert aws.region_in(url) == region


async def decoded(data: bytes) -> list[dict[str, Any]]:
    async def parts():
        for byte in data:
            yield bytes([byte])

    return [each async for each in events_of(parts())]


async def test_event_streams_are_read_byte_by_byte_and_checked():
    first, second = event("a", {"x": "€"}), event("b", {})
    assert await decoded(first + second) == [{"x": "€", ":event": "a"}, {":event": "b"}]
    assert await decoded(first + second[:-1]) == [{"x": "€", ":event": "a"}]
    for place in (0, 9, 20, -6):
        broken = bytearray(first)
        broken[place] ^= 1
        with pytest.raises(AttemptFailed, match="wrong checksum"):
            await decoded(bytes(broken))


async def test_event_streams_are_read_as_botocore_reads_them():
    from botocore.eventstream import EventStreamBuffer

    data = event("a", {"x": 1}) + event("b", {"message": "no"}, message_type="exception")
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    theirs = [(message.headers, orjson.loads(message.payload)) for message in buffer]
    assert [headers[":message-type"] for headers, _ in theirs] == ["event", "exception"]
    ours = await decoded(data)
    assert [(ours[0][":event"], ours[0]["x"]), (ours[1]["code"], ours[1]["message"])] == [
        (theirs[0][0][":event-type"], theirs[0][1]["x"]),
        (theirs[1][0][":exception-type"], theirs[1][1]["message"]),
    ]


async def test_tools_that_only_the_conversation_has_are_defined_for_it(ask, server):
    await ask(
        *(Message("user", "?"), Message("assistant", "", tool_calls=(CALL,))),
        *(Message("tool", "rain", tool_call_id=CALL.id, name=CALL.name), Message("user", "So?")),
    )
    assert server.refused == []
    (tool,) = server.asked[0].body["toolConfig"]["tools"]
    assert tool["toolSpec"]["name"] == "weather"


async def test_a_budget_of_no_tokens_switches_reasoning_off(ask, server):
    await ask(params={"reasoning_tokens": 0})
    assert server.asked[0].body["additionalModelRequestFields"] == {"thinking": {"type": "disabled"}}


async def test_ids_of_calls_that_another_provider_gave_are_put_into_its_form(ask, server):
    long = "call_" + "x" * 80
    call = ToolCall(long, "weather", "{}")
    result = Message("tool", "4 °C", tool_call_id=long, name="weather")
    await ask(Message("user", "hi"), Message("assistant", "", tool_calls=(call,)), result, tools=(WEATHER,))
    _, asked, answered = server.asked[0].body["messages"]
    (use,), (said,) = asked["content"], answered["content"]
    assert use["toolUse"]["toolUseId"] == said["toolResult"]["toolUseId"]
    assert len(use["toolUse"]["toolUseId"]) <= 64


async def test_objects_of_a_schema_are_closed_where_it_did_not_say(ask, server):
    await ask(response_schema={"type": "object", "properties": {"a": {"type": "object"}}})
    assert server.refused == []
