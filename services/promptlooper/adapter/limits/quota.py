"""What a provider says of the caller's quota in the headers of its answers, which is the truth."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime

from promptlooper.adapter.limits.window import PERIOD, free_after
from promptlooper.adapter.retrying import LONGEST_SAID

_SHORT = 120.0  # seconds within which a quota comes back that is by the minute, not by the day
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS))
_NAMES = (
    # Of requests and tokens: how OpenAI and who follows it, Anthropic, and Mistral say it.
    (("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}", "x-ratelimit-{}-req-minute"), 0),
    (
        (
            "x-ratelimit-{}-tokens",
            "anthropic-ratelimit-tokens-{}",
            "anthropic-ratelimit-input-tokens-{}",
            "anthropic-ratelimit-output-tokens-{}",
            "x-ratelimit-{}-tokens-minute",
        ),
        1,
    ),
)


@dataclass(slots=True)
class QuotaHeaders:
    """The quota headers of one attempt, by name in lower case."""

    headers: dict[str, str] | None = None


listening: ContextVar[QuotaHeaders | None] = ContextVar("listening", default=None)
"""Set around an attempt; the transport tells it what comes."""


def hear(raw: Iterable[tuple[bytes, bytes]]) -> None:
    """Takes the quota headers of a response, for whoever listens."""
    heard = listening.get()
    if heard is None:
        return
    found = {}
    for name, value in raw:
        lower = name.lower()
        if lower.startswith((b"x-ratelimit-", b"anthropic-ratelimit-")):
            found[lower.decode("latin-1")] = value.decode("latin-1")
    if found:
        heard.headers = found


@dataclass(frozen=True, slots=True)
class Quota:
    """How much is left, and in how many seconds all of `limit` is there again."""

    remaining: float
    limit: float | None
    reset: float


def quotas_of(headers: dict[str, str], now: datetime) -> tuple[Quota | None, Quota | None]:
    """Of requests and of tokens; of several for one of them the scarcest."""
    quotas: list[Quota | None] = [None, None]
    for names, kind in _NAMES:
        for name in names:
            remaining = _number(headers.get(name.format("remaining")))
            if remaining is None:
                continue
            limit = _number(headers.get(name.format("limit")))
            reset = _seconds(headers.get(name.format("reset")), now)
            quota = Quota(remaining, limit if limit else None, PERIOD if reset is None else min(reset, LONGEST_SAID))
            known = quotas[kind]
            if known is None or _scarcity(quota) < _scarcity(known):
                quotas[kind] = quota
    return quotas[0], quotas[1]


def _scarcity(quota: Quota) -> float:
    return quota.remaining / (quota.limit or max(quota.remaining, 1.0))


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < 1e15 else None


def _seconds(text: str | None, now: datetime) -> float | None:
    """From `6m0s`, `20ms`, `1.5` (seconds), `1767225600` or `1767225600000` (a time), or RFC 3339."""
    if not text:
        return None
    number = _number(text)
    if number is not None:
        if number > 1e9:
            number = (number / 1000 if number > 1e11 else number) - now.timestamp()
        return max(0.0, number)
    found = _DURATION.fullmatch(text.strip())
    if found and any(found.groups()):
        return sum(float(part) * unit for part, unit in zip(found.groups(), _UNITS.values(), strict=True) if part)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds())


@dataclass(slots=True)
class Allowance:
    """What a quota leaves to this replica, from what was said with the latest attempt that has an answer."""

    quota: Quota | None = None
    at: float = 0.0  # when that attempt began
    spent: float = 0.0  # in all, by then
    _free_at: float = -PERIOD

    def said(self, quota: Quota, at: float, spent: float) -> None:
        if self.quota is None or spent >= self.spent:
            self.quota, self.at, self.spent = quota, at, spent

    def wait(self, need: float, spent: float, now: float, replicas: int) -> float:
        """Seconds until `need` may be spent, `spent` being all that was so far. It comes back evenly where the limit
        is known, else at once; and is spent evenly where it soon comes back."""
        quota = self.quota
        if quota is None or now >= self.at + quota.reset:
            return 0.0
        left, since = self.at + quota.reset - now, now - self.at
        if quota.limit is None:
            return left if need > quota.remaining / replicas - (spent - self.spent) else 0.0
        need = min(need, quota.limit / replicas) + spent - self.spent
        rate = (quota.limit - quota.remaining) / quota.reset / replicas
        lacking = need - quota.remaining / replicas - rate * since
        wait = 0.0 if lacking <= 0 else lacking / rate if rate > 0 else left
        return min(left, max(wait, self._free_at - now if quota.reset <= _SHORT else 0.0, 0.0))

    def spend(self, amount: float, now: float, replicas: int) -> None:
        """What was begun has its time."""
        quota = self.quota
        if quota is not None and quota.limit and quota.reset:
            self._free_at = free_after(0, self._free_at, now, amount, PERIOD * quota.limit / quota.reset / replicas)
