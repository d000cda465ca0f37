"""What can go wrong with Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from promptlooper.backing import RedisServer
from promptlooper.cache.core import CacheCore
from promptlooper.cache.settings import CacheSettings
from promptlooper.cache.store.redis import RedisStore
from promptlooper.caching import CacheEntry, Lookup, LookupStatus
from promptlooper.errors import CacheUnavailable, InvalidArgument
from promptlooper.redis_access import FAILURES
from promptlooper.testing.clock import ManualClock
from promptlooper.testing.proxy import FaultProxy, fault_proxy
from promptlooper.testing.servers import redis_server

KEY = "default.default:" + "ab" * 32


async def status(cache: CacheCore, claimant: str = "a") -> LookupStatus:
    [found] = await cache.lookup([Lookup(KEY)], claimant)
    return found.status


@pytest.fixture
async def proxy(own_redis: RedisServer) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(own_redis.port) as proxy:
        yield proxy


async def test_killed_redis_is_unavailable_and_works_again_after_its_return(clock: ManualClock) -> None:
    with redis_server() as server:
        async with RedisStore(server.url, timeout=5.0, clock=clock) as store:
            cache = CacheCore(store)
            await cache.store([CacheEntry(KEY, b"v")], "a")
            server.kill()
            for _ in range(FAILURES):
                with pytest.raises(CacheUnavailable, match="cannot use Redis"):
                    await status(cache)
            server.start()
            with pytest.raises(CacheUnavailable, match="a moment ago"):
                await status(cache)
            clock.advance(1.0)
            assert await status(cache) is LookupStatus.LEAD
            await cache.store([CacheEntry(KEY, b"v")], "a")
            assert await status(cache) is LookupStatus.HIT


def test_redis_may_take_a_tenth_of_a_second_where_nothing_is_said() -> None:
    assert CacheSettings.model_fields["redis_timeout"].default == 0.1


async def test_silent_redis_is_asked_once_and_waited_for_once(proxy: FaultProxy) -> None:
    """Of a look-up one time-out is all that its caller may feel: also where the connection is new, and each of its
    steps has a time-out of its own."""
    async with RedisStore(f"redis://{proxy.address}/0", timeout=0.05) as store:
        proxy.hold()
        with pytest.raises(CacheUnavailable, match="no answer in time"):
            await status(CacheCore(store))
        assert (store.failures, proxy.accepted) == (1, 1)


async def test_store_opens_while_redis_is_away() -> None:
    with redis_server() as server:
        server.stop()
        async with RedisStore(server.url) as store:
            with pytest.raises(CacheUnavailable):
                await status(CacheCore(store))


async def test_frozen_redis_is_unavailable_and_the_next_callers_do_not_wait(
    proxy: FaultProxy, clock: ManualClock
) -> None:
    async with RedisStore(f"redis://{proxy.address}/0", timeout=0.05, clock=clock) as store:
        proxy.hold()
        for _ in range(FAILURES):
            with pytest.raises(CacheUnavailable, match="no answer in time"):
                await status(CacheCore(store))
        tried = proxy.accepted
        for _ in range(100):
            with pytest.raises(CacheUnavailable, match="a moment ago"):
                await status(CacheCore(store))
        assert proxy.accepted == tried


async def test_cut_connections_are_made_anew_without_an_error(proxy: FaultProxy, own_redis: RedisServer) -> None:
    async with RedisStore(f"redis://{proxy.address}/0", timeout=5.0) as store:
        cache = CacheCore(store)
        await cache.store([CacheEntry(KEY, b"v")], "a")
        await proxy.cut()
        async with Redis.from_url(own_redis.url) as other:
            await other.ping()  # by then the end of the connection is known here
        assert await status(cache) is LookupStatus.HIT


async def test_forgotten_scripts_are_loaded_again(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, timeout=5.0) as store, Redis.from_url(own_redis.url) as client:
        cache = CacheCore(store)
        await cache.store([CacheEntry(KEY, b"v")], "a")
        await client.script_flush()
        assert await status(cache) is LookupStatus.HIT


async def test_redis_without_memory_refuses_and_is_counted_but_not_shut_out() -> None:
    with redis_server() as server:
        async with RedisStore(server.url, timeout=5.0) as store, Redis.from_url(server.url) as client:
            cache = CacheCore(store)
            await cache.store([CacheEntry(KEY, b"v")], "a")
            await client.config_set("maxmemory-policy", "noeviction")
            await client.config_set("maxmemory", "1mb")
            for _ in range(2):
                with pytest.raises(CacheUnavailable, match="used memory"):
                    await cache.store([CacheEntry(KEY, b"v" * 100_000)], "a")
            assert store.refusals == 2
            assert await status(cache) is LookupStatus.HIT


GARBAGE = [
    b"junk",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\xff\xfe\x00\r\n",
    b"+OK\r\n",
    b":7\r\n",
    b":x\r\n",
    b"_\r\n",
    b"*0\r\n",
    b"%1\r\n+a\r\n:1\r\n",
    b"$5\r\nhello\r\n",
    b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n",
    b"*2\r\n:9\r\n:0\r\n",
    b"*1\r\n*1\r\n:1\r\n",
    b"-MOVED x\r\n",
    b"-NOSCRIPT\r\n",
    b"$99999999999\r\n",
]


@pytest.mark.parametrize("when", ["at once", "on a connection that worked"])
@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
async def test_garbage_is_unavailable_and_never_anything_else(
    proxy: FaultProxy, clock: ManualClock, garbage: bytes, when: str
) -> None:
    async with RedisStore(f"redis://{proxy.address}/0", timeout=0.05, clock=clock) as store:
        cache = CacheCore(store)
        if when != "at once":
            with suppress(CacheUnavailable):  # on a slow machine
                await status(cache)
        proxy.garble = lambda said: garbage
        for ask in (status(cache), cache.store([CacheEntry(KEY, b"v")], "a"), cache.renew([KEY], "a"), cache.purge("")):
            [said] = await asyncio.gather(ask, return_exceptions=True)
            assert isinstance(said, CacheUnavailable) or said in (LookupStatus.BUSY, LookupStatus.LEAD, None, [False])
            assert len(str(said)) < 400
            clock.advance(1.0)  # the breaker's rest
        await cache.stats()


async def test_garbage_for_a_time_leaves_nothing_wrong_behind(proxy: FaultProxy, clock: ManualClock) -> None:
    async with RedisStore(f"redis://{proxy.address}/0", timeout=5.0, clock=clock) as store:
        cache = CacheCore(store)
        await cache.store([CacheEntry(KEY, b"v")], "a")
        for garbage in (b":1\r\n", b"*2\r\n:1\r\n:0\r\n", b"*2\r\n$1\r\nw\r\n:0\r\n", b"+OK\r\n+OK\r\n"):
            proxy.garble = lambda said, garbage=garbage: garbage + garbage  # type: ignore[misc]
            with suppress(CacheUnavailable):
                await status(cache)
            proxy.garble = None
            clock.advance(1.0)
            [found] = await cache.lookup([Lookup(KEY)], "a")
            assert (found.status, found.value) == (LookupStatus.HIT, b"v"), garbage


async def test_values_end_after_their_time_and_leases_after_theirs(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, timeout=5.0, value_ttl=100) as store, Redis.from_url(own_redis.url) as client:
        cache = CacheCore(store, lease_ttl=10)
        assert await status(cache) is LookupStatus.LEAD
        [lease] = await client.keys()
        assert 0 < await client.pttl(lease) <= 10_000
        await cache.store([CacheEntry(KEY, b"v")], "a")
        [value] = await client.keys()
        assert 0 < await client.pttl(value) <= 100_000


async def test_many_callers_at_once_share_the_connections(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, timeout=10.0) as store, Redis.from_url(own_redis.url) as client:
        cache = CacheCore(store)
        await asyncio.gather(*(status(cache, f"c{n}") for n in range(300)))
        assert (await client.info("clients"))["connected_clients"] <= 33


async def test_purge_leaves_what_is_not_ours(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, timeout=5.0) as store, Redis.from_url(own_redis.url) as client:
        await client.set("theirs", b"v")
        await CacheCore(store).store([CacheEntry(KEY, b"v")], "a")
        assert await CacheCore(store).purge("") == 1
        assert sorted(await client.keys()) == [b"promptlooper:purges:1", b"theirs"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:6379", "redis://:secret@h:x/0"])
async def test_wrong_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        RedisStore(url)
    assert "secret" not in str(refused.value)
