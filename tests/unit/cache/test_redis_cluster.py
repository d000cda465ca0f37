"""What is different where Redis is a cluster."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from redis import Redis as BlockingRedis
from redis.asyncio import RedisCluster
from redis.crc import key_slot

from promptlooper.backing import RedisServer
from promptlooper.cache.core import CacheCore
from promptlooper.cache.store.redis import RedisStore
from promptlooper.caching import CacheEntry, Lookup, LookupStatus
from promptlooper.errors import CacheUnavailable, InvalidArgument
from promptlooper.testing.clock import ManualClock
from promptlooper.testing.servers import ClusterNode, redis_cluster


def key(number: int) -> str:
    return f"p.n:{hashlib.sha256(b'%d' % number).hexdigest()}"


def names_in(node: ClusterNode) -> list[bytes]:
    with BlockingRedis.from_url(node.url) as client:
        return list(client.keys())


def slot_of(name: bytes) -> int:
    return int(key_slot(name))


async def test_values_and_leases_lie_on_all_servers_each_pair_in_one_slot(own_cluster: list[ClusterNode]) -> None:
    keys = [key(n) for n in range(300)]
    async with RedisStore(own_cluster[0].url, timeout=5.0, cluster=True) as store:
        cache = CacheCore(store)
        await cache.lookup([Lookup(one) for one in keys], "a")
        await cache.store([CacheEntry(one, b"v") for one in keys], "b")  # so that the leases stay
    by_node = [names_in(node) for node in own_cluster]
    assert min(map(len, by_node)) > 100
    slots: dict[bytes, set[int]] = {}
    for name in (name for names in by_node for name in names):
        slots.setdefault(name[-68:], set()).add(slot_of(name))
    assert len(slots) == 300
    assert {len(found) for found in slots.values()} == {1}
    assert Counter(len(found) for found in slots.values()) == {1: 300}
    assert len({slot for found in slots.values() for slot in found}) == 64  # so many scripts does a list take at most


async def test_slots_that_move_are_followed(own_cluster: list[ClusterNode]) -> None:
    """The store learnt who serves what before."""
    async with RedisStore(own_cluster[0].url, timeout=5.0, cluster=True) as store:
        cache = CacheCore(store)
        await cache.store([CacheEntry(key(n), b"%d" % n) for n in range(50)], "a")
        async with RedisCluster.from_url(own_cluster[0].url) as admin:
            name = next(name for name in names_in(own_cluster[0]) if b"cache:1" in name)
            slot = slot_of(name)
            ids = [(await admin.cluster_myid(node)).decode() for node in admin.get_primaries()]
            ports = [node.port for node in admin.get_primaries()]
        first, second = (ids[ports.index(node.port)] for node in own_cluster[:2])
        with (
            BlockingRedis.from_url(own_cluster[0].url) as giver,
            BlockingRedis.from_url(own_cluster[1].url) as taker,
        ):
            try:
                move(slot, giver, taker, first, second, own_cluster[1].port)
                found = await cache.lookup([Lookup(key(n)) for n in range(50)], "")
                assert [one.value for one in found] == [b"%d" % n for n in range(50)]
            finally:
                move(slot, taker, giver, second, first, own_cluster[0].port)


def move(slot: int, giver: BlockingRedis, taker: BlockingRedis, giver_id: str, taker_id: str, port: int) -> None:
    taker.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", giver_id)
    giver.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", taker_id)
    names = giver.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
    if names:
        giver.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *names)
    for one in (taker, giver):
        one.execute_command("CLUSTER SETSLOT", slot, "NODE", taker_id)


async def test_lost_server_makes_misses_and_the_others_answer(clock: ManualClock) -> None:
    with redis_cluster() as nodes:
        async with RedisStore(nodes[0].url, timeout=5.0, cluster=True, clock=clock) as store:
            cache = CacheCore(store)
            await cache.store([CacheEntry(key(n), b"v") for n in range(50)], "a")
            nodes[2].kill()
            with pytest.raises(CacheUnavailable, match="cannot use Redis"):
                await cache.lookup([Lookup(key(n)) for n in range(50)], "a")
            clock.advance(1.0)  # the breaker's rest, should so many parts of the list have opened it
            kept = next(n for n in range(50) if any(key(n).encode() in name for name in names_in(nodes[0])))
            [found] = await cache.lookup([Lookup(key(kept))], "a")
            assert found.status is LookupStatus.HIT


async def test_cluster_that_is_taken_for_one_server_is_refused_with_what_to_do(own_cluster: list[ClusterNode]) -> None:
    async with RedisStore(own_cluster[0].url, timeout=5.0) as store:
        with pytest.raises(CacheUnavailable, match="set PROMPTLOOPER_REDIS_CLUSTER=true"):
            await CacheCore(store).lookup([Lookup(key(n)) for n in range(50)], "a")


async def test_server_that_is_taken_for_a_cluster_is_refused_with_what_to_do(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, timeout=5.0, cluster=True) as store:
        with pytest.raises(CacheUnavailable, match="set PROMPTLOOPER_REDIS_CLUSTER=false"):
            await CacheCore(store).lookup([Lookup(key(0))], "a")


def test_cluster_has_one_database_only() -> None:
    with pytest.raises(InvalidArgument, match="database 0 only"):
        RedisStore("redis://127.0.0.1:1/3", cluster=True)


async def test_look_up_of_one_key_is_a_hit_through_any_server(own_cluster: list[ClusterNode]) -> None:
    for n, node in enumerate(own_cluster):
        async with RedisStore(node.url, timeout=5.0, cluster=True) as store:
            cache = CacheCore(store)
            await cache.store([CacheEntry(key(n), b"v")], "a")
            found = await cache.lookup([Lookup(key(m)) for m in range(n + 1)], "b")
            assert {one.status for one in found} == {LookupStatus.HIT}
