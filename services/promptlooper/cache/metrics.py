"""The Cache's metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from promptlooper.cache.core import CacheCore
from promptlooper.cache.store.redis import RedisStore
from promptlooper.caching import LookupStatus
from promptlooper.rpc.metrics import counter, counters, gauge


class CacheMetrics(Collector):
    def __init__(self, core: CacheCore, store: RedisStore) -> None:
        self._core, self._store = core, store

    def collect(self) -> Iterator[Metric]:
        core, store = self._core, self._store
        found = {status.value: core.found[status] for status in LookupStatus}
        yield counters("cache_lookups", "Keys looked up: hit, lead, busy or miss.", ("result",), found)
        yield counter("cache_stored", "Answers stored.", core.stored)
        yield counter("cache_stored_bytes", "Bytes of answers stored, before packing.", core.stored_bytes)
        yield gauge("redis_up", "0 while Redis does not answer: the breaker is open, calls fail at once.", store.is_up)
        yield counter("redis_refusals", "Calls that Redis answered with an error.", store.refusals)
