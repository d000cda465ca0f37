"""One replica's share of a lane: what it may do now, what it did, and what it says of that. Decides only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from promptlooper.adapter.limits.control import Control
from promptlooper.adapter.limits.ledger import Grant, Report, Rules
from promptlooper.adapter.limits.quota import Allowance, Quota
from promptlooper.adapter.limits.window import KINDS, Pair, Used, forget_old

_REFUSED_WITHIN = 1.0  # seconds: what is not refused by then was taken, though its answer may take minutes
_KEEP = 1.0  # seconds that what was granted and is not used is kept
_SOON = 0.2  # seconds between looks at what a minute has left
_CATCH_UP = 1.3  # times as fast as answers make room: what a pause cost is made up for, but not at once
_WEIGHT = 0.1  # of a new duration in the mean of all


class Why(Enum):
    """An attempt has to wait."""

    CONCURRENCY = "concurrency"
    RATE = "rate"
    QUOTA = "quota"
    PAUSE = "pause"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES = {
    Why.CONCURRENCY: "as many requests as are allowed are under way",
    Why.RATE: "the requests or tokens of this minute are used up",
    Why.QUOTA: "the provider says that its quota is used up",
    Why.PAUSE: "the provider asked to wait",
}


@dataclass(frozen=True, slots=True)
class Block:
    why: Why
    seconds: float | None  # None: until an attempt ends, or others leave room


@dataclass(slots=True)
class Begun:
    """An attempt that was admitted."""

    at: float
    tokens: float
    after: int  # how many pauses
    requests_before: int  # this one included
    tokens_before: float


class Share:
    """Times are the ledger's."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.control = Control()
        self.holds = 0
        self.replicas = 1
        self.in_flight = 0
        self.stock: Pair = [0.0, 0.0]
        self.used: Used = {}
        self.seconds = 0.0  # that an answer takes, on average
        self._granted_at = 0.0
        self._rate_until = 0.0
        self._requests, self._tokens = 0, 0.0  # all that were ever begun
        self._allowances = (Allowance(), Allowance())
        self._probes = False  # of all replicas it is this one
        self._probe: Begun | None = None
        self._catches_up = False  # since a pause not all places were used
        self._next_at = 0.0  # when the next attempt may begin meanwhile
        self._report = Report()

    def block(self, tokens: float, now: float) -> Block | None:
        """Why an attempt may not begin now."""
        control = self.control
        if now < control.paused_until:
            return Block(Why.PAUSE, control.paused_until - now)
        if not control.proved:
            if self._probe is not None and self._probe.after == control.pauses:
                left = self._probe.at + _REFUSED_WITHIN - now
                if left > 0:
                    return Block(Why.PAUSE, left)
                self._taken(self._probe.after)
            elif not self._probes:
                return Block(Why.PAUSE, None)
        if self.in_flight >= self.holds:
            self._catches_up = self._catches_up and now < control.cool_until
            return Block(Why.CONCURRENCY, None)
        if self._catches_up and now < self._next_at:
            return Block(Why.PAUSE, self._next_at - now)
        if self.rules.metered:
            for kind, lacking in enumerate(self.lacking(1, tokens)):
                if lacking > 0 and self.rules.per_minute[kind] is not None:
                    return Block(Why.RATE, max(0.0, self._rate_until - now))
        wait = max(
            self._allowances[0].wait(1, self._requests, now, self.replicas),
            self._allowances[1].wait(tokens, self._tokens, now, self.replicas),
        )
        return Block(Why.QUOTA, wait) if wait > 0 else None

    def lacking(self, requests: float, tokens: float) -> Pair:
        """What is needed beyond the stock. More tokens than a minute has are never needed: the provider will say."""
        most = self.rules.tokens_per_minute
        tokens = tokens if most is None else min(tokens, float(most))
        return [max(0.0, requests - self.stock[0]), max(0.0, tokens - self.stock[1])]

    def begin(self, tokens: float, now: float) -> Begun:
        self.in_flight += 1
        self._requests += 1
        self._tokens += tokens
        for allowance, amount in zip(self._allowances, (1.0, tokens), strict=True):
            allowance.spend(amount, now, self.replicas)
        begun = Begun(now, tokens, self.control.pauses, self._requests, self._tokens)
        if not self.control.proved:
            self._probe = begun
        self._catches_up = self._catches_up or now < self.control.cool_until
        if self._catches_up:
            apart = self.seconds / (_CATCH_UP * max(1, self.holds))
            self._next_at = max(now, self._next_at) + min(apart, _REFUSED_WITHIN)
        if self.rules.metered:
            pair = self.used.setdefault(int(now), [0.0, 0.0])
            for kind, amount in enumerate((1.0, tokens)):
                self.stock[kind] = max(0.0, self.stock[kind] - amount)
                pair[kind] += amount
        return begun

    def end(self) -> None:
        self.in_flight -= 1

    def answered(self, begun: Begun, tokens: int | None, now: float) -> None:
        took = now - begun.at
        self.seconds = took if not self.seconds else self.seconds + (took - self.seconds) * _WEIGHT
        if begun.after == self.control.pauses:
            if begun.after != self._report.begun_after:
                self._report.answers, self._report.begun_after = 0, begun.after
            self._report.answers += 1
            self.control.taken(begun.after)
        if tokens is not None:
            self._used_after_all(begun, float(tokens), now)

    def refused(self, begun: Begun, retry_after: float | None, now: float) -> None:
        """429: the others are told at the next exchange, but here all stops at once."""
        self._used_after_all(begun, 0.0, now)
        self._report.refusals = [*self._report.refusals, (begun.after, retry_after)]
        self.control.refusal(now, begun.after, retry_after)
        self._probes = False

    def trouble(self) -> None:
        self._report.trouble = True

    def said(self, begun: Begun, quotas: tuple[Quota | None, Quota | None]) -> None:
        requests, tokens = quotas
        if requests is not None:
            self._allowances[0].said(requests, begun.at, begun.requests_before)
        if tokens is not None:
            self._allowances[1].said(tokens, begun.at, begun.tokens_before)

    def quota_left(self) -> tuple[float | None, float | None]:
        """As the provider last said it: requests and tokens."""
        requests, tokens = (one.quota for one in self._allowances)
        return (None if requests is None else requests.remaining, None if tokens is None else tokens.remaining)

    @property
    def has_news(self) -> bool:
        """That others should know at once."""
        return bool(self._report.refusals)

    def may_grow(self, now: float) -> bool:
        """Whether an exchange may raise the limit."""
        ceiling, control = self.rules.max_concurrency, self.control
        below = ceiling is None or control.limit < ceiling
        return below and now >= control.cool_until and control.is_round_over(now, self._report.answers)

    def report(self, waiting: int, needs: Pair, head: Pair, now: float, *, full: bool) -> Report:
        """What there is to say, once. `needs` and `head` are of all who wait and of the next of them, beyond the
        stock."""
        forget_old(self.used, now)
        report, self._report = self._report, Report(begun_after=self._report.begun_after)
        report.in_flight, report.wants = self.in_flight, self.in_flight + waiting
        report.needs, report.head, report.full = needs, head, full
        if not waiting and any(self.stock) and now - self._granted_at > _KEEP:
            report.returns = [report.returns[kind] + self.stock[kind] for kind in KINDS]
            self.stock = [0.0, 0.0]
        report.stock, report.used = list(self.stock), self.used
        return report

    def take(self, grant: Grant, control: Control, now: float) -> None:
        """What an exchange brought."""
        self.control, self.holds, self.replicas = control, grant.holds, grant.replicas
        self._probes = grant.probes and not self._report.refusals
        for kind in KINDS:
            self.stock[kind] += grant.stock[kind]
        if any(grant.stock):
            self._granted_at = now
        self._rate_until = now + max(grant.wait, _SOON) if grant.wait is not None else now
        for begun_after, retry_after in self._report.refusals:  # those that came during the exchange
            self.control.refusal(now, begun_after, retry_after)

    def _taken(self, begun_after: int) -> None:
        self.control.taken(begun_after)
        self._report.taken, self._report.begun_after = True, begun_after

    def _used_after_all(self, begun: Begun, tokens: float, now: float) -> None:
        if not self.rules.metered:
            return
        if tokens < begun.tokens:
            self._report.returns[1] += begun.tokens - tokens
            self._rate_until = min(self._rate_until, now + _SOON)
        pair = self.used.get(int(begun.at))
        if pair is not None:
            pair[1] = max(0.0, pair[1] + tokens - begun.tokens)
