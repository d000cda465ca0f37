"""Where a stage gets its answer: the cache, somebody's equal question that is under way, or the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from promptlooper.batching import TickBatcher
from promptlooper.caching import LEASE_TTL, CacheEntry, Found, Lookup, LookupStatus, ResponseCache
from promptlooper.clock import Clock
from promptlooper.completion import Completion, CompletionGateway, CompletionRequest, OnDelta
from promptlooper.errors import DeadlineExceeded, DomainError, ServiceUnavailable
from promptlooper.experiment import CacheMode
from promptlooper.failpoints import Failpoints
from promptlooper.questions import Question, cache_key, completion_of, entry_of
from promptlooper.runner.store.rows import storable_completion
from promptlooper.tracing import current, span

log = logging.getLogger("runner.answers")
BUSY_TICK = 0.1  # seconds between looks at keys that another process is asking for
FIRST_RETRY, LAST_RETRY = 0.1, 2.0  # seconds between tries while the Adapter can't be reached


@dataclass(frozen=True, slots=True)
class Answer:
    """`cached`: nobody was paid for it. The completion stays the original's: its tokens, latency, cost and attempts."""

    completion: Completion
    cached: bool
    batched: bool = False


_Place: TypeAlias = tuple[str, float | None, bool]  # what may share an answer: key, age, whether lost calls repeat


@dataclass(slots=True)
class _Flight:
    """One question that this process is asking, and how many wait for it."""

    waiters: int = 0
    counted: bool = False  # one of the waiters has taken the answer as the one that was paid for
    is_looking: bool = True  # in the cache: not cancelled then, as the lease that it may get must be given back
    abandoned: bool = False


