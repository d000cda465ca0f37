"""Cost: exact, rounded up, and unknown where it is unknown."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction

import pytest
from genai_prices import Usage, data_snapshot
from genai_prices.types import ModelPrice
from hypothesis import given
from hypothesis import strategies as st

from promptlooper.adapter.cost import FREE, Prices, Rate, Tariff, rate_of
from promptlooper.completion import Completion, Price


def answered(tokens_in, tokens_out, *, cached=None, reasoning=None, model="m") -> Completion:
    return Completion("text", model, "stop", tokens_in, tokens_out, tokens_cached_in=cached, tokens_reasoning=reasoning)


def test_cost_of_a_public_model_is_known_to_the_nano_dollar():
    prices = Prices({}, "https://api.openai.com/v1")
    # gpt-4o-mini: 0.15 and 0.60 USD per million tokens, 0.075 for cached ones.
    assert prices.price("gpt-4o-mini") == Price(150_000_000, 600_000_000)
    assert prices.cost_nanousd("gpt-4o-mini", answered(1000, 100)) == 150_000 + 60_000
    assert prices.cost_nanousd("gpt-4o-mini", answered(1000, 100, cached=600)) == 60_000 + 45_000 + 60_000


@pytest.mark.parametrize("api_url", ["https://api.openai.com/v1", "http://127.0.0.1:8000/v1", None])
def test_unknown_price_is_unknown_and_never_zero(api_url):
    prices = Prices({}, api_url)
    assert prices.price("no-such-model-at-all") is None
    assert prices.cost_nanousd("no-such-model-at-all", answered(1, 1, model="neither-this")) is None


def test_public_price_is_not_taken_for_another_address():
    assert Prices({}, "http://127.0.0.1:8000/v1").price("gpt-4o-mini") is None


@pytest.mark.parametrize(("tokens_in", "tokens_out"), [(None, 5), (5, None), (None, None)])
def test_cost_is_unknown_where_the_provider_did_not_count(tokens_in, tokens_out):
    assert FREE.cost_nanousd(answered(tokens_in, tokens_out)) is None


def test_free_is_zero():
    assert (FREE.price, FREE.cost_nanousd(answered(5, 5))) == (Price(0, 0), 0)


def test_operators_prices_go_before_the_public_ones():
    dear = Tariff(rate_of(Decimal(1000)), rate_of(Decimal(2000)))
    prices = Prices({"gpt-4o-mini": dear}, "https://api.openai.com/v1")
    assert prices.price("gpt-4o-mini") == Price(1000 * 10**9, 2000 * 10**9)
    assert prices.price("gpt-4o") == Prices({}, "https://api.openai.com/v1").price("gpt-4o")


def test_star_prices_every_other_model():
    prices = Prices({"a": Tariff(Rate(10**15), Rate(0)), "*": FREE})
    assert (prices.price("a"), prices.price("b")) == (Price(10**9, 0), Price(0, 0))


def test_model_that_answered_is_priced_where_the_one_asked_is_unknown():
    prices = Prices({"small": Tariff(Rate(10**15), Rate(10**15))})
    assert prices.cost_nanousd("auto", answered(10**6, 0, model="small")) == 10**9


def test_part_of_a_nano_dollar_is_rounded_up():
    tariff = Tariff(rate_of(Decimal("0.0001")), rate_of(Decimal(0)))
    assert [tariff.cost_nanousd(answered(n, 0)) for n in (0, 1, 10, 11)] == [0, 1, 1, 2]


def test_price_that_is_no_whole_nano_dollar_is_rounded_up():
    assert Tariff(rate_of(Decimal("1e-10")), rate_of(Decimal("1.5e-9"))).price == Price(1, 2)


def test_whole_prompt_pays_the_price_of_its_tier():
    tariff = Tariff(Rate(10**15, ((200, 2 * 10**15),)), Rate(10**15, ((200, 4 * 10**15),)))
    assert tariff.cost_nanousd(answered(200, 10)) == 210 * 1000
    assert tariff.cost_nanousd(answered(201, 10)) == (201 * 2 + 10 * 4) * 1000


def test_more_cached_tokens_than_tokens_are_not_believed():
    tariff = Tariff(Rate(10**15), Rate(10**15), cached_input=Rate(10**14))
    assert tariff.cost_nanousd(answered(10, 0, cached=99)) == tariff.cost_nanousd(answered(10, 0, cached=10))


@given(
    usd=st.decimals(min_value=0, max_value=1000, places=9),
    tokens_in=st.integers(0, 10**7),
    tokens_out=st.integers(0, 10**7),
)
def test_cost_is_the_exact_sum_rounded_up(usd, tokens_in, tokens_out):
    cost = Tariff(rate_of(usd), rate_of(usd)).cost_nanousd(answered(tokens_in, tokens_out))
    exact = Fraction(usd) * (tokens_in + tokens_out) * 1000
    assert exact <= cost < exact + 1


@pytest.mark.parametrize("provider_id", ["openai", "google", "perplexity", "deepseek", "groq"])
def test_every_public_price_agrees_with_the_price_list_itself(provider_id):
    snapshot = data_snapshot.get_snapshot()
    provider = snapshot.find_provider(None, provider_id, None)
    prices = Prices({}, None)
    now = datetime.now(UTC)
    compared = 0
    for model in provider.models:
        tariff = prices._public_tariff(model)
        price = model.get_prices(now)
        if tariff is None:
            assert price.input_mtok is None or price.output_mtok is None
            continue
        for tokens_in, cached in ((1234, None), (1234, 1000), (300_001, 7)):
            # Their list adds a fee per request by itself.
            usage = Usage(input_tokens=tokens_in, output_tokens=777, cache_read_tokens=cached)
            theirs = ModelPrice(**price.__dict__).calc_price(usage)["total_price"]
            exact = (theirs * 10**9).quantize(Decimal(1), ROUND_CEILING)
            assert tariff.cost_nanousd(answered(tokens_in, 777, cached=cached)) == exact, model.id
            compared += 1
    assert compared


def test_known_models_are_those_with_a_price():
    models = Prices({"mine": FREE, "*": FREE}, "https://api.openai.com/v1").known_models()
    assert "mine" in models
    assert "gpt-4o-mini" in models
    assert "*" not in models
    assert models == sorted(models)
