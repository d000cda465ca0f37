"""What the models of one provider cost: the operator's prices, then the public list's; None where it is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from promptlooper.adapter.public_prices import PublicPrices, Terms
from promptlooper.adapter.tariff import BATCH, Tariff, billed
from promptlooper.completion import Completion, ModelCheck, Price

LONGEST_EXPERIMENT = timedelta(31)  # what a call may cost is asked for once, before the first one


class Cost(NamedTuple):
    nanousd: int | None  # None where unknown, which is never 0
    version: str  # of the price; "" where unknown


UNKNOWN = Cost(None, "")


@dataclass(frozen=True, slots=True)
class Dated:
    """A price of the operator's, and when it holds: from a moment on, up to and without another."""

    tariff: Tariff
    start: datetime | None = None
    end: datetime | None = None
    batch: Tariff | None = None  # None: as outside of batches

    def under(self, terms: Terms) -> Tariff:
        """They hold under whatever terms, but those of a batch where it has a price of its own."""
        return self.batch if self.batch is not None and terms == BATCH else self.tariff

    def holds(self, now: datetime) -> bool:
        return (self.start is None or self.start <= now) and (self.end is None or now < self.end)

    def meets(self, now: datetime, until: datetime) -> bool:
        return (self.start is None or self.start <= until) and (self.end is None or now < self.end)


class Prices:
    """The prices of one provider: what the operator set (`*` for every model), then the public list of its address.
    `unknown` is what the operator lets a budget reserve for a call whose price nobody knows. Where a provider
    `renames`, a model's name is whatever its owner called it, and the answer says which model it is."""

    def __init__(
        self,
        own: Mapping[str, Sequence[Dated]],
        api_url: str | None = None,
        *,
        unknown: Price | None = None,
        renames: bool = False,
    ) -> None:
        self._own = own
        self._public = None if api_url is None else PublicPrices(api_url)
        self._unknown = unknown
        self._renames = renames
        self._dated = any(len(prices) > 1 or prices[0].start or prices[0].end for prices in own.values())

    def tariff(self, model: str, terms: Terms = ()) -> Tariff | None:
        """The price of a call made now."""
        if self._public is None and not self._dated:  # nothing changes with time
            found = self._own.get(model) or self._own.get("*")
            return found[0].under(terms) if found else None
        now = datetime.now(UTC)
        if (own := self._held(model, now)) is not None:
            return own.under(terms)
        return None if self._public is None else self._public.tariff(model, now, terms)

    def _held(self, model: str, now: datetime) -> Dated | None:
        for name in (model, "*"):
            for dated in self._own.get(name, ()):
                if dated.holds(now):
                    return dated
        return None

    def ceiling(self, model: str) -> Price | None:
        """No answer costs more during the next month, whatever it is made of. Where a price is unknown, what the
        operator set for that; None where that is not set."""
        now = datetime.now(UTC)
        until = now + LONGEST_EXPERIMENT
        names = [name for name in (model, "*") if name in self._own]
        found: list[Tariff | None] = [
            tariff
            for name in names
            for dated in self._own[name]
            if dated.meets(now, until)
            for tariff in {dated.tariff, dated.under(BATCH)}
        ]
        if self._held(model, now) is None or self._ends(names, now, until):
            found += [None] if self._public is None else self._public.tariffs(model, now, until)
        return _dearest([tariff.ceiling if tariff and tariff.output else self._unknown for tariff in found])

    def _ends(self, names: Sequence[str], now: datetime, until: datetime) -> bool:
        """Whether there is a moment until then for which the operator has set no price."""
        dated = [one for name in names for one in self._own[name]]
        ends = [one.end for one in dated if one.end is not None and now < one.end <= until]
        return any(not any(one.holds(end) for one in dated) for end in ends)

    def cost(self, model: str, completion: Completion) -> Cost:
        """By the model that was asked; by the one that answered where only that is known (a router's choice)."""
        terms = billed(completion).terms
        first, second = model, completion.model
        if self._renames and model not in self._own:
            first, second = second, first
        tariff = self.tariff(first, terms)
        if tariff is None and first != second:
            tariff = self.tariff(second, terms)
        if tariff is None or (nanousd := tariff.cost_nanousd(completion)) is None:
            return UNKNOWN
        return Cost(nanousd, tariff.version)

    def known_models(self) -> list[str]:
        """Models with a price, sorted; of the public list those that are not retired."""
        now = datetime.now(UTC)
        models = {name for name, prices in self._own.items() if name != "*" and any(one.holds(now) for one in prices)}
        if self._public is not None:
            models.update(self._public.known_models(now))
        return sorted(models)


def checked(name: str, endpoint: str, ways: Sequence[tuple[Prices, str]], *, batches: bool = False) -> ModelCheck:
    """What is known of the price before a model is asked: by the first way at list price, by the dearest at most."""
    prices, model = ways[0]
    tariff = prices.tariff(model)
    listed = tariff if tariff is not None and tariff.output is not None else None
    in_batch = prices.tariff(model, BATCH) if batches else None
    return ModelCheck(
        name,
        endpoint=endpoint,
        price=_dearest([prices.ceiling(model) for prices, model in ways]),
        list_price=None if listed is None else listed.price,
        price_version="" if listed is None else listed.version,
        price_unknown=listed is None,
        batches=batches,
        batch_price=in_batch.price if in_batch is not None and in_batch.output is not None else None,
    )


def _dearest(prices: Sequence[Price | None]) -> Price | None:
    """None where one is unknown."""
    known = [price for price in prices if price is not None]
    if not known or len(known) < len(prices):
        return None
    return Price(
        max(price.input_nanousd_per_mtok for price in known),
        max(price.output_nanousd_per_mtok for price in known),
        max(price.request_nanousd for price in known),
    )
