"""The Cache's RPCs, client to core."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from promptlooper.caching import LEASE_TTL, CacheEntry, CacheStats, Found, Lookup, LookupStatus
from promptlooper.clients.cache import CacheClient, connected
from promptlooper.errors import (
    CacheUnavailable,
    DomainError,
    Draining,
    InvalidArgument,
    ServiceUnavailable,
    StoreUnavailable,
    TooLarge,
)
from promptlooper.rpc.client import domain_errors
from promptlooper.v1 import cache_service_pb2 as pb
from promptlooper.v1.cache_service_pb2_grpc import CacheServiceStub


async def test_values_are_stored_and_found(cache: Any) -> None:
    await cache.client.store([CacheEntry("a.b:1", b"\x00\xff"), CacheEntry("a.b:2", b"")], "me")
    found = await cache.client.lookup([Lookup("a.b:1", 60.0), Lookup("a.b:3"), Lookup("a.b:2")], "me")
    assert found == [
        Found(LookupStatus.HIT, b"\x00\xff", 1_700_000_000.25),
        Found(LookupStatus.LEAD),
        Found(LookupStatus.HIT, b"", 1_700_000_000.25),
    ]
    assert cache.core.calls[-1] == ("lookup", [Lookup("a.b:1", 60.0), Lookup("a.b:3"), Lookup("a.b:2")], "me")


async def test_look_up_without_a_claimant_takes_no_lease(cache: Any) -> None:
    assert await cache.client.lookup([Lookup("a.b:1")], "") == [Found(LookupStatus.MISS)]


async def test_look_up_says_how_long_leases_last(cache: Any) -> None:
    response = await CacheServiceStub(cache.channel).Lookup(pb.LookupRequest())
    assert response.lease_ms == LEASE_TTL * 1000


async def test_leases_are_renewed_and_released(cache: Any) -> None:
    assert await cache.client.renew(["k", "lost"], "me") == [True, False]
    await cache.client.release(["k"], "me")
    assert cache.core.calls == [("renew", ["k", "lost"], "me"), ("release", ["k"], "me")]


async def test_cache_is_purged_and_counted(cache: Any) -> None:
    assert await cache.client.purge("default.default") == 7
    assert await cache.client.purge("", "openai/m") == 7  # a Cache that knows no models must not take it for all
    assert await cache.client.stats() == CacheStats("redis", 1, 2, 3, 4)
    assert cache.core.calls == [("purge", "default.default", ""), ("purge", "*.*", "openai/m"), ("stats",)]


async def test_long_lists_take_several_messages(cache: Any) -> None:
    keys = [f"k{n}" for n in range(2_500)]
    await cache.client.store([CacheEntry(key, key.encode()) for key in keys], "me")
    found = await cache.client.lookup([Lookup(key) for key in keys], "me")
    assert [one.value for one in found] == [key.encode() for key in keys]
    assert await cache.client.renew(keys, "me") == [True] * 2_500
    await cache.client.release(keys, "me")
    sizes = [len(call[1]) for call in cache.core.calls]
    assert sizes == [1000, 1000, 500] * 4


async def test_large_values_take_several_messages(cache: Any) -> None:
    await cache.client.store([CacheEntry(f"k{n}", bytes(1_000_000)) for n in range(8)], "me")
    assert [len(call[1]) for call in cache.core.calls] == [3, 3, 2]


async def test_value_that_is_too_large_loses_its_lease_and_leaves_the_others(cache: Any) -> None:
    entries = [CacheEntry("a", b"1"), CacheEntry("b", bytes(4_000_000)), CacheEntry("c", b"3")]
    with pytest.raises(TooLarge, match="'b' is too large"):
        await cache.client.store(entries, "me")
    assert cache.core.calls == [("store", ["a", "c"], "me"), ("release", ["b"], "me")]


async def test_refusal_of_one_message_does_not_keep_the_next_back(cache: Any) -> None:
    cache.core.error = TooLarge("over 1 MiB")
    with pytest.raises(TooLarge, match="over 1 MiB"):
        await cache.client.store([CacheEntry(f"k{n}", b"") for n in range(1_500)], "me")
    assert [len(call[1]) for call in cache.core.calls] == [1000, 500]


async def test_nothing_asked_is_nothing_sent(cache: Any) -> None:
    assert await cache.client.lookup([], "me") == []
    await cache.client.store([], "me")
    assert cache.core.calls == []


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (CacheUnavailable("no store"), CacheUnavailable),
        (ServiceUnavailable("gone"), ServiceUnavailable),
        (InvalidArgument("no key", field="key"), InvalidArgument),
        (TooLarge("too much"), TooLarge),
        (StoreUnavailable("down"), CacheUnavailable),
        (Draining("leaving", retry_after=0.0), CacheUnavailable),
        (DomainError("a fault"), CacheUnavailable),
    ],
    ids=lambda value: value.reason if isinstance(value, DomainError) else "",
)
async def test_failure_is_raised_as_what_callers_take_for_a_miss(cache: Any, error: Any, raised: type) -> None:
    cache.core.error = error
    for call in (
        cache.client.lookup([Lookup("k")], "me"),
        cache.client.renew(["k"], "me"),
        cache.client.store([CacheEntry("k", b"")], "me"),
        cache.client.release(["k"], "me"),
        cache.client.purge(""),
        cache.client.stats(),
    ):
        with pytest.raises(raised) as caught:
            await call
        assert caught.value.message == error.message
        assert type(caught.value) is not type(error) or caught.value.metadata == error.metadata


async def test_cache_that_is_slow_counts_as_none(cache: Any) -> None:
    async def hang(lookups: Any, claimant_id: str) -> list[Found]:
        await asyncio.Event().wait()
        return []

    cache.core.lookup = hang
    client = CacheClient(cache.channel, cache.address, deadline=0.02)
    with pytest.raises(CacheUnavailable, match="gave no answer in time"):
        await client.lookup([Lookup("k")], "me")


async def test_cache_that_is_not_there_is_named(unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    async with connected(address) as client:
        with pytest.raises(ServiceUnavailable, match=f"no cache answers at {address}"):
            await client.lookup([Lookup("k")], "me")


async def test_wrong_number_of_answers_counts_as_none(cache: Any) -> None:
    async def short(lookups: Any, claimant_id: str) -> list[Found]:
        return []

    cache.core.lookup = short
    with pytest.raises(CacheUnavailable, match="gave 0 answers to 1 questions"):
        await cache.client.lookup([Lookup("k")], "me")


@pytest.mark.parametrize(
    ("method", "request_message", "field"),
    [
        ("Lookup", pb.LookupRequest(items=[pb.LookupItem()] * 1001), "items"),
        ("Renew", pb.RenewRequest(keys=["k"] * 1001), "keys"),
        ("Store", pb.StoreRequest(entries=[pb.CacheEntry()] * 1001), "entries"),
        ("Release", pb.ReleaseRequest(keys=["k"] * 1001), "keys"),
        ("Lookup", pb.LookupRequest(items=[pb.LookupItem(max_age_ms=-1)]), "items[0].max_age_ms"),
        ("Store", pb.StoreRequest(entries=[pb.CacheEntry(worth=pb.Worth(tokens_in=-1))]), "entries[0].worth.tokens_in"),
    ],
    ids=["lookup", "renew", "store", "release", "age", "worth"],
)
async def test_request_that_is_wrong_is_refused_by_name_of_its_field(
    cache: Any, method: str, request_message: Any, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught, domain_errors(cache.address):
        await getattr(CacheServiceStub(cache.channel), method)(request_message)
    assert caught.value.metadata == {"field": field}
    assert cache.core.calls == []
