"""What a cache did: in this process for metrics, and in the store for all processes that ever used it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from promptlooper.cache.store.contract import Store
from promptlooper.caching import Worth
from promptlooper.clock import Clock
from promptlooper.errors import CacheUnavailable

log = logging.getLogger(__name__)

EVERY = 5.0  # seconds between writes into the store: what a killed process did since the last one is not counted
SINCE = "since"
"""The name in the store for the first second that is counted, since the epoch."""


class Counts:
    """`here` counts by name: the statuses of look-ups, and stored, stored_bytes, errors, unreadable, saved_*."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self.here: Counter[str] = Counter()
        self._untold: Counter[str] = Counter()

    def add(self, name: str, number: int = 1) -> None:
        self.here[name] += number
        self._untold[name] += number

    def saved(self, worth: Worth) -> None:
        self.add("saved_tokens_in", worth.tokens_in)
        self.add("saved_tokens_out", worth.tokens_out)
        self.add("saved_latency_ms", worth.latency_ms)
        if worth.cost_nanousd is None:
            self.add("saved_unpriced")
        else:
            self.add("saved_nanousd", worth.cost_nanousd)

    async def of_all(self) -> Mapping[str, int]:
        """Raises CacheUnavailable."""
        await self.tell()
        return await self._store.counts()

    async def tell(self) -> None:
        """Raises CacheUnavailable, and keeps for the next time what it did not tell."""
        untold, self._untold = self._untold, Counter()
        if not untold:
            return
        try:
            await self._store.add(untold, int(self._clock.now().timestamp()))
        except BaseException:
            self._untold.update(untold)
            raise

    @asynccontextmanager
    async def told(self) -> AsyncIterator[None]:
        """Tells the store now and then, and on leaving."""
        teller = asyncio.create_task(self._tell_often())
        try:
            yield
        finally:
            teller.cancel()
            await asyncio.wait([teller])
            await self._try_to_tell()

    async def _tell_often(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            await self._try_to_tell()

    async def _try_to_tell(self) -> None:
        try:
            await self.tell()
        except CacheUnavailable as error:  # its store has said so already
            log.debug("what the cache did is told later: %s", error)
