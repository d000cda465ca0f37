"""Those who wait for one lane, in this process: admitted in a fair order as soon as the lane's share allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from random import uniform
from typing import Protocol

from promptlooper.adapter.limits.control import Control
from promptlooper.adapter.limits.estimate import Estimates
from promptlooper.adapter.limits.fair_queue import FairQueue
from promptlooper.adapter.limits.ledger import Grant, Report
from promptlooper.adapter.limits.limiter import Held, Question
from promptlooper.adapter.limits.quota import QuotaHeaders, listening, quotas_of
from promptlooper.adapter.limits.share import Begun, Block, Share, Why
from promptlooper.adapter.limits.window import PERIOD
from promptlooper.adapter.retrying import LONGEST_SLEEP, Failure, Kind
from promptlooper.completion import Completion, LimitState
from promptlooper.embeddings import EmbeddingRequest

# Seconds for which someone is sent away at most: a rate is known beforehand, all else may change any moment.
_LONGEST_HELD, _LONGEST_HELD_BY_RATE = 60.0, 600.0
_AHEAD = 0.25  # seconds' worth of requests that are asked for before anyone wants to make them


class Keeper(Protocol):
    """Keeps the ledgers of lanes: here, or where all replicas see them."""

    def now(self) -> float: ...

    def exchange(self, lane: WaitingLane, *, urgent: bool) -> None:
        """Gives the lane's `report` and lets it `take` what is granted: at once, or soon and then with a `pump`."""
        ...


class _Waiter:
    __slots__ = ("experiment", "future", "timer", "tokens")

    def __init__(self, experiment: str, tokens: float, future: asyncio.Future[LanePermit]) -> None:
        self.experiment, self.tokens, self.future = experiment, tokens, future
        self.timer: asyncio.TimerHandle | None = None

    @property
    def left(self) -> bool:
        return self.future.done()


