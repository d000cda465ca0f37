"""Remembered answers: what the Runner asks of the Cache. Every call takes lists and answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

LEASE_TTL = 10.0  # seconds; a leader renews at a third of it


class LookupStatus(Enum):
    HIT = "hit"
    LEAD = "lead"  # no value; the caller holds the lease and should ask
    BUSY = "busy"  # no value; another claimant is asking
    MISS = "miss"  # no value; no lease was asked for


@dataclass(frozen=True, slots=True)
class Lookup:
    key: str  # <project>.<namespace>:<64 hex>
    max_age: float | None = None  # seconds; an older value is not a hit
    traceparent: str = ""  # of who asks, where that is traced


@dataclass(frozen=True, slots=True)
class Found:
    status: LookupStatus
    value: bytes = b""
    stored_at: float = 0.0  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class CacheEntry:
    key: str
    value: bytes
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class CacheStats:
    backend: str  # redis or file
    entries: int
    bytes: int
    hits: int
    misses: int


class ResponseCache(Protocol):
    """The Cache: its core when embedded, its client when distributed. Any call may raise CacheUnavailable or
    ServiceUnavailable, which callers take for a miss. `claimant_id` is one name per process; empty takes no leases.
    A repeated look-up of one claimant gets its lease again."""

    async def lookup(self, lookups: Sequence[Lookup], claimant_id: str) -> list[Found]: ...

    async def renew(self, keys: Sequence[str], claimant_id: str) -> list[bool]: ...

    async def store(self, entries: Sequence[CacheEntry], claimant_id: str) -> None: ...

    async def release(self, keys: Sequence[str], claimant_id: str) -> None: ...

    async def purge(self, scope: str) -> int:
        """Deletes the values of a scope `<project>.<namespace>`, or all for "". Returns how many."""
        ...

    async def stats(self) -> CacheStats: ...
