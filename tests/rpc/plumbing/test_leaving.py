"""Servers that leave while clients call: with another replica there, nobody sees it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from promptlooper.backing import free_port
from promptlooper.errors import StoreUnavailable
from promptlooper.rpc.client import open_channel
from promptlooper.rpc.server import serving
from promptlooper.testing.eventually import eventually
from promptlooper.testing.proxy import fault_proxy
from promptlooper.v1 import cache_service_pb2 as pb
from promptlooper.v1.cache_service_pb2_grpc import (
    CacheServiceServicer,
    CacheServiceStub,
    add_CacheServiceServicer_to_server,
)

CACHE = "promptlooper.v1.CacheService"


class Replica(CacheServiceServicer):
    """A server that can leave and come back on its port. Counts the calls that it took."""

    def __init__(self) -> None:
        self.port = free_port()
        self.calls = 0
        self._stack = AsyncExitStack()

    async def Lookup(self, request: Any, context: Any) -> Any:
        self.calls += 1
        await asyncio.sleep(0.005)  # a call takes a while, so that some are under way when a server leaves
        return pb.LookupResponse()

    def register(self, server: grpc.aio.Server) -> None:
        add_CacheServiceServicer_to_server(self, server)

    async def come(self, **options: Any) -> None:
        services = {CACHE: self.register}
        await self._stack.enter_async_context(
            serving(f"127.0.0.1:{self.port}", services, health_listen="127.0.0.1:0", reflection=False, **options)
        )

    async def go(self) -> None:
        await self._stack.aclose()


def more_than(before: int, replica: Replica) -> Callable[[], bool]:
    return lambda: replica.calls > before


@asynccontextmanager
async def two_replicas() -> AsyncIterator[tuple[Replica, Replica, CacheServiceStub]]:
    """Both connected."""
    one, other = Replica(), Replica()
    async with AsyncExitStack() as stack:
        for replica in (one, other):
            await replica.come()
            stack.push_async_callback(replica.go)
        address = f"127.0.0.1:{one.port},127.0.0.1:{other.port}"
        stub = CacheServiceStub(await stack.enter_async_context(open_channel(address, pb.DESCRIPTOR)))
        while not (one.calls and other.calls):
            await stub.Lookup(pb.LookupRequest())
        yield one, other, stub


async def test_no_call_fails_while_replicas_are_restarted_in_turn() -> None:
    failed: Counter[str] = Counter()
    async with two_replicas() as (one, other, stub):
        over = asyncio.Event()

        async def client() -> None:
            while not over.is_set():
                try:
                    # Longer than a busy machine may stop for: this is about calls that are lost, not slow ones.
                    await stub.Lookup(pb.LookupRequest(), timeout=20.0)
                except grpc.aio.AioRpcError as error:
                    failed[str(error)] += 1

        clients = [asyncio.create_task(client()) for _ in range(20)]
        for replica in (one, other, one, other):
            await replica.go()
            before = replica.calls
            await replica.come()
            await eventually(more_than(before, replica))
        over.set()
        await asyncio.gather(*clients)
    assert not failed


async def test_replica_that_is_back_is_used_again_as_much_as_the_other() -> None:
    async with two_replicas() as (one, other, stub):
        await one.go()
        await stub.Lookup(pb.LookupRequest())
        await one.come()
        before = one.calls
        while one.calls == before:
            await stub.Lookup(pb.LookupRequest())
        one.calls = other.calls = 0
        for _ in range(20):
            await stub.Lookup(pb.LookupRequest())
        assert (one.calls, other.calls) == (10, 10)


async def test_call_that_a_server_dropped_is_repeated(connect: Any) -> None:
    dropped: list[Any] = []

    async def drop_once(request: Any, context: Any) -> None:
        if not dropped:
            dropped.append(request)
            await context.abort(grpc.StatusCode.CANCELLED, "as grpc's own server says of calls that it took and left")

    async with connect(drop_once) as wire:
        await wire.lookup()
        assert wire.servicer.calls == 2


async def test_all_of_many_calls_that_fail_at_once_are_repeated(connect: Any) -> None:
    seen: set[str] = set()

    async def fail_once(request: Any, context: Any) -> None:
        if request.claimant_id not in seen:
            seen.add(request.claimant_id)
            raise StoreUnavailable("just now")

    async with connect(fail_once) as wire:
        lookups = (wire.stub.Lookup(pb.LookupRequest(claimant_id=str(n)), timeout=30) for n in range(200))
        await asyncio.gather(*lookups)
        assert wire.servicer.calls == 400


async def test_call_that_follows_the_end_of_a_stream_reaches_another_replica() -> None:
    calls: Counter[str] = Counter()
    leaving = asyncio.Event()

    def named(name: str) -> dict[str, Callable[[grpc.aio.Server], None]]:
        async def watch(request: Any, context: Any) -> AsyncIterator[bytes]:
            calls[name] += 1
            yield name.encode()
            if name == "leaving":
                await leaving.wait()

        def register(server: grpc.aio.Server) -> None:
            handlers = {"Watch": grpc.unary_stream_rpc_method_handler(watch)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

        return {"t.T": register}

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serving("127.0.0.1:0", named("staying"), reflection=False))
        going = serving("127.0.0.1:0", named("leaving"), reflection=False, on_drain=leaving.set)
        second = await going.__aenter__()
        channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{first.port},127.0.0.1:{second.port}"))
        watch = channel.unary_stream("/t.T/Watch")
        while True:
            call = watch(b"")
            if await call.read() == b"leaving":
                break
        before = calls["leaving"]
        ending = asyncio.create_task(going.__aexit__(None, None, None))
        assert await call.read() is grpc.aio.EOF
        for _ in range(4):
            assert await watch(b"").read() == b"staying"
        await ending
        assert calls["leaving"] == before


async def test_server_says_that_it_leaves_before_it_refuses_calls() -> None:
    replica = Replica()
    services = {CACHE: replica.register}
    going = serving("127.0.0.1:0", services, health_listen="127.0.0.1:0", lame_duck=1_000.0)
    server = await going.__aenter__()
    async with open_channel(f"127.0.0.1:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=CACHE))
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        leaving = asyncio.create_task(going.__aexit__(None, None, None))
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await CacheServiceStub(channel).Lookup(pb.LookupRequest())
        leaving.cancel()
        await asyncio.wait({leaving})
        assert replica.calls == 1


async def test_reader_that_is_frozen_holds_a_leaving_server_for_its_grace_only() -> None:
    written = asyncio.Event()
    stopped = asyncio.Event()

    async def flood(request: Any, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1_000_000)
                written.set()
        finally:
            stopped.set()

    def register(server: grpc.aio.Server) -> None:
        handlers = {"Watch": grpc.unary_stream_rpc_method_handler(flood)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

    async with AsyncExitStack() as stack:
        going = serving("127.0.0.1:0", {"t.T": register}, reflection=False, grace=0.2)
        server = await going.__aenter__()
        proxy = await stack.enter_async_context(fault_proxy(server.port))
        health_proxy = await stack.enter_async_context(fault_proxy(server.health_port))
        channel = await stack.enter_async_context(open_channel(proxy.address))
        probes = await stack.enter_async_context(open_channel(health_proxy.address))
        health = health_pb2_grpc.HealthStub(probes).Watch(health_pb2.HealthCheckRequest())
        await health.read()
        call = channel.unary_stream("/t.T/Watch")(b"")
        await written.wait()
        proxy.hold()
        health_proxy.hold()
        async with asyncio.timeout(10):
            await going.__aexit__(None, None, None)
        assert stopped.is_set()
        call.cancel()
        health.cancel()
