"""Remembered answers on the wire."""

from __future__ import annotations

from typing import Any

from promptlooper.caching import UNKNOWN, CacheEntry, CacheStats, Found, Lookup, LookupStatus, Worth
from promptlooper.errors import InvalidArgument
from promptlooper.v1 import cache_service_pb2 as pb
from promptlooper.v1 import runner_service_pb2 as runner_pb
from promptlooper.wire.scalars import EnumOnWire, epoch_of, epoch_timestamp, milliseconds, seconds

STATUSES = EnumOnWire(LookupStatus, pb.LookupStatus, "LOOKUP_STATUS_")


def lookup_to_pb(lookup: Lookup) -> pb.LookupItem:
    return pb.LookupItem(key=lookup.key, max_age_ms=milliseconds(lookup.max_age), traceparent=lookup.traceparent)


def lookup_from_pb(message: pb.LookupItem, field: str = "item") -> Lookup:
    return Lookup(message.key, seconds(message.max_age_ms, f"{field}.max_age_ms"), message.traceparent)


def found_to_pb(found: Found) -> pb.LookupResult:
    return pb.LookupResult(
        status=STATUSES.number(found.status), value=found.value, stored_at=epoch_timestamp(found.stored_at)
    )


def found_from_pb(message: pb.LookupResult, field: str = "result") -> Found:
    return Found(
        STATUSES.member(message.status, f"{field}.status"),
        message.value,
        epoch_of(message.stored_at) if message.HasField("stored_at") else 0.0,
    )


def entry_to_pb(entry: CacheEntry) -> pb.CacheEntry:
    return pb.CacheEntry(
        key=entry.key,
        value=entry.value,
        traceparent=entry.traceparent,
        model=entry.model,
        worth=worth_to_pb(entry.worth),
    )


def entry_from_pb(message: pb.CacheEntry, field: str = "entry") -> CacheEntry:
    worth = worth_from_pb(message.worth, f"{field}.worth")
    return CacheEntry(message.key, message.value, message.traceparent, message.model, worth)


def worth_to_pb(worth: Worth) -> pb.Worth | None:
    if worth is UNKNOWN:
        return None
    return pb.Worth(
        tokens_in=worth.tokens_in,
        tokens_out=worth.tokens_out,
        latency_ms=worth.latency_ms,
        cost_nanousd=worth.cost_nanousd,
    )


def worth_from_pb(message: pb.Worth, field: str = "worth") -> Worth:
    cost = message.cost_nanousd if message.HasField("cost_nanousd") else None
    for name, number in (
        ("tokens_in", message.tokens_in),
        ("tokens_out", message.tokens_out),
        ("latency_ms", message.latency_ms),
        ("cost_nanousd", cost or 0),
    ):
        if number < 0:
            raise InvalidArgument(f"{field}.{name} is {number}: it can't be below 0", field=f"{field}.{name}")
    return Worth(message.tokens_in, message.tokens_out, message.latency_ms, cost)


def stats_to_pb(stats: CacheStats) -> pb.GetStatsResponse:
    return pb.GetStatsResponse(**_stats_fields(stats))


def runner_stats_to_pb(stats: CacheStats) -> runner_pb.GetCacheStatsResponse:
    return runner_pb.GetCacheStatsResponse(**_stats_fields(stats))


_COUNTS = ("hits", "misses", "busy", "stored", "stored_bytes", "errors", "unreadable", "saved_unpriced")


def _stats_fields(stats: CacheStats) -> dict[str, Any]:
    return {
        "backend": stats.backend,
        "entries": stats.entries or 0,
        "bytes": stats.bytes or 0,
        "saved": worth_to_pb(stats.saved),
        "breaker": stats.breaker,
        "counted_since": epoch_timestamp(stats.counted_since),
        "store_away": stats.entries is None,
        **{name: getattr(stats, name) for name in _COUNTS},
    }


def stats_from_pb(message: pb.GetStatsResponse | runner_pb.GetCacheStatsResponse) -> CacheStats:
    return CacheStats(
        message.backend,
        None if message.store_away else message.entries,
        None if message.store_away else message.bytes,
        saved=worth_from_pb(message.saved, "saved"),
        breaker=message.breaker or "closed",
        counted_since=epoch_of(message.counted_since) if message.HasField("counted_since") else 0.0,
        **{name: getattr(message, name) for name in _COUNTS},
    )


def scope_for(scope: str, model: str) -> str:
    """Never empty with a model: who does not know `model` yet would forget everything."""
    return scope or "*.*" if model else scope
