"""A Cache over gRPC with a core that keeps values in a dict."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

import grpc
import pytest

from promptlooper.cache.servicer import SERVICE_NAME, register
from promptlooper.caching import CacheEntry, CacheStats, Found, Lookup, LookupStatus, ResponseCache
from promptlooper.clients.cache import CacheClient
from promptlooper.rpc.client import open_channel
from promptlooper.rpc.server import serving


class DictCache(ResponseCache):
    """Records its calls; raises `error` where one is set."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.calls: list[tuple[object, ...]] = []
        self.error: Exception | None = None

    def _called(self, *call: object) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    async def lookup(self, lookups: Sequence[Lookup], claimant_id: str) -> list[Found]:
        self._called("lookup", list(lookups), claimant_id)
        return [
            Found(LookupStatus.HIT, self.values[one.key], 1_700_000_000.25)
            if one.key in self.values
            else Found(LookupStatus.LEAD if claimant_id else LookupStatus.MISS)
            for one in lookups
        ]

    async def renew(self, keys: Sequence[str], claimant_id: str) -> list[bool]:
        self._called("renew", list(keys), claimant_id)
        return [not key.endswith("lost") for key in keys]

    async def store(self, entries: Sequence[CacheEntry], claimant_id: str) -> None:
        self._called("store", [entry.key for entry in entries], claimant_id)
        self.values.update((entry.key, entry.value) for entry in entries)

    async def release(self, keys: Sequence[str], claimant_id: str) -> None:
        self._called("release", list(keys), claimant_id)

    async def purge(self, scope: str, model: str = "") -> int:
        self._called("purge", scope, model)
        return 7

    async def stats(self) -> CacheStats:
        self._called("stats")
        return CacheStats("redis", 1, 2, 3, 4)


@dataclass
class CacheOnWire:
    core: DictCache
    client: CacheClient
    channel: grpc.aio.Channel
    address: str


@pytest.fixture
async def cache() -> AsyncIterator[CacheOnWire]:
    core = DictCache()
    services = {SERVICE_NAME: partial(register, core=core)}
    async with serving("127.0.0.1:0", services, health_listen="127.0.0.1:0") as server:
        address = f"127.0.0.1:{server.port}"
        async with open_channel(address) as channel:
            yield CacheOnWire(core, CacheClient(channel, address, deadline=10.0), channel, address)
