"""Costs against the price list's own arithmetic, called by its public API."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal

import genai_prices
import pytest
from genai_prices import Usage, data_snapshot

from promptlooper.adapter.cost import Prices
from promptlooper.adapter.public_prices import MOST_MODELS, PublicPrices
from promptlooper.adapter.tariff import Billed, BilledCompletion
from promptlooper.completion import Completion

OPENAI, ANTHROPIC, AWS = "https://api.openai.com/v1", "https://api.anthropic.com/v1", "us-east-1.amazonaws.com"
GOOGLE, MISTRAL = "https://generativelanguage.googleapis.com/v1beta", "https://api.mistral.ai/v1"
MODELS = [
    (OPENAI, "gpt-4o-mini"),
    (OPENAI, "gpt-4.1"),
    (OPENAI, "gpt-5"),
    (OPENAI, "gpt-5.4"),  # dearer above 272,000 tokens
    (OPENAI, "o4-mini"),
    (OPENAI, "gpt-realtime"),  # audio and images apart
    (ANTHROPIC, "claude-haiku-4-5"),
    (ANTHROPIC, "claude-sonnet-4-5"),  # cache writes of two kinds, dearer above 200,000 tokens
    (ANTHROPIC, "claude-opus-4-6"),  # cheaper from a day on
    (GOOGLE, "gemini-2.5-flash"),
    (GOOGLE, "gemini-2.5-pro"),
    (GOOGLE, "gemini-3-pro-image-preview"),
    (MISTRAL, "mistral-large-2512"),
    (MISTRAL, "mistral-small-2603"),
    ("https://api.deepseek.com/v1", "deepseek-chat"),  # by the hour
    ("https://api.deepseek.com/v1", "deepseek-reasoner"),
    ("https://api.groq.com/openai/v1", "llama-3.3-70b-versatile"),
    ("https://api.groq.com/openai/v1", "openai/gpt-oss-120b"),
    (f"https://bedrock-runtime.{AWS}", "amazon.nova-pro-v1:0"),
    (f"https://bedrock-runtime.{AWS}", "global.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ("https://api.perplexity.ai", "sonar-pro"),  # a fee per request
    ("https://api.perplexity.ai", "sonar-deep-research"),  # reasoning apart
    ("https://api.x.ai/v1", "grok-4-0709"),
    ("https://openrouter.ai/api/v1", "anthropic/claude-opus-4.5"),
    (OPENAI, "text-embedding-3-small"),
]
# What an answer counted, in our words and in theirs.
PLAIN = [
    (Completion("", "m", "stop", 1_234, 777), {"input_tokens": 1_234, "output_tokens": 777}),
    (
        Completion("", "m", "stop", 1_234, 777, tokens_reasoning=700, tokens_cached_in=1_000),
        {"input_tokens": 1_234, "output_tokens": 777, "cache_read_tokens": 1_000, "output_reasoning_tokens": 700},
    ),
    (
        Completion("", "m", "stop", 300_001, 9, tokens_cached_in=200_000, tokens_cache_write_in=50_000),
        {
            **{"input_tokens": 300_001, "output_tokens": 9},
            **{"cache_read_tokens": 200_000, "cache_write_tokens": 50_000},
        },
    ),
]
APART = [
    (
        Billed(tokens_cache_write_1h_in=300, tokens_image_in=200, tokens_audio_in=100),
        {
            **{"cache_write_1h_tokens": 300, "input_image_tokens": 200, "input_audio_tokens": 100},
            **{"cache_image_read_tokens": 0, "cache_audio_read_tokens": 0},
        },
    ),
    (
        Billed(
            tokens_image_in=200,
            tokens_audio_in=100,
            tokens_cached_image_in=150,
            tokens_cached_audio_in=50,
            tokens_image_out=30,
            tokens_audio_out=40,
        ),
        {
            **{"input_image_tokens": 200, "input_audio_tokens": 100, "cache_image_read_tokens": 150},
            **{"cache_audio_read_tokens": 50, "output_image_tokens": 30, "output_audio_tokens": 40},
        },
    ),
]


def billed(apart: Billed) -> BilledCompletion:
    counts = {"tokens_reasoning": 20, "tokens_cached_in": 250, "tokens_cache_write_in": 400}
    return BilledCompletion("", "m", "stop", 2_000, 500, **counts, billed=apart)


CASES = [*PLAIN, *((billed(apart), words) for apart, words in APART)]
COUNTS = {
    **{"input_tokens": 2_000, "output_tokens": 500, "output_reasoning_tokens": 20},
    **{"cache_read_tokens": 250, "cache_write_tokens": 400},
}


def theirs(url: str, model: str, words: dict[str, int], **context: str) -> Decimal:
    usage = Usage(**(words if "input_tokens" in words else COUNTS | words))
    return genai_prices.calc_price(usage, model, provider_api_url=url, price_context=context or None).total_price


@pytest.mark.parametrize(("url", "model"), MODELS)
def test_cost_is_to_the_nano_dollar_what_the_price_list_says(url, model):
    prices = Prices({}, url)
    for completion, words in CASES:
        if "embedding" in model:
            completion = Completion("", model, "stop", completion.tokens_in, 0)
            words = {"input_tokens": completion.tokens_in}
        cost, expected = prices.cost(model, completion), theirs(url, model, words)
        assert cost.version == f"genai-prices {genai_prices.__version__}"
        assert cost.nanousd == (expected * 10**9).quantize(Decimal(1), ROUND_CEILING), words
        assert type(cost.nanousd) is int
        assert round(cost.nanousd / 1e3) == round(expected * 10**6), words


@pytest.mark.parametrize(
    ("url", "model", "terms"),
    [
        (OPENAI, "gpt-5", {"service_tier": "flex"}),
        (OPENAI, "gpt-5", {"service_tier": "priority"}),
        (OPENAI, "gpt-5", {"processing": "batch"}),
        (ANTHROPIC, "claude-haiku-4-5", {"processing": "batch"}),
        (GOOGLE, "gemini-2.5-flash", {"processing": "batch"}),
    ],
)
def test_terms_of_a_call_have_their_own_price(url, model, terms):
    completion, words = PLAIN[1]
    under = BilledCompletion(
        **{name: getattr(completion, name) for name in Completion.__dataclass_fields__},
        billed=Billed(terms=tuple(terms.items())),
    )
    cost = Prices({}, url).cost(model, under).nanousd
    assert cost == (theirs(url, model, words, **terms) * 10**9).quantize(Decimal(1), ROUND_CEILING)
    assert cost != Prices({}, url).cost(model, completion).nanousd


def test_terms_that_the_list_does_not_know_have_no_price():
    rush = Billed(terms=(("service_tier", "rush"),))
    answer = BilledCompletion("", "gpt-5", "stop", 10, 10, billed=rush)
    assert Prices({}, OPENAI).cost("gpt-5", answer).nanousd is None


def test_every_text_price_of_the_list_agrees():
    compared = 0
    now = datetime.now(UTC)
    for provider in data_snapshot.get_snapshot().providers:
        prices = Prices({}, "known")
        for model in provider.models:
            prices._public._models[model.id] = model
            for completion, words in CASES:
                cost = prices.cost(model.id, completion).nanousd
                if cost is None:
                    continue
                usage = Usage(**(words if "input_tokens" in words else COUNTS | words))
                with warnings.catch_warnings(action="ignore"):
                    exact = model.calc_price(usage, provider, genai_request_timestamp=now).total_price
                assert cost == (exact * 10**9).quantize(Decimal(1), ROUND_CEILING), (provider.id, model.id, words)
                compared += 1
    assert compared > 5_000


def test_names_that_callers_make_up_are_not_kept_for_ever():
    prices = PublicPrices(MISTRAL)
    now = datetime.now(UTC)
    assert not any(prices.tariff(f"made-up-{n}", now) for n in range(MOST_MODELS + 10))
    assert len(prices._models) <= MOST_MODELS
    assert prices.tariff("mistral-large-2512", now)
