"""Prices in the providers file: what a model costs, and from which day on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from promptlooper.adapter.cost import Dated
from promptlooper.adapter.tariff import Rate, Tariff, rounded_rate, units_per_request
from promptlooper.completion import Price

_Usd = Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


def _day(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        try:
            return date.fromisoformat(value)
        except ValueError:
            pass
    raise ValueError(f"{value!r} is not a day; write it as YYYY-MM-DD, in quotes or not")


_Day = Annotated[date, BeforeValidator(_day)]


class _Rates(BaseModel):
    """USD per million tokens. A kind of tokens that is not set costs what the kind costs that it is part of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_usd_per_mtok: _Usd
    output_usd_per_mtok: _Usd | None = None
    cached_input_usd_per_mtok: _Usd | None = None
    cache_write_usd_per_mtok: _Usd | None = None
    cache_write_1h_usd_per_mtok: _Usd | None = None
    image_input_usd_per_mtok: _Usd | None = None
    audio_input_usd_per_mtok: _Usd | None = None
    cached_image_input_usd_per_mtok: _Usd | None = None
    cached_audio_input_usd_per_mtok: _Usd | None = None
    reasoning_usd_per_mtok: _Usd | None = None
    image_output_usd_per_mtok: _Usd | None = None
    audio_output_usd_per_mtok: _Usd | None = None

    def rates(self) -> dict[str, Decimal]:
        """By the names of a Tariff."""
        found = ((name.removesuffix("_usd_per_mtok"), getattr(self, name)) for name in _Rates.model_fields)
        return {name: usd for name, usd in found if usd is not None}


class Tier(_Rates):
    """What a call costs, all of it, whose prompt has more tokens."""

    above_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)]


class BatchPrice(_Rates):
    """What a call costs in a batch."""

    request_usd: _Usd = Decimal(0)


class ModelPrice(_Rates):
    """One price of a model, for ever or for a time: from the beginning of a day on, up to that of another (UTC)."""

    from_: Annotated[_Day | None, Field(alias="from")] = None
    until: _Day | None = None
    request_usd: _Usd = Decimal(0)
    tiers: tuple[Tier, ...] = ()
    batch: BatchPrice | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> ModelPrice:
        if self.from_ and self.until and self.until <= self.from_:
            raise ValueError(f"'until' ({self.until}) is not after 'from' ({self.from_}); it is the first day without")
        starts = [tier.above_tokens for tier in self.tiers]
        if len(set(starts)) < len(starts):
            raise ValueError("two tiers have the same 'above_tokens'; remove one")
        for tier in self.tiers:
            if more := set(tier.rates()) ^ set(self.rates()):
                name = min(more)
                where = "the price" if name in tier.rates() else f"the tier above {tier.above_tokens} tokens"
                raise ValueError(f"{where} lacks '{name}_usd_per_mtok', which the other has; say it in both")
        return self

    def tariff(self) -> Tariff:
        tiers = sorted(self.tiers, key=lambda tier: -tier.above_tokens)
        rates = {
            name: Rate(rounded_rate(usd), tuple((t.above_tokens, rounded_rate(t.rates()[name])) for t in tiers))
            for name, usd in self.rates().items()
        }
        return Tariff(**rates, per_request=units_per_request(self.request_usd), version=self._version)

    def batch_tariff(self) -> Tariff | None:
        if self.batch is None:
            return None
        rates = {name: Rate(rounded_rate(usd)) for name, usd in self.batch.rates().items()}
        return Tariff(**rates, per_request=units_per_request(self.batch.request_usd), version=self._version)

    @property
    def _version(self) -> str:
        return f"providers-file {self.from_}" if self.from_ else "providers-file"


class PriceCeiling(BaseModel):
    """What a budget reserves for a call of a model whose price nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_usd_per_mtok: _Usd
    output_usd_per_mtok: _Usd
    request_usd: _Usd = Decimal(0)

    def price(self) -> Price:
        tariff = Tariff(
            Rate(rounded_rate(self.input_usd_per_mtok)),
            Rate(rounded_rate(self.output_usd_per_mtok)),
            per_request=units_per_request(self.request_usd),
        )
        return tariff.ceiling


def _as_list(value: Any) -> Any:
    """A price without dates stands for a list of one."""
    return [value] if isinstance(value, Mapping) else value


def _in_order(prices: tuple[ModelPrice, ...]) -> tuple[ModelPrice, ...]:
    """By their first day; one without `until` ends where the next begins. Raises ValueError where two hold at once."""
    if not prices:
        raise ValueError("has no price; write one, or remove the model")
    ordered = tuple(sorted(prices, key=lambda price: price.from_ or date.min))
    for earlier, later in pairwise(ordered):
        if later.from_ is None or later.from_ == earlier.from_:
            which = "without 'from'" if later.from_ is None else f"from {later.from_}"
            raise ValueError(f"two prices are {which}; give each a day of its own")
        if earlier.until is not None and earlier.until > later.from_:
            raise ValueError(
                f"the price until {earlier.until} and the one from {later.from_} hold at once; end the first on "
                f"{later.from_}, or leave its 'until' out"
            )
    return ordered


ModelPrices = Annotated[tuple[ModelPrice, ...], BeforeValidator(_as_list), AfterValidator(_in_order)]


def dated(prices: Sequence[ModelPrice]) -> tuple[Dated, ...]:
    """The prices of a model, with the moments when they hold."""
    nexts = [*(price.from_ for price in prices[1:]), None]
    return tuple(
        Dated(price.tariff(), _moment(price.from_), _moment(price.until or following), price.batch_tariff())
        for price, following in zip(prices, nexts, strict=True)
    )


def _moment(day: date | None) -> datetime | None:
    return None if day is None else datetime.combine(day, time(), UTC)
