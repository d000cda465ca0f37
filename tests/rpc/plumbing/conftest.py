"""A cache service that does what a test says, and a channel to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from promptlooper.rpc.client import open_channel
from promptlooper.rpc.server import Serving, serving
from promptlooper.v1 import cache_service_pb2, cache_service_pb2_grpc

CACHE = "promptlooper.v1.CacheService"
Behaviour = Callable[[Any, Any], Awaitable[Any]]


class ScriptedCache(cache_service_pb2_grpc.CacheServiceServicer):
    """Answers as told: `lookup` for Lookup, `purge` for Purge; counts calls."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.calls = 0

    async def Lookup(self, request: Any, context: Any) -> Any:
        self.calls += 1
        return await self.behaviour(request, context) or cache_service_pb2.LookupResponse()


@dataclass
class Wire:
    serving: Serving
    address: str
    channel: grpc.aio.Channel
    stub: cache_service_pb2_grpc.CacheServiceStub
    servicer: ScriptedCache

    async def lookup(self, **options: Any) -> Any:
        return await self.stub.Lookup(cache_service_pb2.LookupRequest(), **options)


Connect = Callable[..., AbstractAsyncContextManager[Wire]]


@pytest.fixture
def connect() -> Connect:
    @asynccontextmanager
    async def connected(behaviour: Behaviour, **options: Any) -> AsyncIterator[Wire]:
        servicer = ScriptedCache(behaviour)

        def register(server: grpc.aio.Server) -> None:
            cache_service_pb2_grpc.add_CacheServiceServicer_to_server(servicer, server)

        async with serving("127.0.0.1:0", {CACHE: register}, **options) as running:
            address = f"127.0.0.1:{running.port}"
            async with open_channel(address, cache_service_pb2.DESCRIPTOR) as channel:
                stub = cache_service_pb2_grpc.CacheServiceStub(channel)
                yield Wire(running, address, channel, stub, servicer)

    return connected
