"""The Cache as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from promptlooper.backing import RedisServer
from promptlooper.backing.server import free_port
from promptlooper.caching import CacheEntry, Found, Lookup, LookupStatus, ResponseCache
from promptlooper.clients.cache import connected
from promptlooper.errors import CacheUnavailable, ServiceUnavailable
from promptlooper.testing.eventually import eventually
from promptlooper.testing.servers import redis_server

KEY = "default.default:" + "ab" * 32


@asynccontextmanager
async def cache_process(redis: RedisServer) -> AsyncIterator[tuple[asyncio.subprocess.Process, ResponseCache]]:
    address = f"127.0.0.1:{free_port()}"
    env = {
        **os.environ,
        "PROMPTLOOPER_LISTEN": address,
        "PROMPTLOOPER_HEALTH_LISTEN": f"127.0.0.1:{free_port()}",
        "PROMPTLOOPER_REDIS_URL": redis.url,
        "PROMPTLOOPER_REDIS_TIMEOUT": "2",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "promptlooper.cache", env=env)
    try:
        async with connected(address) as client:
            yield process, client
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_cache_starts_without_redis_recovers_by_itself_and_stops_when_asked() -> None:
    with redis_server() as redis:
        redis.stop()
        async with cache_process(redis) as (process, cache):

            async def says_redis_is_away() -> bool:
                try:
                    await cache.lookup([Lookup(KEY)], "a")
                except ServiceUnavailable:  # the process is not there yet
                    return False
                except CacheUnavailable as error:
                    return "cannot use Redis" in error.message
                return False

            async def answers() -> list[Found] | None:
                try:
                    return await cache.lookup([Lookup(KEY)], "a")
                except CacheUnavailable:
                    return None

            await eventually(says_redis_is_away)
            redis.start()
            assert [found.status for found in await eventually(answers) or ()] == [LookupStatus.LEAD]
            await cache.store([CacheEntry(KEY, b"v")], "a")
            [found] = await cache.lookup([Lookup(KEY)], "b")
            assert (found.status, found.value) == (LookupStatus.HIT, b"v")
            redis.kill()
            await eventually(says_redis_is_away)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
