"""Remembered answers on the wire."""

from __future__ import annotations

from promptlooper.caching import CacheEntry, CacheStats, Found, Lookup, LookupStatus
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
    return pb.CacheEntry(key=entry.key, value=entry.value, traceparent=entry.traceparent)


def entry_from_pb(message: pb.CacheEntry) -> CacheEntry:
    return CacheEntry(message.key, message.value, message.traceparent)


def stats_to_pb(stats: CacheStats) -> pb.GetStatsResponse:
    return pb.GetStatsResponse(
        backend=stats.backend, entries=stats.entries, bytes=stats.bytes, hits=stats.hits, misses=stats.misses
    )


def runner_stats_to_pb(stats: CacheStats) -> runner_pb.GetCacheStatsResponse:
    return runner_pb.GetCacheStatsResponse(
        backend=stats.backend, entries=stats.entries, bytes=stats.bytes, hits=stats.hits, misses=stats.misses
    )


def stats_from_pb(message: pb.GetStatsResponse | runner_pb.GetCacheStatsResponse) -> CacheStats:
    return CacheStats(message.backend, message.entries, message.bytes, message.hits, message.misses)
