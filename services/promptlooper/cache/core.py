"""The Cache's core: envelopes, ages and counts over a store."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Sequence

from promptlooper.cache.envelope import IDENTITY, MAX_VALUE, opened, sealed
from promptlooper.cache.store.contract import Lease, Store, Wanted
from promptlooper.caching import LEASE_TTL, CacheEntry, CacheStats, Found, Lookup, LookupStatus
from promptlooper.clock import Clock, SystemClock
from promptlooper.errors import InvalidArgument, TooLarge
from promptlooper.tracing import child

log = logging.getLogger(__name__)

_SCOPE = re.compile(r"[^\s:.]+\.[^\s:]+")
_KEY = re.compile(_SCOPE.pattern + r":[0-9a-f]{64}")
_MAX_KEY = 512  # characters
_ROUNDS = 3  # of looking past values that cannot be used, while others may replace them

_OF_LEASE = {
    Lease.HELD: Found(LookupStatus.LEAD),
    Lease.TAKEN: Found(LookupStatus.BUSY),
    Lease.NOT_ASKED: Found(LookupStatus.MISS),
}


class CacheCore:
    """Answers every call at once. A key or scope that is not of the form raises InvalidArgument."""

    def __init__(self, store: Store, *, clock: Clock | None = None, lease_ttl: float = LEASE_TTL) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self.lease_ttl = lease_ttl
        self.found: Counter[LookupStatus] = Counter()
        self.stored = self.stored_bytes = 0

    async def lookup(self, lookups: Sequence[Lookup], claimant_id: str) -> list[Found]:
        _check_keys([lookup.key for lookup in lookups])
        began_ns = time.time_ns()
        found: list[Found | None] = [None] * len(lookups)
        wanted = {index: Wanted(lookup.key) for index, lookup in enumerate(lookups)}
        for _ in range(_ROUNDS):
            if not wanted:
                break
            claims = await self._store.claim(list(wanted.values()), claimant_id, self.lease_ttl)
            now = self._clock.now().timestamp()
            again: dict[int, Wanted] = {}
            for index, claim in zip(wanted, claims, strict=True):
                lookup = lookups[index]
                if isinstance(claim, Lease):
                    found[index] = _OF_LEASE[claim]
                elif (hit := self._usable(lookup, claim, now)) is not None:
                    found[index] = hit
                else:
                    again[index] = Wanted(lookup.key, claim[:IDENTITY])
            wanted = again
        # What is still left changed under every look: look again later.
        busy = _OF_LEASE[Lease.TAKEN if claimant_id else Lease.NOT_ASKED]
        results = [busy if one is None else one for one in found]
        self.found.update(one.status for one in results)
        for lookup, one in zip(lookups, results, strict=True):
            if lookup.traceparent:
                with child("lookup", lookup.traceparent, "server", began_ns) as looked:
                    looked.set({"promptlooper.cache.result": one.status.value})
        return results

    def _usable(self, lookup: Lookup, data: bytes, now: float) -> Found | None:
        contents = opened(lookup.key, data)
        if contents is None:
            log.warning("the stored value of key %r cannot be read and counts as none", lookup.key)
            return None
        value, stored_at = contents
        if lookup.max_age is not None and now - stored_at > lookup.max_age:
            return None
        return Found(LookupStatus.HIT, value, stored_at)

    async def renew(self, keys: Sequence[str], claimant_id: str) -> list[bool]:
        _check_keys(keys)
        if not keys or not claimant_id:
            return [False] * len(keys)
        return await self._store.renew(keys, claimant_id, self.lease_ttl)

    async def store(self, entries: Sequence[CacheEntry], claimant_id: str) -> None:
        """Values over 1 MiB are not stored: the others are, the leases end, and TooLarge is raised."""
        _check_keys([entry.key for entry in entries])
        now, began_ns = self._clock.now().timestamp(), time.time_ns()
        fitting = [entry for entry in entries if len(entry.value) <= MAX_VALUE]
        if fitting:
            await self._store.store([(one.key, sealed(one.key, one.value, now)) for one in fitting], claimant_id)
            for one in fitting:
                if one.traceparent:
                    with child("store", one.traceparent, "server", began_ns):
                        pass
            self.stored += len(fitting)
            self.stored_bytes += sum(len(one.value) for one in fitting)
        if len(fitting) < len(entries):
            large = [entry for entry in entries if len(entry.value) > MAX_VALUE]
            if claimant_id:
                await self._store.release([entry.key for entry in large], claimant_id)
            raise TooLarge(
                f"the value of key {large[0].key!r} has {len(large[0].value)} bytes; at most {MAX_VALUE} are stored"
            )

    async def release(self, keys: Sequence[str], claimant_id: str) -> None:
        _check_keys(keys)
        if keys and claimant_id:
            await self._store.release(keys, claimant_id)

    async def purge(self, scope: str) -> int:
        if scope and not _SCOPE.fullmatch(scope):
            raise InvalidArgument(f"the scope {scope!r} is not <project>.<namespace>, such as 'default.default'")
        return await self._store.purge(scope)

    async def stats(self) -> CacheStats:
        entries, size = await self._store.size()
        misses = self.found[LookupStatus.LEAD] + self.found[LookupStatus.MISS]
        return CacheStats(self._store.backend, entries, size, self.found[LookupStatus.HIT], misses)


def _check_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if len(key) > _MAX_KEY or not _KEY.fullmatch(key):
            raise InvalidArgument(f"the key {key!r} is not <project>.<namespace>:<64 hex digits>")
