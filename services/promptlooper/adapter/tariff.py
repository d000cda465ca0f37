"""The rates of one model, and what an answer costs by them: exact integers, rounded up so that a budget holds."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from decimal import Decimal

from promptlooper.completion import Completion, Price

# A rate is an integer number of 1e-15 USD per million tokens: fine enough that the sums below are exact. Then
# tokens x rate is in units of 1e-21 USD, of which a nano-USD has 1e12.
_RATES_PER_USD = 10**15
_UNITS_PER_NANOUSD = 10**12
_RATES_PER_NANOUSD = 10**6


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
class Billed:
    """What only the price of an answer needs: kinds of tokens that some models bill apart, and a call's terms."""

    tokens_cache_write_1h_in: int = 0  # part of tokens_cache_write_in: kept for an hour, where minutes are usual
    tokens_image_in: int = 0  # parts of tokens_in
    tokens_audio_in: int = 0
    tokens_cached_image_in: int = 0  # parts of the above and of tokens_cached_in
    tokens_cached_audio_in: int = 0
    tokens_image_out: int = 0  # parts of tokens_out
    tokens_audio_out: int = 0
    terms: tuple[tuple[str, str], ...] = ()  # in the price list's words: ("service_tier", "flex"), ("speed", "fast")


_NOTHING_APART = Billed()
BATCH = (("processing", "batch"),)  # the terms of an answer in a batch


@dataclass(frozen=True, slots=True)
class BilledCompletion(Completion):
    """What a provider answers where the price needs more than the tokens of a Completion. It stays in the Adapter."""

    billed: Billed = _NOTHING_APART


def billed(completion: Completion) -> Billed:
    return completion.billed if isinstance(completion, BilledCompletion) else _NOTHING_APART


def in_batch(completion: Completion) -> BilledCompletion:
    """The same answer, as it is billed in a batch."""
    said = {each.name: getattr(completion, each.name) for each in fields(Completion)}
    return BilledCompletion(**said, billed=replace(billed(completion), terms=BATCH))


@dataclass(frozen=True, slots=True)
class Tariff:
    """All rates of one model that an answer can meet. A kind of tokens without a rate of its own is paid as the kind
    that it is part of; without `output`, no answer that has any has a known price."""

    input: Rate
    output: Rate | None = None  # None: of a model that embeds, or draws
    cached_input: Rate | None = None
    cache_write: Rate | None = None
    cache_write_1h: Rate | None = None  # None: as cache_write
    image_input: Rate | None = None
    audio_input: Rate | None = None
    cached_image_input: Rate | None = None  # None: as cached_input, where there is one
    cached_audio_input: Rate | None = None
    reasoning: Rate | None = None
    image_output: Rate | None = None
    audio_output: Rate | None = None
    per_request: int = 0  # in 1e-21 USD
    version: str = field(default="", compare=False)  # where the rates are from

    @property
    def price(self) -> Price:
        """As shown: what plain text costs in a short prompt, rounded up."""
        output = max((rate.base for rate in (self.output, self.reasoning) if rate), default=0)
        return self._price(self.input.base, output)

    @property
    def ceiling(self) -> Price:
        """As reserved: no answer costs more, whatever its tier and kinds of tokens."""
        inputs = (
            *(self.input, self.cached_input, self.cache_write, self.cache_write_1h, self.image_input),
            *(self.audio_input, self.cached_image_input, self.cached_audio_input),
        )
        outputs = (self.output, self.reasoning, self.image_output, self.audio_output)
        return self._price(
            max(rate.dearest for rate in inputs if rate), max((rate.dearest for rate in outputs if rate), default=0)
        )

    def _price(self, input_rate: int, output_rate: int) -> Price:
        return Price(
            _up(input_rate, _RATES_PER_NANOUSD),
            _up(output_rate, _RATES_PER_NANOUSD),
            _up(self.per_request, _UNITS_PER_NANOUSD),
        )

    def cost_nanousd(self, completion: Completion) -> int | None:
        """None where the provider did not say how many tokens it counted, or has counted more of a part than of all."""
        tokens_in, tokens_out = completion.tokens_in, completion.tokens_out
        if tokens_in is None or tokens_out is None:
            return None
        inputs, outputs = self._parts_in(completion, tokens_in), self._parts_out(completion, tokens_out)
        units = self.per_request
        for total, whole, parts in ((tokens_in, self.input, inputs), (tokens_out, self.output, outputs)):
            rest = total
            for tokens, rate in parts:
                if tokens < 0:
                    return None
                if tokens and rate is not None:
                    rest -= tokens
                    units += tokens * rate.at(tokens_in)
            if rest < 0 or (rest and whole is None):
                return None
            if whole is not None:
                units += rest * whole.at(tokens_in)
        return _up(units, _UNITS_PER_NANOUSD)

    def _parts_in(self, completion: Completion, tokens_in: int) -> tuple[tuple[int, Rate | None], ...]:
        """Disjoint parts of tokens_in with their rates; None is the rate of plain input."""
        cached = min(completion.tokens_cached_in or 0, tokens_in)
        written = completion.tokens_cache_write_in or 0
        apart = billed(completion)
        if apart is _NOTHING_APART:
            return (cached, self.cached_input), (written, self.cache_write)
        long, image, audio = apart.tokens_cache_write_1h_in, apart.tokens_cached_image_in, apart.tokens_cached_audio_in
        return (
            (cached - image - audio, self.cached_input),
            (image, self.cached_image_input or self.cached_input or self.image_input),
            (audio, self.cached_audio_input or self.cached_input or self.audio_input),
            (apart.tokens_image_in - image, self.image_input),
            (apart.tokens_audio_in - audio, self.audio_input),
            (written - long, self.cache_write),
            (long, self.cache_write_1h or self.cache_write),
        )

    def _parts_out(self, completion: Completion, tokens_out: int) -> tuple[tuple[int, Rate | None], ...]:
        reasoning = min(completion.tokens_reasoning or 0, tokens_out)
        apart = billed(completion)
        return (
            (reasoning, self.reasoning),
            (apart.tokens_image_out, self.image_output),
            (apart.tokens_audio_out, self.audio_output),
        )


def rate_of(usd_per_mtok: Decimal) -> Rate:
    return Rate(rounded_rate(usd_per_mtok))


def rounded_rate(usd_per_mtok: Decimal) -> int:
    """In 1e-15 USD, rounded up."""
    numerator, denominator = usd_per_mtok.as_integer_ratio()
    return _up(numerator * _RATES_PER_USD, denominator)


def units_per_request(usd: Decimal) -> int:
    """A fee for each call, in 1e-21 USD, rounded up."""
    return rounded_rate(usd) * 10**6


def _up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


FREE = Tariff(Rate(0), Rate(0), version="free")
