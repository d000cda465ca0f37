"""Adapters in simulated time that share a provider's limits: the real limiter, over a Redis and a provider that are
simulated, too."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from dataclasses import dataclass, field

from promptlooper.adapter.limits.lanes import Lanes
from promptlooper.adapter.limits.ledger import Rules
from promptlooper.adapter.limits.limiter import Held, Lane
from promptlooper.adapter.limits.share import Share
from promptlooper.adapter.limits.shared_ledger import Away, SharedLedger
from promptlooper.adapter.retrying import Failure, Kind, decide
from promptlooper.breaker import Breaker
from promptlooper.completion import Completion, CompletionRequest, Message
from promptlooper.testing.simulation import Process, SimulatedClock, SimulatedLoop

LANE = Lane("fake", "m")


class LimitedProvider:
    """Takes `per_minute` requests in any 60 s and `at_once`; answers after `seconds`, and refuses at once."""

    def __init__(
        self,
        loop: SimulatedLoop,
        *,
        per_minute: int = 600,
        at_once: int = 60,
        seconds: float = 1.0,
        retry_after: float | None = None,
        headers: bool = False,
    ) -> None:
        self._loop = loop
        self.per_minute, self.at_once, self.seconds = per_minute, at_once, seconds
        self._retry_after, self._headers = retry_after, headers
        self._window: deque[float] = deque()
        self._open: Counter[str] = Counter()  # by who asked
        self.taken: list[float] = []
        self.refused: list[float] = []
        self.most_open = 0

    @property
    def open(self) -> int:
        return self._open.total()

    def gone(self, asker: str) -> None:
        """Its connections are closed."""
        del self._open[asker]

    async def ask(self, asker: str, rng: random.Random) -> tuple[Completion | Failure, dict[str, str]]:
        await asyncio.sleep(rng.uniform(0.005, 0.05))  # on its way
        now = self._loop.time()
        while self._window and self._window[0] <= now - 60:
            self._window.popleft()
        if len(self._window) >= self.per_minute or self.open >= self.at_once:
            self.refused.append(now)
            return Failure(Kind.RATE_LIMITED, "slow down", 429, self._retry_after), self._said(now)
        self._window.append(now)
        self.taken.append(now)
        self._open[asker] += 1
        self.most_open = max(self.most_open, self.open)
        said = self._said(now)
        try:
            await asyncio.sleep(self.seconds * rng.uniform(0.5, 1.5))
        finally:
            self._open[asker] -= 1
        return Completion("ok", "m", "stop", 10, 5), said

    def _said(self, now: float) -> dict[str, str]:
        if not self._headers:
            return {}
        reset = self._window[-1] + 60 - now if self._window else 0
        return {
            "x-ratelimit-limit-requests": str(self.per_minute),
            "x-ratelimit-remaining-requests": str(self.per_minute - len(self._window)),
            "x-ratelimit-reset-requests": f"{reset:.3f}s",
        }

    def rate(self, start: float, end: float) -> float:
        """Taken in a minute, on average."""
        return 60 * sum(start <= at < end for at in self.taken) / (end - start)

    def refusals(self, start: float, end: float) -> float:
        """The part that was refused."""
        refused = sum(start <= at < end for at in self.refused)
        return refused / max(1, refused + sum(start <= at < end for at in self.taken))


@dataclass
class SimulatedRedis:
    """What the script of a Fleet does, in simulated time."""

    loop: SimulatedLoop
    values: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    up: bool = True
    exchanges: int = 0


class SimulatedFleet:
    """A replica's way to it."""

    def __init__(self, redis: SimulatedRedis, name: str, clock: SimulatedClock) -> None:
        self._redis, self.name, self.clock = redis, name, clock
        self._breaker = Breaker(clock)
        self._versions = 0

    def now(self) -> float:
        return 1e9 + self.clock.monotonic()

    def keeper(self, lane: Lane) -> SharedLedger:
        return SharedLedger(self, "\0".join(lane))

    async def swap(self, key: str, version: bytes, ledger: bytes) -> tuple[bytes, bytes | None]:
        if not self._breaker.admits():
            raise Away("it does not answer")
        await asyncio.sleep(0.0005 if self._redis.up else 0.25)
        if not self._redis.up:
            self._breaker.failed()
            raise Away("it does not answer")
        held, text = self._redis.values.get(key, (b"", b""))
        self._redis.exchanges += 1
        if held != version:
            answer = held, text
        else:
            self._versions += 1
            new = f"{self.name}:{self._versions}".encode()
            self._redis.values[key] = new, ledger
            answer = new, None
        await asyncio.sleep(0.0005)
        self._breaker.succeeded()
        return answer


class Replica:
    """An Adapter's limiter with callers, each asking again and again."""

    def __init__(self, loop: SimulatedLoop, provider: LimitedProvider, redis: SimulatedRedis, name: str, rules: Rules):
        self._loop, self._provider = loop, provider
        self.process = Process(loop, name)
        clock = SimulatedClock(loop)
        self.lanes = Lanes(lambda _: rules, clock, SimulatedFleet(redis, name, clock).keeper)
        self._rng = random.Random(name)
        self.answered: Counter[str] = Counter()
        self.held = 0

    def callers(self, count: int, experiment: str = "a") -> None:
        for _ in range(count):
            self.process.start(self._ask_for_ever(experiment))

    @property
    def share(self) -> Share:
        return self.lanes.queue(LANE).share

    def kill(self) -> None:
        self.process.kill()
        self._provider.gone(self.process.name)

    async def _ask_for_ever(self, experiment: str) -> None:
        await asyncio.sleep(self._rng.random())
        while True:
            await self.ask(experiment)

    async def ask(self, experiment: str) -> None:
        request = CompletionRequest("fake/m", (Message("user", "hi"),), {"max_tokens": 5}, experiment_id=experiment)
        attempts = 0
        while True:
            try:
                permit = await self.lanes.permit(LANE, request)
            except Held as held:
                self.held += 1
                await asyncio.sleep(max(1.0, held.retry_after))
                return
            attempts += 1
            try:
                outcome, permit.heard.headers = await self._provider.ask(self.process.name, self._rng)
                if isinstance(outcome, Completion):
                    permit.answered(outcome)
                    self.answered[experiment] += 1
                    return
                permit.failed(outcome)
            finally:
                permit.release()
            decision = decide(outcome, attempts=attempts, time_left=60.0, random=self._rng.random)
            if decision.sleep is None:
                await asyncio.sleep(max(1.0, decision.retry_after or 0.0))
                return
            await asyncio.sleep(decision.sleep)
