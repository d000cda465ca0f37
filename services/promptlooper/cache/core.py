"""The Cache's core: envelopes, ages, purges and counts over a store."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from promptlooper.cache.counts import SINCE, Counts
from promptlooper.cache.envelope import IDENTITY, MAX_VALUE, Opened, opened, sealed
from promptlooper.cache.purges import ANY, Purge, Purges
from promptlooper.cache.store.contract import Lease, Store, Wanted
from promptlooper.caching import LEASE_TTL, CacheEntry, CacheStats, Found, Lookup, LookupStatus, Worth
from promptlooper.clock import Clock, SystemClock
from promptlooper.errors import CacheUnavailable, InvalidArgument, TooLarge
from promptlooper.tracing import child

log = logging.getLogger(__name__)

_SCOPE = re.compile(r"[^\s:.]+\.[^\s:]+")
_KEY = re.compile(_SCOPE.pattern + r":[0-9a-f]{64}")
_LONGEST = 512  # characters of a key, and of a model
_ROUNDS = 2  # of looking: past values that cannot be used, which others may replace meanwhile

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
        self._purges: Purges | None = None  # as far as is known; looked at again where their number is another
        self.lease_ttl = lease_ttl
        self.counts = Counts(store, self._clock)

    async def lookup(self, lookups: Sequence[Lookup], claimant_id: str) -> list[Found]:
        _check_keys([lookup.key for lookup in lookups])
        began_ns = time.time_ns()
        found: list[Found | None] = [None] * len(lookups)
        wanted = {index: Wanted(lookup.key) for index, lookup in enumerate(lookups)}
        for _ in range(_ROUNDS):
            if not wanted:
                break
            with self._counted_errors():
                claims, number = await self._store.claim(list(wanted.values()), claimant_id, self.lease_ttl)
                purges = await self._purges_of(number)
            now = self._clock.now().timestamp()
            again: dict[int, Wanted] = {}
            for index, claim in zip(wanted, claims, strict=True):
                lookup = lookups[index]
                if isinstance(claim, Lease):
                    found[index] = _OF_LEASE[claim]
                elif (hit := self._usable(lookup, claim, now, purges)) is not None:
                    found[index] = hit
                else:
                    again[index] = Wanted(lookup.key, claim[:IDENTITY])
            wanted = again
        # What is still left changed under every look: look again later.
        busy = _OF_LEASE[Lease.TAKEN if claimant_id else Lease.NOT_ASKED]
        results = [busy if one is None else one for one in found]
        for lookup, one in zip(lookups, results, strict=True):
            self.counts.add(one.status.value)
            if lookup.traceparent:
                with child("lookup", lookup.traceparent, "server", began_ns) as looked:
                    looked.set({"promptlooper.cache.result": one.status.value})
        return results

    def _usable(self, lookup: Lookup, data: bytes, now: float, purges: Purges) -> Found | None:
        contents = opened(lookup.key, data)
        if contents is None:
            self.counts.add("unreadable")
            log.warning("the stored value of key %r cannot be read and counts as none", lookup.key)
            return None
        if lookup.max_age is not None and now - contents.stored_at > lookup.max_age:
            return None
        if contents.generation != purges.generation(lookup.key, contents.model):
            return None
        self.counts.saved(contents.worth)
        return Found(LookupStatus.HIT, contents.value, contents.stored_at)

    async def _purges_of(self, number: int | None = None) -> Purges:
        """Those that are known, where they are so many."""
        if self._purges is None or (number is not None and number != self._purges.number):
            self._purges = Purges(await self._store.purges())
        return self._purges

    @contextmanager
    def _counted_errors(self) -> Iterator[None]:
        try:
            yield
        except CacheUnavailable:
            self.counts.add("errors")
            raise

    async def renew(self, keys: Sequence[str], claimant_id: str) -> list[bool]:
        _check_keys(keys)
        if not keys or not claimant_id:
            return [False] * len(keys)
        with self._counted_errors():
            return await self._store.renew(keys, claimant_id, self.lease_ttl)

    async def store(self, entries: Sequence[CacheEntry], claimant_id: str) -> None:
        """Values over 1 MiB are not stored: the others are, the leases end, and TooLarge is raised."""
        _check_keys([entry.key for entry in entries])
        _check_models([entry.model for entry in entries])
        now, began_ns = self._clock.now().timestamp(), time.time_ns()
        fitting = [entry for entry in entries if len(entry.value) <= MAX_VALUE]
        if fitting:
            with self._counted_errors():
                purges = await self._purges_of()
                values = [(one.key, _sealed(one, now, purges)) for one in fitting]
                await self._purges_of(await self._store.store(values, claimant_id))
            for one in fitting:
                if one.traceparent:
                    with child("store", one.traceparent, "server", began_ns):
                        pass
            self.counts.add("stored", len(fitting))
            self.counts.add("stored_bytes", sum(len(one.value) for one in fitting))
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

    async def purge(self, scope: str, model: str = "") -> int:
        """Holds from now on, also where it is cut short before all is deleted."""
        if scope and not _SCOPE.fullmatch(scope):
            raise InvalidArgument(
                f"the scope {scope!r} is not <project>.<namespace>, such as 'default.default'; either may be '*'"
            )
        _check_models([model])
        project, _, namespace = (scope or f"{ANY}.{ANY}").partition(".")
        purge = Purge("" if project == ANY else project, "" if namespace == ANY else namespace, model)
        return await self._store.purge(purge)

    async def stats(self) -> CacheStats:
        """Where the store is away: what this process did, and how its breaker is."""
        entries: int | None = None
        size: int | None = None
        try:
            entries, size = await self._store.size()
            counts = await self.counts.of_all()
        except CacheUnavailable as error:
            log.debug("what the store holds is not known: %s", error)
            counts = self.counts.here
        said = {name: counts.get(name, 0) for name in _COUNTED}
        saved = {name: counts.get(f"saved_{name}", 0) for name in _SAVED}
        return CacheStats(
            self._store.backend,
            entries,
            size,
            hits=counts.get(LookupStatus.HIT.value, 0),
            misses=counts.get(LookupStatus.LEAD.value, 0) + counts.get(LookupStatus.MISS.value, 0),
            saved=Worth(**saved, cost_nanousd=counts.get("saved_nanousd", 0)),
            breaker=self._store.breaker.value,
            counted_since=counts.get(SINCE, 0),
            **said,
        )


_COUNTED = ("busy", "stored", "stored_bytes", "errors", "unreadable", "saved_unpriced")
_SAVED = ("tokens_in", "tokens_out", "latency_ms")


def _sealed(entry: CacheEntry, now: float, purges: Purges) -> bytes:
    generation = purges.generation(entry.key, entry.model)
    return sealed(entry.key, Opened(entry.value, now, generation, entry.model, entry.worth))


def _check_models(models: Sequence[str]) -> None:
    for model in models:
        if len(model) > _LONGEST:
            raise InvalidArgument(
                f"the model {model[:50]!r}… has {len(model)} characters; at most {_LONGEST} are taken"
            )


def _check_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if len(key) > _LONGEST or not _KEY.fullmatch(key):
            raise InvalidArgument(f"the key {key!r} is not <project>.<namespace>:<64 hex digits>")
