"""What an answer costs: exact integer nano-USD, rounded up so that a budget holds; None where the price is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from promptlooper.completion import Completion, Price

if TYPE_CHECKING:
    from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, TieredPrices

# A rate is an integer number of 1e-15 USD per million tokens: fine enough that the sums below are exact. Then
# tokens x rate is in units of 1e-21 USD, of which a nano-USD has 1e12.
_RATES_PER_USD = 10**15
_UNITS_PER_NANOUSD = 10**12
_RATES_PER_NANOUSD = 10**6
_LONGEST_EXPERIMENT = timedelta(31)  # prices are asked for once, before its first call


@dataclass(frozen=True, slots=True)
class Rate:
    """USD per million tokens, in 1e-15; dearer as a whole where the prompt has more tokens than a tier's start."""

    base: int
    tiers: tuple[tuple[int, int], ...] = ()  # (start, rate), highest start first

    def at(self, tokens_in: int) -> int:
        return next((rate for start, rate in self.tiers if tokens_in > start), self.base)

    @property
    def dearest(self) -> int:
        return max(self.base, *(rate for _, rate in self.tiers)) if self.tiers else self.base


@dataclass(frozen=True, slots=True)
class Tariff:
    """All rates of one model that a text completion can meet."""

    input: Rate
    output: Rate
    cached_input: Rate | None = None  # None: as input
    reasoning: Rate | None = None  # None: as output
    per_request: int = 0  # in 1e-21 USD

    @property
    def price(self) -> Price:
        """As shown: base rates, rounded up."""
        return _price(self.input.base, max(self.output.base, self.reasoning.base if self.reasoning else 0))

    @property
    def ceiling(self) -> Price | None:
        """As reserved: no answer costs more, whatever its tier and kinds of tokens. None where there is a fee per call,
        which no price per token bounds."""
        if self.per_request:
            return None
        return _price(
            max(self.input.dearest, self.cached_input.dearest if self.cached_input else 0),
            max(self.output.dearest, self.reasoning.dearest if self.reasoning else 0),
        )

    def cost_nanousd(self, completion: Completion) -> int | None:
        """None where the provider did not say how many tokens it counted."""
        tokens_in, tokens_out = completion.tokens_in, completion.tokens_out
        if tokens_in is None or tokens_out is None:
            return None
        cached = min(completion.tokens_cached_in or 0, tokens_in) if self.cached_input else 0
        reasoning = min(completion.tokens_reasoning or 0, tokens_out) if self.reasoning else 0
        units = (tokens_in - cached) * self.input.at(tokens_in) + (tokens_out - reasoning) * self.output.at(tokens_in)
        if cached and self.cached_input:
            units += cached * self.cached_input.at(tokens_in)
        if reasoning and self.reasoning:
            units += reasoning * self.reasoning.at(tokens_in)
        return -(-(units + self.per_request) // _UNITS_PER_NANOUSD)


def _price(input_rate: int, output_rate: int) -> Price:
    return Price(-(-input_rate // _RATES_PER_NANOUSD), -(-output_rate // _RATES_PER_NANOUSD))


def rate_of(usd_per_mtok: Decimal) -> Rate:
    return Rate(_rounded_up(usd_per_mtok))


def _rounded_up(usd_per_mtok: Decimal) -> int:
    numerator, denominator = usd_per_mtok.as_integer_ratio()
    return -(-numerator * _RATES_PER_USD // denominator)


FREE = Tariff(Rate(0), Rate(0))


class Prices:
    """The prices of one provider: what the operator set (`*` for every model), then the public list of its address."""

    def __init__(self, own: Mapping[str, Tariff], api_url: str | None = None) -> None:
        self._own = own
        self._api_url = api_url  # None: not on the public list
        self._models: dict[str, ModelInfo | None] = {}
        self._tariffs: dict[int, tuple[ModelPrice, Tariff | None]] = {}  # by identity; the price is kept alive with it

    def tariff(self, model: str) -> Tariff | None:
        own = self._own.get(model) or self._own.get("*")
        if own is not None or self._api_url is None:
            return own
        if model not in self._models:
            self._models[model] = _public_model(model, self._api_url)
        info = self._models[model]
        return None if info is None else self._public_tariff(info)

    def _public_tariff(self, info: ModelInfo) -> Tariff | None:
        # Some prices change with the date or the time of day: the list is asked anew for these.
        return self._tariff_of(info.get_prices(datetime.now(UTC)) if isinstance(info.prices, list) else info.prices)

    def _tariff_of(self, price: ModelPrice) -> Tariff | None:
        known = self._tariffs.get(id(price))
        if known is None:
            known = self._tariffs[id(price)] = (price, _tariff_of(price))
        return known[1]

    def price(self, model: str) -> Price | None:
        tariff = self.tariff(model)
        return None if tariff is None else tariff.price

    def ceiling(self, model: str) -> Price | None:
        """No answer costs more during the next month. None where the price is unknown or not by tokens alone."""
        own = self.tariff(model)
        info = self._models.get(model)  # known since tariff() asked for it
        tariffs = [own]
        if info is not None and isinstance(info.prices, list):
            tariffs = [self._tariff_of(info.get_prices(moment)) for moment in _changes(info.prices, datetime.now(UTC))]
        found = [tariff.ceiling if tariff else None for tariff in tariffs]
        prices = [price for price in found if price is not None]
        if not prices or len(prices) < len(found):
            return None
        return Price(
            max(price.input_nanousd_per_mtok for price in prices),
            max(price.output_nanousd_per_mtok for price in prices),
        )

    def cost_nanousd(self, model: str, completion: Completion) -> int | None:
        """By the model that was asked; by the one that answered where only that is known (a router's choice)."""
        tariff = self.tariff(model) or (self.tariff(completion.model) if completion.model != model else None)
        return None if tariff is None else tariff.cost_nanousd(completion)

    def known_models(self) -> list[str]:
        """Models with a price, sorted; of the public list those that are not retired."""
        models = {name for name in self._own if name != "*"}
        if self._api_url is not None:
            from genai_prices import data_snapshot  # 0.16 s

            try:
                provider = data_snapshot.get_snapshot().find_provider(None, None, self._api_url)
            except LookupError:
                return sorted(models)
            models.update(info.id for info in provider.models if not info.deprecated and self._public_tariff(info))
        return sorted(models)


def _public_model(model: str, api_url: str) -> ModelInfo | None:
    from genai_prices import data_snapshot  # 0.16 s: not paid by who needs no public price

    try:
        return data_snapshot.get_snapshot().find_provider_model(model, None, None, api_url)[1]
    except LookupError:
        return None


def _changes(prices: Sequence[ConditionalPrice], now: datetime) -> list[datetime]:
    """Now, and every moment of the next month when the price may change."""
    from genai_prices.types import StartDateConstraint, TimeOfDateConstraint

    days, times = {now.date(), now.date() + timedelta(1)}, {time(), now.time()}
    for price in prices:
        if isinstance(price.constraint, StartDateConstraint):
            days.add(price.constraint.start_date)
        elif isinstance(price.constraint, TimeOfDateConstraint):
            times |= {price.constraint.start_time, price.constraint.end_time}
    moments = (datetime.combine(day, at, at.tzinfo or UTC).astimezone(UTC) for day in days for at in times)
    return [now, *(moment for moment in moments if now < moment <= now + _LONGEST_EXPERIMENT)]


def _tariff_of(price: ModelPrice) -> Tariff | None:
    """None where tokens of text are not what is paid for (speech, images, characters)."""
    input_price, output_price = price.input_mtok, price.output_mtok
    if input_price is None or output_price is None:
        return None
    per_request = price.requests_kcount  # USD per thousand requests
    return Tariff(
        input=_rate(input_price),
        output=_rate(output_price),
        cached_input=None if price.cache_read_mtok is None else _rate(price.cache_read_mtok),
        reasoning=None if price.output_reasoning_mtok is None else _rate(price.output_reasoning_mtok),
        per_request=_rounded_up(per_request) * 1000 if isinstance(per_request, Decimal) else 0,
    )


def _rate(price: Decimal | TieredPrices) -> Rate:
    if isinstance(price, Decimal):
        return rate_of(price)
    tiers = tuple((tier.start, _rounded_up(tier.price)) for tier in reversed(price.tiers))
    return Rate(_rounded_up(price.base), tiers)
