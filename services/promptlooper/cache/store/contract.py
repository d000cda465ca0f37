"""What the core asks of a store: bytes and leases by key, in lists. Stores do not look inside the bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from promptlooper.breaker import BreakerState
from promptlooper.cache.purges import Purge


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key to look up. `seen` begins the bytes that the caller got for it and cannot use: a value that still begins so
    counts as none. None where nothing was seen."""

    key: str
    seen: bytes | None = None


class Lease(Enum):
    HELD = "held"  # by the claimant, for its full time again
    TAKEN = "taken"  # by another
    NOT_ASKED = "not asked"  # the claimant is ""


Claim = bytes | Lease
"""A value, or what became of the lease where there is none."""


Claims = tuple[list[Claim], int]
"""In the order of what was wanted, and how many purges there were."""


class Store(Protocol):
    """Every method raises CacheUnavailable where the store cannot be reached or has no room.

    For one key, `claim` decides on value and lease in one step: of many claimants at once exactly one gets HELD.
    """

    @property
    def backend(self) -> str: ...

    @property
    def breaker(self) -> BreakerState: ...

    async def claim(self, wanted: Sequence[Wanted], claimant_id: str, lease_ttl: float) -> Claims: ...

    async def renew(self, keys: Sequence[str], claimant_id: str, lease_ttl: float) -> list[bool]: ...

    async def store(self, entries: Sequence[tuple[str, bytes]], claimant_id: str) -> int:
        """Keeps the bytes and ends this claimant's leases on their keys. Returns how many purges there were."""
        ...

    async def release(self, keys: Sequence[str], claimant_id: str) -> None: ...

    async def purge(self, purge: Purge) -> int:
        """Counts the purge for all who read, and deletes what can be told by its key. Returns how many that were."""
        ...

    async def purges(self) -> Mapping[str, int]:
        """What Purges is made of."""
        ...

    async def add(self, counts: Mapping[str, int], now: int) -> None:
        """Adds to counts that outlive processes, beginning with `since`: the first `now`."""
        ...

    async def counts(self) -> Mapping[str, int]: ...

    async def size(self) -> tuple[int, int]:
        """Entries and bytes."""
        ...
