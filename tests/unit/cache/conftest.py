"""Both stores, each with nothing in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis import Redis

from promptlooper.backing import RedisServer
from promptlooper.cache.core import CacheCore
from promptlooper.cache.store.contract import Store
from promptlooper.cache.store.local import LocalStore
from promptlooper.cache.store.redis import RedisStore
from promptlooper.testing.clock import ManualClock
from promptlooper.testing.servers import ClusterNode, redis_cluster, redis_server

OpenStore = Callable[[], Awaitable[Store]]
Plant = Callable[[str, bytes], Awaitable[None]]


@pytest.fixture(scope="session")
def own_redis_server() -> Iterator[RedisServer]:
    """Not the one that all tests share: these tests empty it."""
    with redis_server() as server:
        yield server


@pytest.fixture
def own_redis(own_redis_server: RedisServer) -> RedisServer:
    with Redis.from_url(own_redis_server.url) as client:
        client.flushall()
    return own_redis_server


@pytest.fixture(scope="session")
def cluster() -> Iterator[list[ClusterNode]]:
    with redis_cluster() as nodes:
        yield nodes


@pytest.fixture
def own_cluster(cluster: list[ClusterNode]) -> list[ClusterNode]:
    for node in cluster:
        with Redis.from_url(node.url) as client:
            client.flushall()
    return cluster


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["redis", "cluster", "file"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens another store on the same Redis or file, as another process would."""
    url, cluster = "", request.param == "cluster"
    if cluster:
        url = request.getfixturevalue("own_cluster")[0].url
    elif request.param == "redis":
        url = request.getfixturevalue("own_redis").url
    async with AsyncExitStack() as stack:

        async def opened() -> Store:
            if url:
                return await stack.enter_async_context(RedisStore(url, timeout=5.0, cluster=cluster))
            return await stack.enter_async_context(LocalStore(tmp_path / "cache" / "cache.db"))

        yield opened


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    return await open_store()


@pytest.fixture
def cache(store: Store, clock: ManualClock) -> CacheCore:
    """Its clock is for ages; leases run by the real one."""
    return CacheCore(store, clock=clock)
