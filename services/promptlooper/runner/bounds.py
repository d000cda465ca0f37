"""The most that one call can cost: what is reserved before it starts, so that a budget is never overshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from promptlooper.completion import Message, Price
from promptlooper.jsonvalue import JsonObject

TOKENS_PER_MESSAGE = 16  # role and separators, generously
TOKENS_PER_CALL = 16
MTOK = 1_000_000


@dataclass(frozen=True, slots=True)
class Bound:
    nanousd: int
    tokens: int


def call_bound(messages: Sequence[Message], params: JsonObject, price: Price | None) -> Bound:
    """Upper bounds of one call. A token is at least a byte of UTF-8, so bytes bound the tokens that go in; max_tokens
    bounds those that come out. Validation has refused budgets where a price or max_tokens is missing."""
    tokens_in = TOKENS_PER_CALL + sum(len(m.content.encode()) + TOKENS_PER_MESSAGE for m in messages)
    limit = params.get("max_tokens", params.get("max_completion_tokens", 0))
    choices = params.get("n", 1)
    tokens_out = int(limit) if isinstance(limit, int | float) else 0
    tokens_out *= choices if isinstance(choices, int) and choices > 1 else 1
    if price is None:
        return Bound(0, tokens_in + tokens_out)
    parts = tokens_in * price.input_nanousd_per_mtok + tokens_out * price.output_nanousd_per_mtok
    return Bound(-(-parts // MTOK), tokens_in + tokens_out)
