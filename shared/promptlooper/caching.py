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
class Worth:
    """What an answer took, and a hit saves."""

    tokens_in: int = 0
    tokens_out: int = 0
    latency_ms: int = 0
    cost_nanousd: int | None = None  # None where the price is unknown, which is never 0


UNKNOWN = Worth()


@dataclass(frozen=True, slots=True)
class CacheEntry:
    key: str
    value: bytes
    traceparent: str = ""
    model: str = ""  # as it was asked for: `purge` finds it by that
    worth: Worth = UNKNOWN


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts are those of all processes since `counted_since`; what the store can't say while it is away is None."""

    backend: str  # redis or file
    entries: int | None
    bytes: int | None
    hits: int
    misses: int
    busy: int = 0  # looks at what another was asking
    stored: int = 0
    stored_bytes: int = 0  # before packing
    errors: int = 0  # calls that the store did not answer, or refused
    unreadable: int = 0  # values that were damaged, of another key or of another version
    saved: Worth = UNKNOWN  # by the hits, those of unknown price apart
    saved_unpriced: int = 0  # hits whose price is unknown
    breaker: str = "closed"  # closed, open or half_open: of the process that was asked
    counted_since: float = 0.0  # seconds since the epoch; 0 where that is not known


class ResponseCache(Protocol):
    """The Cache: its core when embedded, its client when distributed. Any call may raise CacheUnavailable or
    ServiceUnavailable, which callers take for a miss. `claimant_id` is one name per process; empty takes no leases.
    A repeated look-up of one claimant gets its lease again."""

    async def lookup(self, lookups: Sequence[Lookup], claimant_id: str) -> list[Found]: ...

    async def renew(self, keys: Sequence[str], claimant_id: str) -> list[bool]: ...

    async def store(self, entries: Sequence[CacheEntry], claimant_id: str) -> None: ...

    async def release(self, keys: Sequence[str], claimant_id: str) -> None: ...

    async def purge(self, scope: str, model: str = "") -> int:
        """Forgets the values of a scope `<project>.<namespace>`, either of which may be `*`, or of all for ""; with
        `model` only that model's. Returns how many were deleted at once: 0 with a model, whose values go with time."""
        ...

    async def stats(self) -> CacheStats: ...