class WaitingLane:
    """A share and its queue. `wall` is the wall clock, for headers that name a time."""

    def __init__(self, share: Share, keeper: Keeper, wall: Callable[[], datetime]) -> None:
        self.share = share
        self._keeper, self._wall = keeper, wall
        self._estimates = Estimates()
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._timer: asyncio.TimerHandle | None = None
        self._promised = 0.0  # up to when time was promised to those who were sent away
        self._full = False

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def is_idle(self) -> bool:
        return not self._queue and not self.share.in_flight

    def state(self, key: str) -> LimitState:
        share, rules = self.share, self.share.rules
        block = share.block(1, self._keeper.now())
        requests, tokens = share.quota_left()
        return LimitState(
            key,
            max_concurrency=int(share.control.limit),
            in_flight=share.in_flight,
            waiting=self.waiting,
            waits_for=""
            if block is None or (block.why is not Why.PAUSE and self._may_help(block))
            else block.why.value,
            wait_ms=0 if block is None else round((block.seconds or 0.0) * 1000),
            requests_per_minute=rules.requests_per_minute,
            tokens_per_minute=rules.tokens_per_minute,
            requests_left=None if requests is None else int(requests),
            tokens_left=None if tokens is None else int(tokens),
            adapters=share.replicas,
        )

    async def permit(self, request: Question) -> LanePermit:
        """Raises Held."""
        tokens, now = self._estimates.of(request), self._keeper.now()
        block = None if self._queue else self.share.block(tokens, now)
        if block is None and not self._queue:
            permit = self._begun(tokens, now)
        else:
            permit = await self._turn("" if isinstance(request, EmbeddingRequest) else request.experiment_id, tokens)
        listening.set(permit.heard)
        return permit

    async def _turn(self, experiment: str, tokens: float) -> LanePermit:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(experiment, tokens, loop.create_future())
        ahead = self._queue.ahead_of(experiment)
        self._queue.add(waiter)
        self.pump()
        if not waiter.left:
            now = self._keeper.now()
            block = self.share.block(tokens, now)
            wait = 0.0 if block is None else self._wait(block, ahead, tokens)
            if block is not None and wait > LONGEST_SLEEP and not _stays(waiter, block):
                self._send_away(waiter, block, wait)
            else:
                waiter.timer = loop.call_later(LONGEST_SLEEP, self._waited_enough, waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.cancelled():
                self._queue.leave()
                self.pump()
            elif waiter.future.exception() is None:  # admitted, and cancelled before it knew
                waiter.future.result().release()
            raise
        finally:
            if waiter.timer is not None:
                waiter.timer.cancel()

    def pump(self) -> None:
        """Admits who may go now, and looks again when the next one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        asked = False
        while (head := self._queue.head()) is not None:
            now = self._keeper.now()
            block = self.share.block(head.tokens, now)
            if block is None:
                self._queue.take()
                head.future.set_result(self._begun(head.tokens, now))
            elif not asked and self._may_help(block):
                asked, self._full = True, self._full or block.why is Why.CONCURRENCY
                self._keeper.exchange(self, urgent=block.why is Why.RATE)
            else:
                if block.seconds is not None:
                    self._timer = asyncio.get_running_loop().call_later(max(block.seconds, 0.001), self.pump)
                return

    def _may_help(self, block: Block) -> bool:
        """Whether an exchange may bring what lacks."""
        if block.why is Why.CONCURRENCY:
            return self.share.holds < int(self.share.control.limit) or self.share.may_grow(self._keeper.now())
        return block.why in (Why.RATE, Why.PAUSE) and not block.seconds

    def report(self) -> Report:
        now, share, head = self._keeper.now(), self.share, self._queue.head()
        needs, first, waiting, block = [0.0, 0.0], [0.0, 0.0], 0, None
        if share.rules.metered:
            ahead = share.used.get(int(now) - 1, [0.0, 0.0])
            tokens = sum(waiter.tokens for waiter in self._queue)
            needs = share.lacking(self.waiting + ahead[0] * _AHEAD, tokens + ahead[1] * _AHEAD)
        if head is not None:
            block = share.block(head.tokens, now)
            waiting = self.waiting if block is None or block.why in (Why.CONCURRENCY, Why.PAUSE) else 0
            first = share.lacking(1, head.tokens) if share.rules.metered else first
        full, self._full = self._full, False
        report = share.report(waiting, needs, first, now, full=full)
        report.would_try = block is not None and block.why is Why.PAUSE and share.in_flight < share.holds
        return report

    def take(self, grant: Grant, control: Control) -> None:
        self.share.take(grant, control, self._keeper.now())

    def _begun(self, tokens: float, now: float) -> LanePermit:
        return LanePermit(self, self.share.begin(tokens, now))

    def ended(self, begun: Begun, outcome: Completion | Failure | None, heard: QuotaHeaders) -> None:
        share, now = self.share, self._keeper.now()
        share.end()
        if heard.headers:
            share.said(begun, quotas_of(heard.headers, self._wall()))
        if isinstance(outcome, Completion):
            known = outcome.tokens_in is not None and outcome.tokens_out is not None
            share.answered(begun, (outcome.tokens_in or 0) + (outcome.tokens_out or 0) if known else None, now)
            if outcome.tokens_out is not None:
                self._estimates.learn(outcome.tokens_out)
        elif outcome is not None and outcome.kind is Kind.RATE_LIMITED:
            share.refused(begun, outcome.retry_after, now)
        elif outcome is not None and outcome.kind in (Kind.TRANSIENT, Kind.MALFORMED):
            share.trouble()
        if share.has_news:
            self._keeper.exchange(self, urgent=True)
        if self._queue:
            self.pump()

    def _wait(self, block: Block, ahead: int, tokens: float) -> float:
        """Seconds that someone will wait, as far as can be known."""
        each = self._each(block, tokens)
        if block.why is Why.CONCURRENCY:
            return each * (ahead + 1)
        return max(block.seconds or 0.0, each * (ahead + 1)) if block.why is Why.RATE else (block.seconds or 0.0)

    def _each(self, block: Block, tokens: float) -> float:
        """Seconds from one admission to the next."""
        share = self.share
        if block.why is not Why.RATE:
            return share.seconds / max(1, share.holds)
        requests, most_tokens = share.rules.per_minute
        seconds = max(1 / requests if requests else 0.0, tokens / most_tokens if most_tokens else 0.0)
        return seconds * PERIOD * share.replicas

    def _waited_enough(self, waiter: _Waiter) -> None:
        if not waiter.left:
            block = self.share.block(waiter.tokens, self._keeper.now()) or Block(Why.CONCURRENCY, None)
            if _stays(waiter, block):
                waiter.timer = asyncio.get_running_loop().call_later(LONGEST_SLEEP, self._waited_enough, waiter)
                return
            self._send_away(waiter, block, max(1.0, self._wait(block, 0, waiter.tokens)))
            self.pump()

    def _send_away(self, waiter: _Waiter, block: Block, wait: float) -> None:
        """One after the other: those who are sent away are not to come back all at once."""
        now, longest = self._keeper.now(), _LONGEST_HELD_BY_RATE if block.why is Why.RATE else _LONGEST_HELD
        if block.why in (Why.PAUSE, Why.QUOTA):
            longest = max(longest, block.seconds or 0.0)
        at = max(now + wait, self._promised + self._each(block, waiter.tokens))
        self._promised = min(at, now + longest)
        held = at - now if at - now <= longest else longest * uniform(0.75, 1.0)
        waiter.future.set_exception(Held(block.why.value, block.why.sentence, held))
        self._queue.leave()


def _stays(waiter: _Waiter, block: Block) -> bool:
    """Who waits for one answer has no other work to give its place to: for a place it waits as long as it has time."""
    return not waiter.experiment and block.why is Why.CONCURRENCY


class LanePermit:
    __slots__ = ("_begun", "_lane", "_outcome", "_released", "heard")

    def __init__(self, lane: WaitingLane, begun: Begun) -> None:
        self._lane, self._begun = lane, begun
        self._outcome: Completion | Failure | None = None
        self._released = False
        self.heard = QuotaHeaders()

    def answered(self, completion: Completion) -> None:
        self._outcome = completion

    def failed(self, failure: Failure) -> None:
        self._outcome = failure

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._lane.ended(self._begun, self._outcome, self.heard)
