"""A model, its Adapter and a cache, as each Runner reaches them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from zlib import crc32

from simulation.schedule import Odds

from promptlooper.caching import CacheEntry, CacheStats, Found, Lookup, LookupStatus
from promptlooper.completion import Completion, CompletionRequest, ModelCheck, ModelInfo, OnDelta, Price
from promptlooper.errors import (
    CacheUnavailable,
    DeadlineExceeded,
    ProviderRateLimited,
    ProviderUnavailable,
    ServiceUnavailable,
)
from promptlooper.testing.simulation import Process, SimulatedLoop

IN, OUT = 2_000, 8_000  # nano-USD per token
PRICE = Price(IN * 1_000_000, OUT * 1_000_000)
LONGEST_WAIT = 1.5  # seconds that the provider asks to wait
CACHE_LEASE = 4.0  # seconds: the Runner renews every 3.3


def said(prompt: str) -> str:
    """The model's answer, always the same."""
    return f"[{prompt.partition(' after ')[0]} {crc32(prompt.encode()):08x}]"


def cost_of(prompt: str) -> int:
    return len(prompt) * IN + len(said(prompt)) * OUT


def tokens_of(prompt: str) -> int:
    return len(prompt) + len(said(prompt))


@dataclass(frozen=True, slots=True)
class Asked:
    """Which run's which stage a prompt belongs to."""

    name: str  # of the experiment
    stage_index: int
    run_index: int

    @classmethod
    def by(cls, prompt: str) -> Asked:
        name, stage, row = prompt.split(" ")[:3]
        return cls(name, int(stage[1:]), int(row[1:]))


@dataclass(slots=True)
class Call:
    asked: Asked
    prompt: str
    process: Process
    at: float
    outcome: str = "open"  # answered, refused, failed, cut; open: its asker died

    @property
    def maybe_paid(self) -> bool:
        return self.outcome != "refused"


class Model:
    """Answers what it is asked, after a while. `begins` sees each call as it begins."""

    def __init__(
        self, loop: SimulatedLoop, chance: Random, odds: Odds, longest_call: float, begins: Callable[[Call], None]
    ) -> None:
        self.loop, self.chance, self.odds, self.longest_call = loop, chance, odds, longest_call
        self.begins = begins
        self.calls: list[Call] = []
        self.faults: Counter[str] = Counter()

    async def answer(self, process: Process, request: CompletionRequest) -> Completion:
        prompt, chance, odds = request.messages[-1].content, self.chance, self.odds
        call = Call(Asked.by(prompt), prompt, process, self.loop.time())
        latency = chance.uniform(0.02, self.longest_call)
        limited, fails = chance.random() < odds.rate_limited, chance.random() < odds.model_fails
        wait = chance.uniform(0.5, LONGEST_WAIT)
        if limited:
            call.outcome = "refused"
        self.begins(call)
        self.calls.append(call)
        try:
            await asyncio.sleep(0.01 if limited else min(latency, request.timeout))
        except asyncio.CancelledError:
            call.outcome = "cut"
            raise
        if limited:
            self.faults["rate limited"] += 1
            raise ProviderRateLimited("slow down", attempts=1, retry_after=wait)
        if latency > request.timeout:
            self.faults["model too slow"] += 1
            call.outcome = "cut"
            raise DeadlineExceeded("no answer in time", attempts=1)
        if fails:
            self.faults["model failed"] += 1
            call.outcome = "failed"
            raise ProviderUnavailable("the model broke off", attempts=1)
        call.outcome = "answered"
        answer = said(prompt)
        return Completion(
            answer, request.model, "stop", len(prompt), len(answer), latency_ms=5, cost_nanousd=cost_of(prompt)
        )


class SimulatedGateway:
    """The Adapter as one Runner sees it."""

    def __init__(self, model: Model, process: Process) -> None:
        self._model, self._process = model, process

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        await self._reach()
        return await self._model.answer(self._process, request)

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
        await self._reach()
        return [ModelCheck(model, price=PRICE) for model in models]

    async def list_models(self) -> list[ModelInfo]:
        return []

    async def _reach(self) -> None:
        if self._process.killed or self._model.chance.random() < self._model.odds.adapter_away:
            self._model.faults["adapter away"] += 1
            await asyncio.sleep(0.01)
            raise ServiceUnavailable("the Adapter is away")


class Memory:
    """What the Cache remembers: values, and who is asking."""

    def __init__(self, loop: SimulatedLoop, chance: Random, odds: Odds) -> None:
        self.loop, self.chance, self.odds = loop, chance, odds
        self.values: dict[str, bytes] = {}
        self.leases: dict[str, tuple[str, float]] = {}
        self.faults: Counter[str] = Counter()

    def found(self, key: str, claimant_id: str) -> Found:
        if key in self.values:
            return Found(LookupStatus.HIT, self.values[key], 0.0)
        holder, until = self.leases.get(key, ("", 0.0))
        if not claimant_id:
            return Found(LookupStatus.MISS)
        if holder not in ("", claimant_id) and until > self.loop.time():
            return Found(LookupStatus.BUSY)
        self.leases[key] = (claimant_id, self.loop.time() + CACHE_LEASE)
        return Found(LookupStatus.LEAD)


class SimulatedCache:
    """The Cache as one Runner sees it."""

    def __init__(self, memory: Memory, process: Process) -> None:
        self._memory, self._process = memory, process

    async def lookup(self, lookups: Sequence[Lookup], claimant_id: str) -> list[Found]:
        await self._reach()
        return [self._memory.found(lookup.key, claimant_id) for lookup in lookups]

    async def renew(self, keys: Sequence[str], claimant_id: str) -> list[bool]:
        await self._reach()
        mine = [self._memory.leases.get(key, ("", 0.0))[0] == claimant_id for key in keys]
        for key, is_mine in zip(keys, mine, strict=True):
            if is_mine:
                self._memory.leases[key] = (claimant_id, self._memory.loop.time() + CACHE_LEASE)
        return mine

    async def store(self, entries: Sequence[CacheEntry], claimant_id: str) -> None:
        await self._reach()
        for entry in entries:
            self._memory.values[entry.key] = entry.value
            self._memory.leases.pop(entry.key, None)

    async def release(self, keys: Sequence[str], claimant_id: str) -> None:
        await self._reach()
        for key in keys:
            if self._memory.leases.get(key, ("", 0.0))[0] == claimant_id:
                del self._memory.leases[key]

    async def purge(self, scope: str) -> int:
        raise NotImplementedError

    async def stats(self) -> CacheStats:
        raise NotImplementedError

    async def _reach(self) -> None:
        memory = self._memory
        await asyncio.sleep(memory.chance.uniform(0.0005, 0.005))
        if self._process.killed or memory.chance.random() < memory.odds.cache_away:
            memory.faults["cache away"] += 1
            raise CacheUnavailable("the Cache is away")
