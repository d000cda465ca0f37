"""Cost: exact, rounded up, and unknown where it is unknown."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction

import pytest
from genai_prices import data_snapshot
from genai_prices.types import ModelPrice
from hypothesis import given
from hypothesis import strategies as st

from promptlooper.adapter.cost import UNKNOWN, Dated, Prices, checked
from promptlooper.adapter.tariff import FREE, Billed, BilledCompletion, Rate, Tariff, rate_of
from promptlooper.completion import Completion, ModelCheck, Price

OPENAI = "https://api.openai.com/v1"


def answered(tokens_in, tokens_out, *, cached=None, reasoning=None, model="m") -> Completion:
    return Completion("text", model, "stop", tokens_in, tokens_out, tokens_cached_in=cached, tokens_reasoning=reasoning)


def always(**tariffs: Tariff) -> dict[str, list[Dated]]:
    return {name: [Dated(tariff)] for name, tariff in tariffs.items()}


def price_of(prices: Prices, model: str) -> Price | None:
    tariff = prices.tariff(model)
    return None if tariff is None else tariff.price


def nanousd_of(prices: Prices, model: str, completion: Completion) -> int | None:
    return prices.cost(model, completion).nanousd


def test_cost_of_a_public_model_is_known_to_the_nano_dollar():
    prices = Prices({}, OPENAI)
    # gpt-4o-mini: 0.15 and 0.60 USD per million tokens, 0.075 for cached ones.
    assert price_of(prices, "gpt-4o-mini") == Price(150_000_000, 600_000_000)
    assert nanousd_of(prices, "gpt-4o-mini", answered(1000, 100)) == 150_000 + 60_000
    assert nanousd_of(prices, "gpt-4o-mini", answered(1000, 100, cached=600)) == 60_000 + 45_000 + 60_000


@pytest.mark.parametrize("api_url", ["https://api.openai.com/v1", "http://127.0.0.1:8000/v1", None])
def test_unknown_price_is_unknown_and_never_zero(api_url):
    prices = Prices({}, api_url)
    assert price_of(prices, "no-such-model-at-all") is None
    assert nanousd_of(prices, "no-such-model-at-all", answered(1, 1, model="neither-this")) is None


def test_public_price_is_not_taken_for_another_address():
    assert Prices({}, "http://127.0.0.1:8000/v1").tariff("gpt-4o-mini") is None


@pytest.mark.parametrize(("tokens_in", "tokens_out"), [(None, 5), (5, None), (None, None)])
def test_cost_is_unknown_where_the_provider_did_not_count(tokens_in, tokens_out):
    assert FREE.cost_nanousd(answered(tokens_in, tokens_out)) is None
    assert Prices(always(m=FREE)).cost("m", answered(tokens_in, tokens_out)) == UNKNOWN


def test_free_is_zero():
    assert (FREE.price, FREE.cost_nanousd(answered(5, 5))) == (Price(0, 0), 0)


def test_operators_prices_go_before_the_public_ones():
    dear = Tariff(rate_of(Decimal(1000)), rate_of(Decimal(2000)))
    prices = Prices({"gpt-4o-mini": [Dated(dear)]}, OPENAI)
    assert price_of(prices, "gpt-4o-mini") == Price(1000 * 10**9, 2000 * 10**9)
    assert price_of(prices, "gpt-4o") == price_of(Prices({}, OPENAI), "gpt-4o")


def test_star_prices_every_other_model():
    prices = Prices({**always(a=Tariff(Rate(10**15), Rate(0))), "*": [Dated(FREE)]})
    assert (price_of(prices, "a"), price_of(prices, "b")) == (Price(10**9, 0), Price(0, 0))


def test_model_that_answered_is_priced_where_the_one_asked_is_unknown():
    prices = Prices(always(small=Tariff(Rate(10**15), Rate(10**15))))
    assert nanousd_of(prices, "auto", answered(10**6, 0, model="small")) == 10**9


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


def test_ceiling_is_of_the_dearest_tier_and_kind_of_token():
    rate, dearer = Rate(10**15), Rate(10**15, ((200, 3 * 10**15), (100, 2 * 10**15)))
    assert Tariff(dearer, rate).ceiling == Price(3 * 10**9, 10**9)
    assert Tariff(rate, rate, cached_input=dearer, reasoning=Rate(5 * 10**15)).ceiling == Price(3 * 10**9, 5 * 10**9)
    assert Tariff(dearer, rate).price == Price(10**9, 10**9)
    assert Tariff(rate, rate, per_request=10**12 + 1).ceiling == Price(10**9, 10**9, 2)
    assert Tariff(rate, rate, image_output=dearer, cache_write_1h=dearer).ceiling == Price(3 * 10**9, 3 * 10**9)


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
        prices = Prices({}, OPENAI)
        conditional = [types.ConditionalPrice(prices=price(1)), *later]
        prices._public._models["m"] = types.ModelInfo("m", types.ClauseEquals("m"), prices=conditional)
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
            prices._public._models[model.id] = model
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
                cost = nanousd_of(prices, model.id, usage)
                assert cost is not None
                assert cost <= -(-parts // 10**6) + ceiling.request_nanousd, (provider.id, model.id, usage)
                compared += 1
    assert compared > 1000


def test_known_models_are_those_with_a_price():
    models = Prices({**always(mine=FREE), "*": [Dated(FREE)]}, OPENAI).known_models()
    assert "mine" in models
    assert "gpt-4o-mini" in models
    assert "*" not in models
    assert models == sorted(models)


def told(prices: Prices, model: str) -> ModelCheck:
    return checked(f"p/{model}", "", [(prices, model)])


def test_check_tells_the_list_price_its_version_and_the_ceiling():
    dearer = Tariff(Rate(10**15), Rate(10**15), cache_write=Rate(2 * 10**15), version="list 7")
    check = told(Prices(always(m=dearer)), "m")
    assert (check.price, check.list_price) == (Price(2 * 10**9, 10**9), Price(10**9, 10**9))
    assert (check.price_version, check.price_unknown) == ("list 7", False)
    check = told(Prices(always(m=dearer)), "n")
    assert (check.price, check.list_price, check.price_version, check.price_unknown) == (None, None, "", True)


def test_unknown_price_is_reserved_by_the_configured_ceiling_and_stays_unknown():
    prices = Prices({}, OPENAI, unknown=Price(30 * 10**9, 150 * 10**9))
    check = told(prices, "no-such-model-at-all")
    assert (check.price, check.list_price, check.price_unknown) == (Price(30 * 10**9, 150 * 10**9), None, True)
    assert prices.cost("no-such-model-at-all", answered(1, 1, model="neither-this")) == UNKNOWN
    known = told(prices, "gpt-4o-mini")
    assert known.price is not None
    assert known.price.input_nanousd_per_mtok < 10**9


def test_model_that_only_embeds_has_a_price_for_what_goes_in():
    prices = Prices({}, OPENAI)
    assert nanousd_of(prices, "text-embedding-3-small", answered(1_000_000, 0)) == 20_000_000
    assert nanousd_of(prices, "text-embedding-3-small", answered(10, 1)) is None
    assert prices.ceiling("text-embedding-3-small") is None
    assert "text-embedding-3-small" not in prices.known_models()


@pytest.mark.parametrize(
    ("counts", "apart"),
    [
        ({"tokens_cached_in": 8, "tokens_cache_write_in": 3}, Billed()),
        ({"tokens_cached_in": 1}, Billed(tokens_cached_image_in=2)),
        ({"tokens_cache_write_in": 1}, Billed(tokens_cache_write_1h_in=2)),
    ],
)
def test_parts_that_are_more_than_the_whole_have_no_price(counts, apart):
    rate = Rate(10**15)
    tariff = Tariff(rate, rate, cached_input=rate, cache_write=rate, cached_image_input=rate)
    assert tariff.cost_nanousd(BilledCompletion("", "m", "stop", 10, 0, **counts, billed=apart)) is None


def test_operators_price_holds_from_a_day_on_and_until_another(monkeypatch):
    from promptlooper.adapter import cost

    class Clock(datetime):
        now_ = datetime(2030, 5, 1, tzinfo=UTC)

        @classmethod
        def now(cls, tz=None):
            return cls.now_

    def flat(rate: int) -> Tariff:
        return Tariff(Rate(rate * 10**15), Rate(rate * 10**15))

    monkeypatch.setattr(cost, "datetime", Clock)
    first, second, end = (datetime(2030, *day, tzinfo=UTC) for day in ((5, 10), (6, 1), (6, 20)))
    own = {"m": [Dated(flat(1), first, second), Dated(flat(2), second, end)]}
    prices = Prices(own, unknown=Price(9 * 10**9, 9 * 10**9))
    seen = []
    for day in ((5, 9), (5, 10), (5, 31), (6, 1), (6, 19), (6, 20)):
        Clock.now_ = datetime(2030, *day, tzinfo=UTC)
        cost_, ceiling = prices.cost("m", answered(10**6, 0)).nanousd, prices.ceiling("m")
        seen.append((cost_ and cost_ // 10**9, ceiling and ceiling.input_nanousd_per_mtok // 10**9))
    # The ceiling sees a month ahead: the dearer price to come, and the time when nobody knows one.
    assert seen == [(None, 9), (1, 2), (1, 9), (2, 9), (2, 9), (None, 9)]
    with_rest = Prices({**own, "*": [Dated(flat(3))]})
    Clock.now_ = end
    assert price_of(with_rest, "m") == Price(3 * 10**9, 3 * 10**9)
