from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from promptlooper.errors import Draining
from promptlooper.rpc.client import domain_errors
from promptlooper.rpc.server import CannotListen, Serving, serving
from promptlooper.testing.eventually import eventually

CACHE = "promptlooper.v1.CacheService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def nothing(request: Any, context: Any) -> None:
    return None


async def health_of(port: int, service: str = "") -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def listed_by_reflection(address: str) -> list[str]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request])):
            return sorted(service.name for service in answer.list_services_response.service)
    raise AssertionError("no answer")


async def test_health_answers_on_the_main_port_and_alone_on_its_own(connect: Any) -> None:
    async with connect(nothing) as wire:
        for port in (wire.serving.port, wire.serving.health_port):
            for service in ("", CACHE):
                assert await health_of(port, service) == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_of(port, "nobody")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        async with grpc.aio.insecure_channel(f"127.0.0.1:{wire.serving.health_port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"/{CACHE}/Lookup")(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_liveness_is_serving_while_the_server_is_not_ready_and_while_it_drains() -> None:
    async def liveness_and_readiness() -> tuple[int, int]:
        return await health_of(port, "liveness"), await health_of(port)

    leave = AsyncExitStack()
    running = await leave.enter_async_context(serving("127.0.0.1:0", {}, grace=60.0, lame_duck=60.0))
    port = running.health_port
    assert await liveness_and_readiness() == (SERVING, SERVING)
    running.health.set_ready(False)
    assert await liveness_and_readiness() == (SERVING, NOT_SERVING)
    running.health.set_ready(True)
    closing = asyncio.create_task(leave.aclose())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
            if answer.status == NOT_SERVING:
                break
    assert await liveness_and_readiness() == (SERVING, NOT_SERVING)
    closing.cancel()
    await asyncio.wait([closing])


async def test_health_watch_tells_changes_and_ends_with_the_drain(connect: Any) -> None:
    seen: list[int] = []

    async def watch(port: int, service: str) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            async for answer in health_pb2_grpc.HealthStub(channel).Watch(request):
                seen.append(answer.status)

    async with connect(nothing) as wire:
        watching = asyncio.create_task(watch(wire.serving.port, CACHE))
        await eventually(lambda: seen == [SERVING])
        wire.serving.health.set_ready(False)
        await eventually(lambda: seen == [SERVING, NOT_SERVING])
        wire.serving.health.set_ready(True)
        await eventually(lambda: seen == [SERVING, NOT_SERVING, SERVING])
    await watching  # ended with OK, and long before the grace
    assert seen == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]


async def test_reflection_lists_the_services_and_can_be_off(connect: Any) -> None:
    async with connect(nothing) as wire:
        listed = await listed_by_reflection(wire.address)
        assert listed == ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", CACHE]
    async with connect(nothing, reflection=False) as wire:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await listed_by_reflection(wire.address)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_port_in_use_is_a_clear_error(connect: Any, capfd: pytest.CaptureFixture[str]) -> None:
    async with connect(nothing) as wire:
        with pytest.raises(CannotListen) as caught:
            async with serving(wire.address, {}):
                raise AssertionError("not reached")
        expected = f"{wire.address} is in use: stop what listens there or set PROMPTLOOPER_LISTEN"
        assert caught.value.message == expected
        with pytest.raises(CannotListen, match="PROMPTLOOPER_HEALTH_LISTEN"):
            async with serving("127.0.0.1:0", {}, health_listen=wire.address):
                raise AssertionError("not reached")
        await wire.lookup()  # the first one still serves
    assert capfd.readouterr().err == ""


async def test_two_servers_that_bind_at_the_same_moment_never_share_a_port(
    connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "promptlooper.rpc.server._bind_once", lambda host, port: None
    )  # both looked before either bound
    async with connect(nothing) as wire:
        with pytest.raises(CannotListen, match="is in use"):
            async with serving(wire.address, {}):
                raise AssertionError("not reached")


