"""A Runner, an Adapter's core and a Cache over gRPC: what asks and remembers, with real HTTP and a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from runner_lab import Lab, ended, exported

from promptlooper.adapter.app import gateway_from
from promptlooper.cache.core import CacheCore
from promptlooper.cache.servicer import SERVICE_NAME, register
from promptlooper.cache.store.redis import RedisStore
from promptlooper.clients.cache import CacheClient
from promptlooper.clock import Clock
from promptlooper.experiment import ExperimentSpec
from promptlooper.rpc.client import open_channel
from promptlooper.rpc.server import serving
from promptlooper.run import Run
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.store.migrate import upgrade
from promptlooper.testing.provider import FakeProvider
from promptlooper.v1 import cache_service_pb2 as pb


@asynccontextmanager
async def cache_service(
    redis_url: str, *, timeout: float = 10.0, clock: Clock | None = None
) -> AsyncIterator[tuple[CacheClient, RedisStore]]:
    """A client of it, and its store. Redis may take as long as a slow machine needs, if nothing else is said."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(RedisStore(redis_url, timeout=timeout, clock=clock))
        services: dict[str, Any] = {SERVICE_NAME: partial(register, core=CacheCore(store))}
        served = serving("127.0.0.1:0", services, health_listen="127.0.0.1:0", grace=0.0)
        address = f"127.0.0.1:{(await stack.enter_async_context(served)).port}"
        service = pb.DESCRIPTOR.services_by_name["CacheService"]
        channel = await stack.enter_async_context(open_channel(address, service))
        yield CacheClient(channel, address, deadline=30.0), store


@asynccontextmanager
async def asking_runner(folder: Path, provider: FakeProvider, cache: CacheClient) -> AsyncIterator[RunnerCore]:
    """Asks the provider as `openai/…`, and the cache."""
    url = f"sqlite:///{folder / 'promptlooper.db'}"
    upgrade(url)
    async with gateway_from(env={"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "k"}) as gateway:
        async with Lab(url, folder, model=gateway, cache=cache).runner() as runner:  # type: ignore[arg-type]
            yield runner


async def ran(runner: RunnerCore, spec: ExperimentSpec) -> list[Run]:
    """Its runs, by their index, when all have ended."""
    created = await runner.create(spec)
    await ended(runner, created.experiment_id)
    return sorted(await exported(runner, created.experiment_id), key=lambda run: run.run_index)
