"""What both stores promise, asked through the core."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from promptlooper.cache.core import CacheCore
from promptlooper.cache.envelope import MAX_VALUE
from promptlooper.cache.store.contract import Store, Wanted
from promptlooper.caching import CacheEntry, Found, Lookup, LookupStatus, ResponseCache, Worth
from promptlooper.errors import InvalidArgument, TooLarge
from promptlooper.testing.clock import ManualClock
from promptlooper.testing.eventually import eventually

OpenStore = Callable[[], Awaitable[Store]]
HIT, LEAD, BUSY, MISS = LookupStatus.HIT, LookupStatus.LEAD, LookupStatus.BUSY, LookupStatus.MISS


def key(number: int = 0, scope: str = "default.default") -> str:
    return f"{scope}:{number:064x}"


async def looked(cache: ResponseCache, claimant: str, *keys: str, max_age: float | None = None) -> list[LookupStatus]:
    return [found.status for found in await cache.lookup([Lookup(one, max_age) for one in keys], claimant)]


async def test_stored_value_is_a_hit_with_the_time_it_was_stored(cache: CacheCore, clock: ManualClock) -> None:
    await cache.store([CacheEntry(key(), b"answer \x00 \xff")], "a")
    stored_at = clock.now().timestamp()
    clock.advance(5)
    assert await cache.lookup([Lookup(key())], "b") == [Found(HIT, b"answer \x00 \xff", stored_at)]


async def test_first_claimant_leads_and_others_are_busy(cache: CacheCore) -> None:
    assert await looked(cache, "a", key()) == [LEAD]
    assert await looked(cache, "b", key()) == [BUSY]
    assert await looked(cache, "a", key()) == [LEAD]


async def test_results_come_in_the_order_of_the_list(cache: CacheCore) -> None:
    await cache.store([CacheEntry(key(1), b"one")], "a")
    await looked(cache, "a", key(2))
    found = await cache.lookup([Lookup(key(n)) for n in (3, 2, 1, 3)], "b")
    assert [one.status for one in found] == [LEAD, BUSY, HIT, LEAD]
    assert found[2].value == b"one"


async def test_lists_longer_than_one_script_are_answered_whole(cache: CacheCore) -> None:
    await cache.store([CacheEntry(key(n), b"%d" % n) for n in range(1200)], "a")
    found = await cache.lookup([Lookup(key(n)) for n in range(1300)], "a")
    assert [one.value for one in found[:1200]] == [b"%d" % n for n in range(1200)]
    assert {one.status for one in found[1200:]} == {LEAD}
    assert await cache.renew([key(n) for n in range(1300)], "a") == [False] * 1200 + [True] * 100


async def test_empty_lists_ask_nothing(cache: CacheCore) -> None:
    assert await cache.lookup([], "a") == []
    assert await cache.renew([], "a") == []
    await cache.store([], "a")
    await cache.release([], "a")


async def test_nameless_claimant_takes_no_lease(cache: CacheCore) -> None:
    assert await looked(cache, "", key()) == [MISS]
    assert await looked(cache, "a", key()) == [LEAD]
    assert await looked(cache, "", key()) == [MISS]
    assert await cache.renew([key()], "") == [False]
    await cache.store([CacheEntry(key(), b"v")], "")
    assert await looked(cache, "", key()) == [HIT]


async def test_storing_ends_the_lease_of_its_claimant_only(cache: CacheCore) -> None:
    await looked(cache, "a", key(1), key(2))
    await cache.store([CacheEntry(key(1), b"v")], "a")
    await cache.store([CacheEntry(key(2), b"v")], "b")
    assert await cache.renew([key(1), key(2)], "a") == [False, True]


async def test_released_lease_passes_to_the_next(cache: CacheCore) -> None:
    await looked(cache, "a", key())
    await cache.release([key()], "b")
    assert await looked(cache, "b", key()) == [BUSY]
    await cache.release([key()], "a")
    assert await looked(cache, "b", key()) == [LEAD]
    assert await cache.renew([key()], "a") == [False]


async def test_lease_of_a_silent_claimant_passes_on(store: Store) -> None:
    cache = CacheCore(store, lease_ttl=0.05)
    assert await looked(cache, "a", key()) == [LEAD]

    async def leads() -> bool:
        return await looked(cache, "b", key()) == [LEAD]

    await eventually(leads)


async def test_renewed_lease_is_kept(store: Store) -> None:
    await looked(CacheCore(store, lease_ttl=0.05), "a", key(1), key(2))
    long = CacheCore(store, lease_ttl=60)
    assert await long.renew([key(1)], "b") == [False]
    held = await long.renew([key(1)], "a")

    async def second_has_ended() -> bool:
        return await looked(long, "b", key(2)) == [LEAD]

    await eventually(second_has_ended)
    # On a slow machine the first lease may have ended before it was renewed; what renew said must hold.
    assert await looked(long, "b", key(1)) == [BUSY if held == [True] else LEAD]


async def test_last_writer_wins(cache: CacheCore) -> None:
    await cache.store([CacheEntry(key(), b"first")], "a")
    await cache.store([CacheEntry(key(), b"second")], "b")
    [found] = await cache.lookup([Lookup(key())], "c")
    assert found.value == b"second"


async def test_value_older_than_max_age_is_asked_again_by_one(cache: CacheCore, clock: ManualClock) -> None:
    await cache.store([CacheEntry(key(), b"old")], "a")
    clock.advance(100)
    assert await looked(cache, "a", key(), max_age=100) == [HIT]
    clock.advance(1)
    assert await looked(cache, "", key(), max_age=100) == [MISS]
    assert await looked(cache, "a", key(), max_age=100) == [LEAD]
    assert await looked(cache, "b", key(), max_age=100) == [BUSY]
    assert await looked(cache, "b", key()) == [HIT]
    await cache.store([CacheEntry(key(), b"new")], "a")
    [found] = await cache.lookup([Lookup(key(), 100)], "b")
    assert (found.status, found.value) == (HIT, b"new")


@pytest.mark.parametrize("garbage", [b"", b"x", b"PLC1", b"PLC1" + bytes(200), b"\xff" * 5000])
async def test_garbage_is_a_miss_until_it_is_replaced(cache: CacheCore, store: Store, garbage: bytes) -> None:
    await store.store([(key(), garbage)], "")
    assert await looked(cache, "", key()) == [MISS]
    assert await looked(cache, "a", key()) == [LEAD]
    assert await looked(cache, "b", key()) == [BUSY]
    await cache.store([CacheEntry(key(), b"good")], "a")
    assert await looked(cache, "b", key()) == [HIT]


async def test_value_of_another_key_is_a_miss(cache: CacheCore, store: Store) -> None:
    await cache.store([CacheEntry(key(1), b"one")], "a")
    [stolen], _ = await store.claim([Wanted(key(1))], "", 1.0)
    assert isinstance(stolen, bytes)
    await store.store([(key(2), stolen)], "")
    assert await looked(cache, "a", key(2)) == [LEAD]


async def test_large_values_come_back_whole(cache: CacheCore) -> None:
    values = [b"text " * 100_000, bytes(range(256)) * 4096]
    await cache.store([CacheEntry(key(n), value) for n, value in enumerate(values)], "a")
    found = await cache.lookup([Lookup(key(0)), Lookup(key(1))], "b")
    assert [one.value for one in found] == values


async def test_value_over_the_bound_is_refused_and_the_rest_is_stored(cache: CacheCore) -> None:
    await looked(cache, "a", key(1), key(2))
    with pytest.raises(TooLarge, match="1048577 bytes; at most 1048576"):
        await cache.store([CacheEntry(key(1), b"x" * (MAX_VALUE + 1)), CacheEntry(key(2), b"v")], "a")
    assert await looked(cache, "b", key(1), key(2)) == [LEAD, HIT]


async def test_purge_deletes_one_scope_only(cache: CacheCore) -> None:
    scopes = ["default.default", "default.default2", "default.d*", "other.default"]
    await cache.store([CacheEntry(key(n, scope), b"v") for scope in scopes for n in range(3)], "a")
    assert await cache.purge("default.d*") == 3
    assert await cache.purge("default.default") == 3
    assert await looked(cache, "", *(key(0, scope) for scope in scopes)) == [MISS, HIT, MISS, HIT]
    assert await cache.purge("") == 6
    assert (await cache.stats()).entries == 0


async def test_purge_of_a_project_or_of_a_namespace_takes_all_that_are_in_it(cache: CacheCore) -> None:
    scopes = ["p.n", "p.other", "p2.n", "q.n2"]
    for purged, left in (("p.*", ["p2.n", "q.n2"]), ("*.n", ["p.other", "q.n2"]), ("*.*", [])):
        await cache.store([CacheEntry(key(0, scope), b"v") for scope in scopes], "a")
        assert await cache.purge(purged) == len(scopes) - len(left)
        statuses = await looked(cache, "", *(key(0, scope) for scope in scopes))
        assert [scope for scope, status in zip(scopes, statuses, strict=True) if status is HIT] == left


async def test_purge_of_a_model_forgets_its_values_only(cache: CacheCore) -> None:
    def entries() -> list[CacheEntry]:
        of = {1: ("default.n", "a/m"), 2: ("default.n", "a/m2"), 3: ("p.n", "a/m"), 4: ("p.n", "")}
        return [CacheEntry(key(n, scope), b"%d" % n, model=model) for n, (scope, model) in of.items()]

    async def kept() -> list[int]:
        keys = [entry.key for entry in entries()]
        return [n for n, status in enumerate(await looked(cache, "", *keys), 1) if status is HIT]

    await cache.store(entries(), "a")
    assert await kept() == [1, 2, 3, 4]
    assert await cache.purge("p.n", "a/other") == 0
    assert await kept() == [1, 2, 3]  # whose model is not known may be of any
    await cache.purge("p.*", "a/m")
    assert await kept() == [1, 2]
    await cache.store(entries(), "a")
    assert await kept() == [1, 2, 3, 4]
    await cache.purge("", "a/m")
    assert await kept() == [2]
    await cache.store(entries(), "a")
    await cache.purge("")
    assert await kept() == []
    await cache.store(entries(), "a")
    assert await kept() == [1, 2, 3, 4]


async def test_purged_value_is_asked_by_one_and_replaced(cache: CacheCore) -> None:
    await cache.store([CacheEntry(key(), b"old", model="a/m")], "a")
    await cache.purge("*.*", "a/m")
    assert await looked(cache, "a", key()) == [LEAD]
    assert await looked(cache, "b", key()) == [BUSY]
    await cache.store([CacheEntry(key(), b"new", model="a/m")], "a")
    [found] = await cache.lookup([Lookup(key())], "b")
    assert found.value == b"new"


async def test_purge_holds_at_once_for_every_process(open_store: OpenStore) -> None:
    one, two = CacheCore(await open_store()), CacheCore(await open_store())
    await one.store([CacheEntry(key(n), b"v", model="a/m") for n in range(2)], "a")
    assert await looked(two, "", key(0)) == [HIT]
    await one.purge("", "a/m")
    assert await looked(two, "", key(0), key(1)) == [MISS, MISS]
    await two.store([CacheEntry(key(0), b"v", model="a/m")], "b")
    assert await looked(one, "", key(0), key(1)) == [HIT, MISS]


async def test_values_of_a_process_that_only_writes_are_found_after_a_purge_of_another(open_store: OpenStore) -> None:
    one, two = CacheCore(await open_store()), CacheCore(await open_store())
    await one.store([CacheEntry(key(0), b"v", model="a/m")], "a")
    await two.purge("", "a/m")
    for _ in range(2):  # the first tells it of the purge
        await one.store([CacheEntry(key(1), b"v", model="a/m")], "a")
    assert await looked(two, "", key(1)) == [HIT]


async def test_purge_leaves_leases(cache: CacheCore) -> None:
    await looked(cache, "a", key())
    assert await cache.purge("") == 0
    assert await looked(cache, "b", key()) == [BUSY]


async def test_stats_count_entries_hits_and_misses(cache: CacheCore, store: Store) -> None:
    await looked(cache, "a", key(1), key(2))
    await looked(cache, "b", key(1))
    await looked(cache, "", key(1))
    await cache.store([CacheEntry(key(1), b"v"), CacheEntry(key(2), b"value")], "a")
    await looked(cache, "b", key(1), key(2))
    stats = await cache.stats()
    assert (stats.backend, stats.entries, stats.hits, stats.misses, stats.busy) == (store.backend, 2, 2, 3, 1)
    assert (stats.stored, stats.stored_bytes, stats.errors, stats.breaker) == (2, 6, 0, "closed")
    assert stats.bytes


async def test_stats_say_what_hits_saved_and_of_how_many_the_price_is_unknown(cache: CacheCore) -> None:
    worths = [Worth(10, 5, 200, 1_000), Worth(1, 1, 50, 0), Worth(100, 50, 2_000)]
    await cache.store([CacheEntry(key(n), b"v", worth=worth) for n, worth in enumerate(worths)], "a")
    assert (await cache.stats()).saved == Worth(cost_nanousd=0)
    await looked(cache, "", key(0), key(0), key(1), key(2), key(3))
    stats = await cache.stats()
    assert (stats.saved, stats.saved_unpriced) == (Worth(121, 61, 2_450, 2_000), 1)


async def test_stats_outlive_processes_and_are_those_of_all(open_store: OpenStore, clock: ManualClock) -> None:
    began = clock.now().timestamp()
    for _ in range(2):
        cache = CacheCore(await open_store(), clock=clock)
        async with cache.counts.told():
            await cache.store([CacheEntry(key(), b"v", worth=Worth(10, 5, 200, 7))], "a")
            await looked(cache, "", key(), key(1))
        clock.advance(100)
    stats = await CacheCore(await open_store(), clock=clock).stats()
    assert (stats.hits, stats.misses, stats.stored, stats.saved) == (2, 2, 2, Worth(20, 10, 400, 14))
    assert stats.counted_since == int(began)


async def test_unreadable_values_are_counted(cache: CacheCore, store: Store) -> None:
    await store.store([(key(1), b"garbage"), (key(2), b"")], "")
    await looked(cache, "", key(1), key(2))
    assert (await cache.stats()).unreadable == 2


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nonsense",
        "default:" + "0" * 64,
        "a.b:" + "0" * 63,
        "a.b:" + "G" * 64,
        "a .b:" + "0" * 64,
        "a.b:c:" + "0" * 64,
    ],
)
async def test_key_of_another_form_is_refused(cache: CacheCore, bad: str) -> None:
    with pytest.raises(InvalidArgument, match="64 hex digits"):
        await cache.lookup([Lookup(bad)], "a")
    with pytest.raises(InvalidArgument, match="64 hex digits"):
        await cache.store([CacheEntry(bad, b"v")], "a")
    with pytest.raises(InvalidArgument):
        await cache.renew([bad], "a")
    with pytest.raises(InvalidArgument):
        await cache.release([bad], "a")


@pytest.mark.parametrize("bad", ["nonsense", "a.b:", "a b.c"])
async def test_scope_of_another_form_is_refused(cache: CacheCore, bad: str) -> None:
    with pytest.raises(InvalidArgument, match="is not <project>"):
        await cache.purge(bad)


async def test_of_200_claimants_at_once_exactly_one_leads(open_store: OpenStore) -> None:
    caches = [CacheCore(await open_store()) for _ in range(4)]
    statuses = await asyncio.gather(*(looked(caches[n % 4], f"claimant-{n}", key()) for n in range(200)))
    assert sorted(status.value for [status] in statuses) == ["busy"] * 199 + ["lead"]


async def test_stores_of_two_processes_share_values_and_leases(open_store: OpenStore) -> None:
    one, two = CacheCore(await open_store()), CacheCore(await open_store())
    assert await looked(one, "a", key()) == [LEAD]
    assert await looked(two, "b", key()) == [BUSY]
    await one.store([CacheEntry(key(), b"v")], "a")
    assert await looked(two, "b", key()) == [HIT]


async def test_cancelled_callers_leave_the_cache_usable(cache: CacheCore) -> None:
    await cache.store([CacheEntry(key(n), b"%d" % n) for n in range(50)], "a")
    tasks = [asyncio.create_task(cache.lookup([Lookup(key(n))], "a")) for n in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    for n, outcome in enumerate(done):
        if not isinstance(outcome, BaseException):
            assert outcome[0].value == b"%d" % n
    assert [found.value for found in await cache.lookup([Lookup(key(7))], "a")] == [b"7"]
