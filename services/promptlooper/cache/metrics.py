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
        counts, store = self._core.counts.here, self._store
        found = {status.value: counts[status.value] for status in LookupStatus}
        saved = {"in": counts["saved_tokens_in"], "out": counts["saved_tokens_out"]}
        yield counters("cache_lookups", "Keys looked up: hit, lead, busy or miss.", ("result",), found)
        yield counter("cache_stored", "Answers stored.", counts["stored"])
        yield counter("cache_stored_bytes", "Bytes of answers stored, before packing.", counts["stored_bytes"])
        yield counter(
            "cache_hits_usd", "What the answers of hits had cost, where known.", counts["saved_nanousd"] / 1e9
        )
        yield counter("cache_hits_unpriced", "Hits whose price is unknown.", counts["saved_unpriced"])
        yield counters("cache_hits_tokens", "Tokens that hits saved.", ("direction",), saved)
        yield counter(
            "cache_hits_seconds", "What providers took for the answers of hits.", counts["saved_latency_ms"] / 1e3
        )
        yield counter("cache_errors", "Calls that Redis did not answer, or refused.", counts["errors"])
        yield counter("cache_unreadable", "Stored values that were damaged or not their key's.", counts["unreadable"])
        yield gauge("redis_up", "0 while Redis does not answer: the breaker is open, calls fail at once.", store.is_up)
        yield counter("redis_failures", "Calls that Redis did not answer, or not in time.", store.failures)
        yield counter("redis_refusals", "Calls that Redis answered with an error.", store.refusals)
