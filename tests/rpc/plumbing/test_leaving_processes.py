"""Real services that are told to leave, with clients that do not let go."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from promptlooper.backing import RedisServer, free_port
from promptlooper.cli.probe import is_healthy
from promptlooper.clients.adapter import connected
from promptlooper.completion import CompletionRequest, Message
from promptlooper.errors import ServiceUnavailable
from promptlooper.rpc.client import open_channel
from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider, Reply
from promptlooper.testing.proxy import FaultProxy, fault_proxy


@dataclass
class Service:
    process: asyncio.subprocess.Process
    address: str
    health_address: str

    async def exit_code(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()


@asynccontextmanager
async def service(kind: str, **settings: str) -> AsyncIterator[Service]:
    """A healthy process; killed in the end where it has not left by itself."""
    address, health_address = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTLOOPER_")}
    own = {"PROMPTLOOPER_LISTEN": address, "PROMPTLOOPER_HEALTH_LISTEN": health_address, **settings}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"promptlooper.{kind}", env=inherited | own, stderr=subprocess.DEVNULL
    )
    try:
        await eventually(lambda: is_healthy(kind, address, health_address), within=60)
        yield Service(process, address, health_address)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def frozen_watchers(service: Service) -> AsyncIterator[None]:
    """Health watches on both ports, of clients that are there and read nothing any more."""
    async with AsyncExitStack() as stack:
        proxies: list[FaultProxy] = []
        for address in (service.address, service.health_address):
            proxy = await stack.enter_async_context(fault_proxy(int(address.rsplit(":", 1)[1])))
            channel = await stack.enter_async_context(open_channel(proxy.address))
            call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await call.read()
            stack.callback(call.cancel)
            proxies.append(proxy)
        for proxy in proxies:
            proxy.hold()
        yield


def question() -> CompletionRequest:
    return CompletionRequest("openai/any", (Message("user", "hello"),), {}, 60.0)


@pytest.mark.parametrize("kind", ["cache", "scorer"])
async def test_service_leaves_in_good_order_whatever_its_clients_do(kind: str, redis: RedisServer) -> None:
    async with service(kind, PROMPTLOOPER_REDIS_URL=redis.url, PROMPTLOOPER_GRACE="1") as running:
        async with frozen_watchers(running):
            running.process.terminate()
            assert await running.exit_code() == 0


async def test_adapter_gives_the_answers_that_it_waits_for_before_it_leaves() -> None:
    answered = asyncio.Event()
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(FakeProvider(Reply("late", until=answered)))
        settings = {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "key"}
        running = await stack.enter_async_context(service("adapter", **settings))
        client = await stack.enter_async_context(connected(running.address))
        asked = asyncio.create_task(client.complete(question()))
        await provider.eventually(lambda provider: provider.open == 1)
        running.process.terminate()
        await eventually(lambda: is_not_healthy(running))
        answered.set()
        assert (await asked).output == "late"
        assert await running.exit_code() == 0
        assert len(provider.requests) == 1


async def is_not_healthy(service: Service) -> bool:
    return not await is_healthy("adapter", service.address, service.health_address)


async def test_adapter_whose_provider_never_answers_leaves_after_its_grace() -> None:
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(FakeProvider(Reply(until=asyncio.Event())))
        settings = {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "key", "PROMPTLOOPER_GRACE": "0.5"}
        running = await stack.enter_async_context(service("adapter", **settings))
        client = await stack.enter_async_context(connected(running.address))
        asked = asyncio.create_task(client.complete(question()))
        await provider.eventually(lambda provider: provider.open == 1)
        async with frozen_watchers(running):
            running.process.terminate()
            assert await running.exit_code() == 0
        with pytest.raises(ServiceUnavailable):
            await asked


async def test_second_signal_ends_a_service_that_waits_for_its_calls_at_once() -> None:
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(FakeProvider(Reply(until=asyncio.Event())))
        settings = {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "key", "PROMPTLOOPER_GRACE": "1000"}
        running = await stack.enter_async_context(service("adapter", **settings))
        client = await stack.enter_async_context(connected(running.address))
        asked = asyncio.create_task(client.complete(question()))
        await provider.eventually(lambda provider: provider.open == 1)
        running.process.terminate()
        await eventually(lambda: is_not_healthy(running))
        running.process.send_signal(signal.SIGTERM)
        assert await running.exit_code() == 143
        asked.cancel()
        await asyncio.wait({asked})
