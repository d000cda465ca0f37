"""Cost: exact, rounded up, and unknown where it is unknown."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, time
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


def test_ceiling_is_of_the_dearest_tier_and_kind_of_token():
    rate, dearer = Rate(10**15), Rate(10**15, ((200, 3 * 10**15), (100, 2 * 10**15)))
    assert Tariff(dearer, rate).ceiling == Price(3 * 10**9, 10**9)
    assert Tariff(rate, rate, cached_input=dearer, reasoning=Rate(5 * 10**15)).ceiling == Price(3 * 10**9, 5 * 10**9)
    assert Tariff(dearer, rate).price == Price(10**9, 10**9)
    assert Tariff(rate, rate, per_request=1).ceiling is None


def test_ceiling_knows_the_price_of_other_hours_and_days(monkeypatch):
    from genai_prices import types

    from promptlooper.adapter import cost

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2030, 5, 17, 12, 0, tzinfo=UTC)

    def price(usd):
        return ModelPrice(input_mtok=Decimal(usd), output_mtok=Decimal(usd))

    def ceiling(*later):
        prices = Prices({}, "https://api.openai.com/v1")
        conditional = [types.ConditionalPrice(prices=price(1)), *later]
        prices._models["m"] = types.ModelInfo("m", types.ClauseEquals("m"), prices=conditional)
        return prices.ceiling("m")

    monkeypatch.setattr(cost, "datetime", Clock)
    night = types.TimeOfDateConstraint(time(3), time(4))
    soon, far, gone = (types.StartDateConstraint(date(2030, *day)) for day in ((5, 20), (9, 1), (5, 1)))
    assert ceiling() == Price(10**9, 10**9)
    assert ceiling(types.ConditionalPrice(night, prices=price(7))) == Price(7 * 10**9, 7 * 10**9)
    assert ceiling(types.ConditionalPrice(soon, prices=price(6))) == Price(6 * 10**9, 6 * 10**9)
    assert ceiling(types.ConditionalPrice(far, prices=price(6))) == Price(10**9, 10**9)
    assert ceiling(types.ConditionalPrice(gone, prices=price("0.5"))) == Price(5 * 10**8, 5 * 10**8)
    assert ceiling(types.ConditionalPrice(soon, prices=ModelPrice(input_mtok=Decimal(1)))) is None


def test_no_usage_of_any_public_model_costs_more_than_its_ceiling():
    drawn = random.Random(7)
    compared = 0
    for provider in data_snapshot.get_snapshot().providers:
        prices = Prices({}, "known")
        for model in provider.models:
            prices._models[model.id] = model
            ceiling = prices.ceiling(model.id)
            if ceiling is None:
                continue
            for largest in (100, 10**4, 10**5, 10**6, 10**7):
                tokens_in, tokens_out = drawn.randint(0, largest), drawn.randint(0, largest)
                usage = answered(
                    tokens_in,
                    tokens_out,
                    cached=drawn.choice((None, drawn.randint(0, tokens_in))),
                    reasoning=drawn.choice((None, drawn.randint(0, tokens_out))),
                )
                parts = tokens_in * ceiling.input_nanousd_per_mtok + tokens_out * ceiling.output_nanousd_per_mtok
                cost = prices.cost_nanousd(model.id, usage)
                assert cost is not None
                assert cost <= -(-parts // 10**6), (provider.id, model.id, usage)
                compared += 1
    assert compared > 1000


def test_known_models_are_those_with_a_price():
    models = Prices({"mine": FREE, "*": FREE}, "https://api.openai.com/v1").known_models()
    assert "mine" in models
    assert "gpt-4o-mini" in models
    assert "*" not in models
    assert models == sorted(models)
