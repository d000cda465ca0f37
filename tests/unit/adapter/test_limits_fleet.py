"""Three Adapters against one provider's limits, in simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest
from limits_lab import LANE, LimitedProvider, Replica, SimulatedRedis

from promptlooper.adapter.limits.lanes import Lanes
from promptlooper.adapter.limits.ledger import LEASE, Rules
from promptlooper.adapter.limits.limiter import Held, Lane, Permit
from promptlooper.adapter.retrying import LONGEST_SLEEP
from promptlooper.completion import CompletionRequest, Message
from promptlooper.testing.simulation import SimulatedClock, SimulatedLoop

CONFIGURED = Rules(max_concurrency=60, requests_per_minute=600)
FOUND_OUT = Rules()


class World:
    def __init__(self, rules: Rules, *, callers: int = 20, **provider: Any) -> None:
        self.loop = SimulatedLoop()
        self.provider = LimitedProvider(self.loop, **provider)
        self.redis = SimulatedRedis(self.loop)
        self.replicas = [Replica(self.loop, self.provider, self.redis, f"r{n}", rules) for n in range(3)]
        for replica in self.replicas:
            replica.callers(callers)

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        self.loop.run(main)
        assert not self.loop.faults

    def run_until(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))


def test_three_adapters_use_the_minute_up_and_are_not_refused() -> None:
    world = World(CONFIGURED)
    world.run_until(180)
    assert world.provider.rate(60, 180) == pytest.approx(600, rel=0.05)
    assert world.provider.refusals(0, 180) < 0.02
    assert min(sum(replica.answered.values()) for replica in world.replicas) > 150


def test_three_adapters_use_all_places_and_no_more() -> None:
    world = World(CONFIGURED, callers=40, seconds=10.0)
    world.run_until(120)
    assert world.provider.most_open == 60
    assert world.provider.rate(20, 120) > 0.95 * 360
    assert not world.provider.refused


def test_nothing_exceeds_the_limit_while_redis_is_away_and_when_it_is_back() -> None:
    world = World(CONFIGURED)

    async def outage() -> None:
        await asyncio.sleep(70)
        world.redis.up = False
        await asyncio.sleep(70)
        world.redis.up = True
        await asyncio.sleep(70)

    world.run(outage())
    assert not world.provider.refused
    assert world.provider.rate(80, 140) > 0.9 * 600
    assert world.provider.rate(150, 210) > 0.9 * 600


def test_redis_that_forgot_everything_is_told_again() -> None:
    world = World(CONFIGURED)

    async def emptied() -> None:
        for _ in range(3):
            await asyncio.sleep(30)
            world.redis.values.clear()
        await asyncio.sleep(30)

    world.run(emptied())
    assert not world.provider.refused
    assert world.provider.rate(60, 120) > 0.95 * 600


def test_places_of_a_killed_adapter_come_back_with_its_lease() -> None:
    world = World(CONFIGURED, callers=40, seconds=10.0)
    dead, *living = world.replicas

    async def killed() -> None:
        await asyncio.sleep(60)
        dead.kill()
        await asyncio.sleep(LEASE / 2)
        assert sum(replica.share.holds for replica in living) + dead.share.holds <= 60
        await asyncio.sleep(LEASE / 2 + 1.0)
        assert sum(replica.share.holds for replica in living) == 60
        await asyncio.sleep(30)

    world.run(killed())
    assert world.provider.rate(70, 95) > 0.95 * 360
    assert not world.provider.refused


def test_concurrency_that_nobody_configured_is_found_out() -> None:
    world = World(FOUND_OUT, callers=40, per_minute=100_000, seconds=5.0)
    world.run_until(300)
    assert world.provider.refusals(60, 300) < 0.02
    assert world.provider.rate(60, 300) > 0.85 * 60 / 5 * 60
    limits = {replica.share.control.limit for replica in world.replicas}
    assert len(limits) == 1  # one episode shrinks it for all
    assert 35 < limits.pop() < 75


def test_requests_per_minute_that_nobody_configured_are_learned_from_headers() -> None:
    world = World(FOUND_OUT, headers=True)
    world.run_until(240)
    assert world.provider.refusals(60, 240) < 0.02
    assert world.provider.rate(60, 240) > 0.9 * 600


@pytest.mark.parametrize(("seconds", "callers"), [(1.0, 40), (5.0, 20)])
def test_of_a_minute_that_nobody_tells_little_is_refused(seconds: float, callers: int) -> None:
    world = World(FOUND_OUT, callers=callers, seconds=seconds)
    world.run_until(300)
    assert world.provider.refusals(60, 300) < 0.02
    assert world.provider.rate(60, 300) > 0.9 * 600


def test_who_waits_for_one_answer_stays_and_runs_of_an_experiment_give_their_place_away() -> None:
    loop = SimulatedLoop()
    provider, redis = LimitedProvider(loop, seconds=30.0), SimulatedRedis(loop)
    replica = Replica(loop, provider, redis, "r", Rules(max_concurrency=1))

    async def queue() -> None:
        await asyncio.gather(replica.ask("e"), *(replica.ask("") for _ in range(3)))

    loop.run(queue())
    assert replica.answered == {"": 3}
    assert replica.held == 1


def test_who_is_cancelled_as_its_wait_ends_is_gone_and_asks_nobody_else() -> None:
    loop = SimulatedLoop()
    replica = Replica(loop, LimitedProvider(loop), SimulatedRedis(loop), "r", Rules(max_concurrency=1))
    request = CompletionRequest("fake/m", (Message("user", "hi"),), {}, experiment_id="e")

    async def leaving() -> asyncio.Task[Permit]:
        held = await replica.lanes.permit(LANE, request)
        waits = asyncio.create_task(replica.lanes.permit(LANE, request))
        await asyncio.sleep(0)
        loop.call_later(LONGEST_SLEEP, loop.call_soon, waits.cancel)  # after it is sent away, before it knows
        await asyncio.wait([waits])
        held.release()
        return waits

    assert loop.run(leaving()).cancelled()
    assert replica.lanes.queue(LANE).is_idle


def test_experiments_are_served_in_turn_and_who_waits_comes_first() -> None:
    loop = SimulatedLoop()
    provider, redis = LimitedProvider(loop), SimulatedRedis(loop)
    replica = Replica(loop, provider, redis, "r", CONFIGURED)

    async def crowd() -> None:
        replica.callers(100, "large")
        await asyncio.sleep(65)  # the first burst is over: all wait
        before = replica.answered.copy()
        replica.callers(20, "small")
        await asyncio.sleep(10)
        started = loop.time()
        await replica.ask("")
        assert loop.time() - started < 3.0  # an answer takes up to 1.5 s
        await asyncio.sleep(20)
        large, small = (replica.answered[name] - before[name] for name in ("large", "small"))
        assert small == pytest.approx(large, rel=0.2)

    loop.run(crowd())
    assert replica.held
    assert replica.lanes.states()[LANE].waits_for == "rate"


def test_limits_of_models_that_are_in_use_are_not_forgotten_for_names_that_nobody_has() -> None:
    loop = SimulatedLoop()
    lanes = Lanes(lambda _: Rules(requests_per_minute=1), SimulatedClock(loop))
    request = CompletionRequest("fake/m", (Message("user", "hi"),), {}, experiment_id="e")

    async def flood() -> None:
        for n in range(2000):
            (await lanes.permit(Lane("fake", str(n)), request)).release()
            if n % 100 == 0:
                with suppress(Held):
                    (await lanes.permit(LANE, request)).release()
        assert len(lanes.states()) <= 1000
        assert lanes.states()[LANE].waits_for == "rate"

    loop.run(flood())
    assert lanes.held["fake", "rate"] == 19