async def test_address_that_is_not_here_is_a_clear_error() -> None:
    with pytest.raises(CannotListen, match=r"can't listen on '192\.0\.2\.1:7051': .*; set PROMPTLOOPER_LISTEN"):
        async with serving("192.0.2.1:7051", {}):
            raise AssertionError("not reached")


async def test_drain_says_not_serving_ends_streams_and_lets_calls_finish() -> None:
    draining, asked, go_on, leave = (asyncio.Event() for _ in range(4))
    received: list[bytes] = []

    async def work(request: Any, context: Any) -> bytes:
        asked.set()
        await go_on.wait()
        return b"done"

    async def watch(request: Any, context: Any) -> Any:
        yield b"first"
        await draining.wait()
        raise Draining("come back with your last token")

    def register(server: grpc.aio.Server) -> None:
        handlers = {
            "Work": grpc.unary_unary_rpc_method_handler(work),
            "Watch": grpc.unary_stream_rpc_method_handler(watch),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

    got: asyncio.Future[Serving] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with serving("127.0.0.1:0", {"t.T": register}, on_drain=draining.set) as running:
            got.set_result(running)
            await leave.wait()

    async def follow(channel: grpc.aio.Channel) -> None:
        async for message in channel.unary_stream("/t.T/Watch")(b""):
            received.append(message)

    server = asyncio.create_task(serve())
    running = await got
    address = f"127.0.0.1:{running.port}"
    async with grpc.aio.insecure_channel(address) as channel:
        working = asyncio.create_task(_result(channel.unary_unary("/t.T/Work")(b"", timeout=60)))
        following = asyncio.create_task(follow(channel))
        await asked.wait()
        await eventually(lambda: received == [b"first"])
        leave.set()
        with pytest.raises(Draining, match="last token"), domain_errors(address):
            await following
        assert await health_of(running.health_port, "t.T") == NOT_SERVING
        running.health.set_ready(True)  # as a watcher of dependencies would
        assert await health_of(running.health_port) == NOT_SERVING
        go_on.set()
        assert await working == b"done"
    await server


async def _result(call: Any) -> bytes:
    return bytes(await call)


async def test_grace_ends_calls_that_do_not_end() -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def forever(request: Any, context: Any) -> bytes:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return b""

    def register(server: grpc.aio.Server) -> None:
        handlers = {"Do": grpc.unary_unary_rpc_method_handler(forever)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

    async with serving("127.0.0.1:0", {"t.T": register}, grace=0.05) as running:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.port}")
        call = channel.unary_unary("/t.T/Do")(b"", timeout=60)
        await started.wait()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await asyncio.wait_for(stopped.wait(), 10)
    await channel.close()


async def test_stream_generator_is_closed_when_its_reader_goes() -> None:
    closed = asyncio.Event()

    async def endless(request: Any, context: Any) -> Any:
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0)
        finally:
            closed.set()

    def register(server: grpc.aio.Server) -> None:
        handlers = {"Do": grpc.unary_stream_rpc_method_handler(endless)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

    async with serving("127.0.0.1:0", {"t.T": register}) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            call = channel.unary_stream("/t.T/Do")(b"")
            assert await call.read()
            call.cancel()
        await asyncio.wait_for(closed.wait(), 10)


async def test_a_burst_of_calls_is_served_whole() -> None:
    """grpc itself cuts off what a busy server has not taken yet, from the 1,000th call on."""
    async with AsyncExitStack() as stack:
        port = (await stack.enter_async_context(serving("127.0.0.1:0", {}, health_listen="127.0.0.1:0"))).port
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(5)]
        stubs = [health_pb2_grpc.HealthStub(await stack.enter_async_context(channel)) for channel in channels]
        calls = [stubs[n % 5].Check(health_pb2.HealthCheckRequest()) for n in range(4_000)]
        assert {answer.status for answer in await asyncio.gather(*calls)} == {SERVING}
