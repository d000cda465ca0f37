"""Answers whose price needs more than a Completion says."""

from __future__ import annotations

from typing import Any

from promptlooper.adapter.public_prices import Terms
from promptlooper.adapter.tariff import Billed, BilledCompletion
from promptlooper.completion import Completion

_USUAL_TIERS = frozenset({"", "auto", "default", "standard", "on_demand"})  # at the list's price


def completed(billed: Billed | None, **fields: Any) -> Completion:
    return Completion(**fields) if billed is None else BilledCompletion(**fields, billed=billed)


def billed_apart(terms: Terms, /, **tokens: int | None) -> Billed | None:
    """None where there is nothing of this."""
    counts: dict[str, Any] = {name: count for name, count in tokens.items() if count}
    return Billed(**counts, terms=terms) if counts or terms else None


def tier_terms(tier: object) -> Terms:
    """Of the service tier that an answer names."""
    return (("service_tier", tier),) if isinstance(tier, str) and tier not in _USUAL_TIERS else ()
