"""What each wire format says of an answer's usage costs what the price list's own reader makes of the same bytes."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import Any

import genai_prices
import orjson
import pytest

from promptlooper.adapter.cost import UNKNOWN, Prices
from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers import quirks
from promptlooper.adapter.providers.anthropic import AnthropicMessages
from promptlooper.adapter.providers.bedrock import BedrockConverse
from promptlooper.adapter.providers.gemini import GeminiGenerateContent
from promptlooper.adapter.providers.openai import OpenAIChat
from promptlooper.adapter.providers.responses import OpenAIResponses
from promptlooper.adapter.tariff import billed

OPENAI, ANTHROPIC, GOOGLE, AWS = (
    "https://api.openai.com/v1",
    "https://api.anthropic.com/v1",
    "https://generativelanguage.googleapis.com/v1beta",
    "https://bedrock-runtime.eu-central-1.amazonaws.com",
)
DIALECTS: dict[str, tuple[Any, str, str]] = {  # and the price list's reader
    "chat": (OpenAIChat(quirks.named("openai")), OPENAI, "chat"),
    "responses": (OpenAIResponses(), OPENAI, "responses"),
    "anthropic": (AnthropicMessages(ANTHROPIC), ANTHROPIC, "default"),
    "gemini": (GeminiGenerateContent(GOOGLE), GOOGLE, "default"),
    "bedrock": (BedrockConverse(), AWS, "default"),
}


def chat(usage: dict[str, Any], **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
    return {"model": "gpt-5.6-sol", "choices": [choice], "usage": usage, **more}


def response(usage: dict[str, Any], **more: Any) -> dict[str, Any]:
    said = {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}
    return {"model": "gpt-5.6-sol", "status": "completed", "output": [said], "usage": usage, **more}


def message(usage: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": "hi"}]
    return {"model": "claude-sonnet-4-5", "content": content, "stop_reason": "end_turn", "usage": usage}


def generated(usage: dict[str, Any], model: str = "gemini-2.5-flash") -> dict[str, Any]:
    candidate = {"content": {"parts": [{"text": "hi"}]}, "finishReason": "STOP"}
    return {"modelVersion": model, "candidates": [candidate], "usageMetadata": usage}


def conversed(usage: dict[str, Any], **more: Any) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": [{"text": "hi"}]}}
    return {"output": said, "stopReason": "end_turn", "usage": usage, **more}


CACHED = {"cached_tokens": 700, "cache_write_tokens": 200}
WRITTEN = {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 200}
BODIES = [
    ("chat", chat({"prompt_tokens": 1_000, "completion_tokens": 50, "prompt_tokens_details": CACHED})),
    ("responses", response({"input_tokens": 1_000, "output_tokens": 50, "input_tokens_details": CACHED})),
    (
        "anthropic",
        message(
            {
                **{"input_tokens": 10, "output_tokens": 50, "cache_read_input_tokens": 250_000},
                **{"cache_creation_input_tokens": 500, "cache_creation": WRITTEN},
            }
        ),
    ),
    (
        "gemini",
        generated(
            {
                **{"promptTokenCount": 1_000, "candidatesTokenCount": 50, "thoughtsTokenCount": 30},
                **{"cachedContentTokenCount": 400, "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 300}]},
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 400},
                    {"modality": "AUDIO", "tokenCount": 500},
                    {"modality": "IMAGE", "tokenCount": 100},
                ],
            }
        ),
    ),
    (
        "gemini",
        generated(
            {
                **{"promptTokenCount": 1_000, "candidatesTokenCount": 1_500},
                "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1_290}],
            },
            "gemini-3-pro-image-preview",
        ),
    ),
]


CLAUDE = "global.anthropic.claude-sonnet-4-5-20250929-v1:0"
CONVERSED = {
    **{"inputTokens": 10, "outputTokens": 50, "cacheReadInputTokens": 1_000, "cacheWriteInputTokens": 500},
    "cacheDetails": [{"ttl": "5m", "inputTokens": 300}, {"ttl": "1h", "inputTokens": 200}],
}


def nanousd(dollars: Decimal) -> int:
    return int((dollars * 10**9).quantize(Decimal(1), ROUND_CEILING))


@pytest.mark.parametrize(("wire", "body"), BODIES)
def test_cost_of_the_bytes_is_what_the_price_list_reads_out_of_them(wire, body):
    dialect, url, flavor = DIALECTS[wire]
    completion = dialect.completion(orjson.dumps(body), "m", 1)
    read = genai_prices.extract_usage(body, provider_api_url=url, api_flavor=flavor)
    assert Prices({}, url).cost(completion.model, completion).nanousd == nanousd(read.calc_price().total_price)


def test_lasting_cache_writes_at_bedrock_cost_what_the_price_list_reads_out_of_them():
    completion = DIALECTS["bedrock"][0].completion(orjson.dumps(conversed(CONVERSED)), CLAUDE, 1)
    read = genai_prices.extract_usage({**conversed(CONVERSED), "model": CLAUDE}, provider_api_url=AWS)
    assert Prices({}, AWS).cost(CLAUDE, completion).nanousd == nanousd(read.calc_price().total_price)


@pytest.mark.parametrize("tier", ["flex", "priority"])
@pytest.mark.parametrize("wire", ["chat", "responses", "stream"])
def test_service_tier_that_the_answer_names_has_its_price(wire, tier):
    counts = {"prompt_tokens": 100, "completion_tokens": 5}
    if wire == "stream":
        dialect = DIALECTS["chat"][0]
        gathered = dialect.gathering(Heard(None))
        gathered.add({"model": "gpt-5", "choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]})
        gathered.add({"model": "gpt-5", "choices": [], "usage": counts, "service_tier": tier})
        completion = dialect.completion(gathered.body(), "gpt-5", 1)
    elif wire == "chat":
        completion = DIALECTS[wire][0].completion(orjson.dumps(chat(counts, service_tier=tier)), "gpt-5", 1)
    else:
        counts = {"input_tokens": 100, "output_tokens": 5}
        completion = DIALECTS[wire][0].completion(orjson.dumps(response(counts, service_tier=tier)), "gpt-5", 1)
    usage = genai_prices.Usage(input_tokens=100, output_tokens=5)
    context = {"service_tier": tier}
    expected = genai_prices.calc_price(usage, "gpt-5", provider_api_url=OPENAI, price_context=context).total_price
    assert Prices({}, OPENAI).cost("gpt-5", completion).nanousd == nanousd(expected)


@pytest.mark.parametrize(
    ("said", "terms"),
    [
        ({"service_tier": "standard"}, ()),
        ({"service_tier": "priority"}, (("service_tier", "priority"),)),  # by contract: nobody knows
        ({"speed": "fast"}, (("speed", "fast"),)),
        ({"speed": "standard"}, ()),
    ],
)
def test_terms_of_anthropic_are_told(said, terms):
    body = orjson.dumps(message({"input_tokens": 10, "output_tokens": 5, **said}))
    completion = AnthropicMessages(ANTHROPIC).completion(body, "claude-opus-5", 1)
    assert billed(completion).terms == terms
    cost = Prices({}, ANTHROPIC).cost("claude-opus-5", completion)
    assert (cost == UNKNOWN) is (terms == (("service_tier", "priority"),))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("said", "terms"),
    [
        ({"serviceTier": {"type": "default"}}, ()),
        ({"serviceTier": {"type": "priority"}}, (("service_tier", "priority"),)),
        ({"performanceConfig": {"latency": "optimized"}}, (("latency", "optimized"),)),
        ({"performanceConfig": {"latency": "standard"}}, ()),
    ],
)
def test_terms_of_bedrock_are_told(said, terms, streamed):
    dialect = DIALECTS["bedrock"][0]
    body = orjson.dumps(conversed(CONVERSED, **said))
    if streamed:
        gathered = dialect.gathering(Heard(None))
        gathered.add({":event": "contentBlockDelta", "contentBlockIndex": 0, "delta": {"text": "hi"}})
        gathered.add({":event": "messageStop", "stopReason": "end_turn"})
        gathered.add({":event": "metadata", "usage": CONVERSED, **said})
        body = gathered.body()
    completion = dialect.completion(body, CLAUDE, 1)
    assert billed(completion).terms == terms
    assert billed(completion).tokens_cache_write_1h_in == 200


def test_deployment_costs_what_the_model_does_that_answers():
    url = "https://mine.openai.azure.com/openai/v1"
    completion = DIALECTS["chat"][0].completion(
        orjson.dumps({**chat({"prompt_tokens": 10**6, "completion_tokens": 0}), "model": "gpt-4o-mini-2024-07-18"}),
        "gpt-4",
        1,
    )
    assert Prices({}, url, renames=True).cost("gpt-4", completion).nanousd == 150_000_000
    assert Prices({}, url).cost("gpt-4", completion).nanousd != 150_000_000
