"""Questions to a name that stands for several Adapters, as a headless Service of Kubernetes does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from name_server import name_server

from promptlooper.adapter.servicer import SERVICE_NAME, AdapterServicer
from promptlooper.backing import free_port
from promptlooper.clients.adapter import connected
from promptlooper.rpc.server import serving
from promptlooper.testing.eventually import eventually


@asynccontextmanager
async def adapter_at(address: str, gateway: Any) -> Any:
    servicer = AdapterServicer(gateway)
    services = {SERVICE_NAME: servicer.register}
    async with serving(
        address, services, health_listen="127.0.0.1:0", on_drain=servicer.drain, connection_age=0.3
    ) as server:
        yield server


async def test_every_replica_of_a_name_is_asked_also_a_new_one_and_no_question_fails(
    new_gateway: Callable[[], Any], ask: Any
) -> None:
    port, over = free_port(), asyncio.Event()
    gateways = {host: new_gateway() for host in ("127.0.0.2", "127.0.0.3", "127.0.0.4")}
    first, second, third = gateways.values()
    async with name_server() as name, AsyncExitStack() as stack:
        servers = {}
        for host, gateway in gateways.items():
            servers[host] = await stack.enter_async_context(AsyncExitStack())
            await servers[host].enter_async_context(adapter_at(f"{host}:{port}", gateway))
        name.addresses[:] = ["127.0.0.2", "127.0.0.3"]
        client = await stack.enter_async_context(connected(name.target(port), max_age=0.2))

        async def asking() -> None:
            while not over.is_set():
                await client.complete(ask())

        callers = [asyncio.create_task(asking()) for _ in range(8)]
        await eventually(lambda: first.asked and second.asked)
        assert not third.asked
        name.addresses.append("127.0.0.4")
        await eventually(lambda: third.asked)  # after the 5 s for which grpc does not ask DNS again
        name.addresses.remove("127.0.0.2")
        await servers["127.0.0.2"].aclose()
        over.set()
        await asyncio.gather(*callers)
