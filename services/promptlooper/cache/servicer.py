"""The Cache's RPCs: convert in, ask the core, convert out."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from promptlooper.caching import LEASE_TTL, ResponseCache
from promptlooper.v1 import cache_service_pb2 as pb
from promptlooper.v1.cache_service_pb2_grpc import CacheServiceServicer, add_CacheServiceServicer_to_server
from promptlooper.wire.caching import entry_from_pb, found_to_pb, lookup_from_pb, stats_to_pb
from promptlooper.wire.limits import refuse_too_many

SERVICE = pb.DESCRIPTOR.services_by_name["CacheService"]
SERVICE_NAME = SERVICE.full_name

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def register(server: grpc.aio.Server, core: ResponseCache) -> None:
    add_CacheServiceServicer_to_server(CacheServicer(core), server)


class CacheServicer(CacheServiceServicer):
    def __init__(self, core: ResponseCache, *, lease_ttl: float = LEASE_TTL) -> None:
        self._core = core
        self._lease_ms = round(lease_ttl * 1000)

    async def Lookup(self, request: pb.LookupRequest, context: Context) -> pb.LookupResponse:
        refuse_too_many(request.items, "items")
        lookups = [lookup_from_pb(item, f"items[{i}]") for i, item in enumerate(request.items)]
        found = await self._core.lookup(lookups, request.claimant_id)
        return pb.LookupResponse(results=[found_to_pb(one) for one in found], lease_ms=self._lease_ms)

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        refuse_too_many(request.keys, "keys")
        return pb.RenewResponse(held=await self._core.renew(list(request.keys), request.claimant_id))

    async def Store(self, request: pb.StoreRequest, context: Context) -> pb.StoreResponse:
        refuse_too_many(request.entries, "entries")
        entries = [entry_from_pb(entry, f"entries[{i}]") for i, entry in enumerate(request.entries)]
        await self._core.store(entries, request.claimant_id)
        return pb.StoreResponse()

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        refuse_too_many(request.keys, "keys")
        await self._core.release(list(request.keys), request.claimant_id)
        return pb.ReleaseResponse()

    async def Purge(self, request: pb.PurgeRequest, context: Context) -> pb.PurgeResponse:
        return pb.PurgeResponse(deleted=await self._core.purge(request.scope, request.model))

    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.GetStatsResponse:
        return stats_to_pb(await self._core.stats())