class Answers:
    """Asks every question once. A cache that does not answer is a miss; a model's error goes to all who waited for it.

    Close it when nobody waits for an answer: it writes what is still to be stored, and gives leases back.
    """

    def __init__(
        self,
        gateway: CompletionGateway,
        cache: ResponseCache,
        claimant_id: str,
        clock: Clock,
        *,
        failpoints: Failpoints | None = None,
        gather: float = 0.0,
    ) -> None:
        self._gateway, self._cache, self._claimant_id, self._clock = gateway, cache, claimant_id, clock
        self._failpoints = failpoints or Failpoints()
        self._flights: dict[_Place, tuple[_Flight, asyncio.Task[Answer]]] = {}
        self._running: set[asyncio.Task[Answer]] = set()  # flights, also those that nobody waits for any more
        self._leading: set[str] = set()
        self._renewer: asyncio.Task[None] | None = None
        self._tick: asyncio.Task[None] | None = None
        self._look_up = TickBatcher(self._lookup_batch)
        self._read = TickBatcher(self._read_batch)
        self._store = TickBatcher(self._store_batch, size_of=lambda entry: len(entry.value), gather=gather)
        self._release = TickBatcher(self._release_batch)
        self._last_warning = float("-inf")
        self.cache_failures = 0

    async def aclose(self) -> None:
        if self._running:
            await asyncio.wait(self._running)
        for batcher in (self._look_up, self._read, self._store, self._release):
            await batcher.aclose()
        for task in (self._renewer, self._tick):
            if task is not None:
                task.cancel()

    async def ask(self, question: Question, on_delta: OnDelta | None = None) -> Answer:
        """Raises what the gateway raises; DeadlineExceeded after `request.timeout` seconds, waiting for others
        included. `on_delta` hears the output as it is generated, but not where it comes from the cache or from who
        asked before."""
        deadline = self._clock.monotonic() + question.request.timeout
        mode = question.policy.mode
        if mode is CacheMode.READ_WRITE:
            while (answer := await self._ask_once(question, deadline, on_delta)) is None:
                pass
            return answer
        key = cache_key(question) if mode is not CacheMode.OFF else ""
        if mode is CacheMode.READ_ONLY:
            found = await self._read(Lookup(key, question.policy.max_age, current.get()))
            if (completion := completion_of(found)) is not None:
                return Answer(completion, cached=True)
        completion = await self._complete(question.request, deadline, on_delta)
        if mode.writes and (entry := entry_of(key, question.request, completion)) is not None:
            self._store(entry)
        return Answer(completion, cached=False)

    async def find(self, question: Question) -> Answer | None:
        """What the cache has, where it may be read. Nobody is asked."""
        if question.policy.mode not in (CacheMode.READ_WRITE, CacheMode.READ_ONLY):
            return None
        found = await self._read(Lookup(cache_key(question), question.policy.max_age, current.get()))
        completion = completion_of(found)
        return None if completion is None else Answer(completion, cached=True)

    async def keep(self, question: Question, completion: Completion) -> None:
        """Stores an answer that came otherwise, where the cache may be written. Returns when it is stored."""
        if not question.policy.mode.writes:
            return
        if (entry := entry_of(cache_key(question), question.request, completion)) is not None:
            await self._store(entry)

    async def _ask_once(self, question: Question, deadline: float, on_delta: OnDelta | None) -> Answer | None:
        """None where the one who asked ran out of time, which this caller still has."""
        key = cache_key(question)
        place = (key, question.policy.max_age, question.request.once)
        leader = place not in self._flights
        if leader:
            self._take_off(place, question, deadline, on_delta)
        flight, task = self._flights[place]
        flight.waiters += 1
        try:
            if leader:
                answer = await asyncio.shield(task)
            else:
                async with asyncio.timeout(deadline - self._clock.monotonic()):
                    answer = await asyncio.shield(task)
        except TimeoutError as error:
            raise _too_late(question.request) from error
        except (DeadlineExceeded, ServiceUnavailable) as error:
            unsure = isinstance(error, ServiceUnavailable) and error.sent and question.request.once
            if leader or unsure or self._clock.monotonic() >= deadline:
                raise
            return None
        finally:
            flight.waiters -= 1
            if not flight.waiters and not task.done():
                flight.abandoned = True
                if not flight.is_looking:
                    task.cancel()
                self._forget(place, task)
        if answer.cached or flight.counted:
            return Answer(answer.completion, cached=True)
        flight.counted = True  # whoever comes first, should the leader have been cancelled
        return answer

    def _take_off(self, place: _Place, question: Question, deadline: float, on_delta: OnDelta | None) -> None:
        flight = _Flight()
        task = asyncio.create_task(self._fly(flight, place[0], question, deadline, on_delta))
        self._flights[place] = flight, task
        self._running.add(task)
        task.add_done_callback(partial(self._forget, place))
        task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[Answer]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # its waiters have it; where there are none, nobody needs it

    def _forget(self, place: _Place, task: asyncio.Task[Answer]) -> None:
        if place in self._flights and self._flights[place][1] is task:
            del self._flights[place]

    async def _fly(
        self, flight: _Flight, key: str, question: Question, deadline: float, on_delta: OnDelta | None
    ) -> Answer:
        with span("cache lookup", "client") as looking:
            lookup = Lookup(key, question.policy.max_age, looking.traceparent)
            while (found := await self._look_up(lookup)).status is LookupStatus.BUSY:
                if self._clock.monotonic() >= deadline or flight.abandoned:
                    raise _too_late(question.request)
                await self._next_tick()
        flight.is_looking = False
        if (completion := completion_of(found)) is not None:
            return Answer(completion, cached=True)
        if flight.abandoned:
            if found.status is LookupStatus.LEAD and not any(place[0] == key for place in self._flights):
                self._release(key)  # else whoever asks next would wait until the lease runs out
            raise _too_late(question.request)
        if found.status is LookupStatus.LEAD:
            self._leading.add(key)
            self._keep_leases()
        try:
            completion = await self._complete(question.request, deadline, on_delta)
            entry = entry_of(key, question.request, completion)
        except BaseException:
            self._give_up(key)
            raise
        if entry is not None:
            self._leading.discard(key)
            self._store(entry)
        else:
            self._give_up(key)
        return Answer(completion, cached=False)

    def _give_up(self, key: str) -> None:
        if key in self._leading:
            self._leading.discard(key)
            self._release(key)

    async def _complete(self, request: CompletionRequest, deadline: float, on_delta: OnDelta | None) -> Completion:
        """Goes on trying while the Adapter can't be reached; what a provider says is final, the Adapter has retried
        it. Raises ServiceUnavailable where a call that may be billed must not be repeated, or an answer has begun."""
        told = False

        def tell(piece: str) -> None:
            nonlocal told
            told = True
            if on_delta is not None:
                on_delta(piece)

        pause = FIRST_RETRY
        while True:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise _too_late(request)
            try:
                self._failpoints.hit("call_before")
                within = replace(request, timeout=left)
                completion = await self._gateway.complete(within, None if on_delta is None else tell)
                self._failpoints.hit("call_after")
                return storable_completion(completion)
            except ServiceUnavailable as error:
                if told or (error.sent and request.once):
                    raise
                if deadline - self._clock.monotonic() <= pause:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_RETRY)

    async def _next_tick(self) -> None:
        """Everyone who waits for another process looks again in one call."""
        if self._tick is None or self._tick.done():
            self._tick = asyncio.create_task(asyncio.sleep(BUSY_TICK))
        await asyncio.shield(self._tick)

    def _keep_leases(self) -> None:
        if self._renewer is None or self._renewer.done():
            self._renewer = asyncio.create_task(self._renew(), context=Context())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_TTL / 3)
            if not (keys := sorted(self._leading)):
                return
            try:
                await self._cache.renew(keys, self._claimant_id)
            except DomainError as error:
                self._degraded(error)

    async def _lookup_batch(self, lookups: Sequence[Lookup]) -> Sequence[Found]:
        return await self._found(lookups, self._claimant_id)

    async def _read_batch(self, lookups: Sequence[Lookup]) -> Sequence[Found]:
        return await self._found(lookups, "")

    async def _found(self, lookups: Sequence[Lookup], claimant_id: str) -> Sequence[Found]:
        try:
            self._failpoints.hit("lookup_before")
            found = await self._cache.lookup(lookups, claimant_id)
            self._failpoints.hit("lookup_after")
            return found
        except DomainError as error:
            self._degraded(error)
            return [Found(LookupStatus.MISS)] * len(lookups)

    async def _store_batch(self, entries: Sequence[CacheEntry]) -> Sequence[None]:
        try:
            self._failpoints.hit("store_before")
            await self._cache.store(entries, self._claimant_id)
            self._failpoints.hit("store_after")
        except DomainError as error:
            self._degraded(error)
        return [None] * len(entries)

    async def _release_batch(self, keys: Sequence[str]) -> Sequence[None]:
        try:
            await self._cache.release(keys, self._claimant_id)
        except DomainError as error:
            self._degraded(error)
        return [None] * len(keys)

    def _degraded(self, error: DomainError) -> None:
        """A dead cache multiplies what is paid, so it is said, but not once per question."""
        self.cache_failures += 1
        now = self._clock.monotonic()
        if now - self._last_warning >= 30:
            self._last_warning = now
            log.warning("the cache does not answer, every question is asked anew: %s", error)


def _too_late(request: CompletionRequest) -> DeadlineExceeded:
    return DeadlineExceeded(f"{request.model!r} gave no answer in time; raise limits.stage_timeout or ask for less")
