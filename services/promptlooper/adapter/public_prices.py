"""The public price list that is installed with PromptLooper (genai-prices), as tariffs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeAlias

from promptlooper.adapter.tariff import Rate, Tariff, rate_of, rounded_rate, units_per_request

if TYPE_CHECKING:
    from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, TieredPrices

Terms: TypeAlias = tuple[tuple[str, str], ...]
MOST_MODELS = 1_000  # that are kept in mind: callers may name any
_KINDS = {  # of tokens: our name, theirs
    "input": "input_mtok",
    "output": "output_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "image_input": "input_image_mtok",
    "audio_input": "input_audio_mtok",
    "cached_image_input": "cache_image_read_mtok",
    "cached_audio_input": "cache_audio_read_mtok",
    "reasoning": "output_reasoning_mtok",
    "image_output": "output_image_mtok",
    "audio_output": "output_audio_mtok",
}


class PublicPrices:
    """The prices at one address. Reads the list when a price is asked for: 0.16 s that not everyone needs."""

    def __init__(self, api_url: str) -> None:
        self._api_url = api_url
        self._models: dict[str, ModelInfo | None] = {}
        self._tariffs: dict[int, tuple[ModelPrice, Tariff | None]] = {}  # by identity; the price is kept alive with it

    def tariff(self, model: str, now: datetime, terms: Terms = ()) -> Tariff | None:
        """The price of a model under the terms of a call. None where it is not on the list, or not under such terms."""
        info = self._model(model)
        if info is None:
            return None
        if not terms:
            return self._tariff_of(_standard(info, now))
        when = dict(terms)
        variants = info.price_variants or ()
        if not any(v.when == when and (v.constraint is None or v.constraint.active(now)) for v in variants):
            return None
        return tariff_of(info.get_prices(now, when))

    def tariffs(self, model: str, now: datetime, until: datetime) -> Iterator[Tariff | None]:
        """Every price of a model in a span of time, under whatever terms."""
        info = self._model(model)
        if info is None:
            yield None
            return
        for moment in _changes(info, now, until):
            yield self._tariff_of(_standard(info, moment))
            for variant in info.price_variants or ():
                if variant.constraint is None or variant.constraint.active(moment):
                    yield tariff_of(info.get_prices(moment, variant.when))

    def known_models(self, now: datetime) -> list[str]:
        """Those that answer for a price, and are not retired."""
        from genai_prices import data_snapshot

        try:
            provider = data_snapshot.get_snapshot().find_provider(None, None, self._api_url)
        except LookupError:
            return []
        models = [info for info in provider.models if not info.deprecated]
        return [info.id for info in models if (found := self._tariff_of(_standard(info, now))) and found.output]

    def _model(self, model: str) -> ModelInfo | None:
        if model not in self._models:
            if len(self._models) >= MOST_MODELS:
                self._models.clear()
            self._models[model] = _found(model, self._api_url)
        return self._models[model]

    def _tariff_of(self, price: ModelPrice) -> Tariff | None:
        known = self._tariffs.get(id(price))
        if known is None:
            known = self._tariffs[id(price)] = (price, tariff_of(price))
        return known[1]


def _found(model: str, api_url: str) -> ModelInfo | None:
    from genai_prices import data_snapshot

    try:
        return data_snapshot.get_snapshot().find_provider_model(model, None, None, api_url)[1]
    except LookupError:
        return None


def _standard(info: ModelInfo, now: datetime) -> ModelPrice:
    """Some prices change with the date or the time of day."""
    return info.get_prices(now) if isinstance(info.prices, list) else info.prices


def _changes(info: ModelInfo, now: datetime, until: datetime) -> list[datetime]:
    """Now, and every moment until then when a price may change."""
    from genai_prices.types import StartDateConstraint, TimeOfDateConstraint

    prices: Sequence[ConditionalPrice] = info.prices if isinstance(info.prices, list) else ()
    days, times = {now.date(), now.date() + timedelta(1)}, {time(), now.time()}
    for constraint in [price.constraint for price in (*prices, *(info.price_variants or ()))]:
        if isinstance(constraint, StartDateConstraint):
            days.add(constraint.start_date)
        elif isinstance(constraint, TimeOfDateConstraint):
            times |= {constraint.start_time, constraint.end_time}
    moments = (datetime.combine(day, at, at.tzinfo or UTC).astimezone(UTC) for day in days for at in times)
    return [now, *(moment for moment in moments if now < moment <= until)]


def tariff_of(price: ModelPrice) -> Tariff | None:
    """None where it is not the tokens that go in which are paid for (speech by the hour, letters, pages)."""
    rates = {ours: _rate(paid) for ours, theirs in _KINDS.items() if (paid := getattr(price, theirs)) is not None}
    if (plain := rates.pop("input", None)) is None:
        return None
    fee = price.requests_kcount  # USD for a thousand requests
    per_request = units_per_request(fee / 1000) if isinstance(fee, Decimal) else 0
    return Tariff(plain, per_request=per_request, version=_list_version(), **rates)


@cache
def _list_version() -> str:
    return f"genai-prices {version('genai-prices')}"


def _rate(price: Decimal | TieredPrices) -> Rate:
    if isinstance(price, Decimal):
        return rate_of(price)
    tiers = tuple((tier.start, rounded_rate(tier.price)) for tier in reversed(price.tiers))
    return Rate(rounded_rate(price.base), tiers)
