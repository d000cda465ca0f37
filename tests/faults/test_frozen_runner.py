"""B3: a Runner that is frozen for longer than its lease and wakes up changes nothing, and says so."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from fault_checks import (
    Watched,
    calls_of,
    check,
    event_problems,
    known_commits,
    result_problems,
    row_problems,
    told,
    total_problems,
    undisturbed,
    watch_problems,
)
from fault_lab import Cluster, Death, answering, cluster
from fault_specs import three_stages

from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider

RUNS, FREEZES = 600, 4
# By the guard; or by the database, where it was frozen in the transaction. It stops a moment after it was told to: what
# it commits in that moment it still holds, and only its next turn is refused.
REFUSALS = ("outcomes refused, the runs belong to another", "due to idle-in-transaction timeout")
pytestmark = pytest.mark.timeout(600)


async def freeze_past_its_lease(lab: Cluster, watched: Watched, chance: random.Random) -> None:
    """Freezes the first Runner at a random point of its work until the second has taken its runs."""
    asleep, awake = lab.runners

    def asked() -> int:
        return sum(call.asker == asleep.name for call in lab.provider.history)

    until = asked() + chance.randrange(5, 40)
    await eventually(lambda: asked() >= until or watched.terminal, within=60)
    assert watched.terminal is None, "the experiment ended before the last freeze"
    taken, lost = len(awake.said("back from dead runners")), len(asleep.said("lost its lease"))
    death = Death(asleep.name, time.monotonic(), float("inf"))
    lab.deaths.append(death)
    asleep.stop()
    try:
        await eventually(lambda: len(awake.said("back from dead runners")) > taken, within=60)
    finally:
        asleep.cont()
    await eventually(lambda: len(asleep.said("lost its lease")) > lost, within=60)
    death.until = time.monotonic()


async def stop_where_it_stores(lab: Cluster, failpoint: str, hit: int) -> None:
    """The same where it hurts most: with answers at hand and about to store them, which it tries at once on waking and
    is told that it can't."""
    asleep, awake = lab.runners
    taken, lost = len(awake.said("back from dead runners")), len(asleep.said("lost its lease"))
    await eventually(lambda: asleep.said(f"failpoint {failpoint}: stop at hit {hit}"), within=60)
    death = Death(asleep.name, time.monotonic(), float("inf"))
    lab.deaths.append(death)
    try:
        await eventually(lambda: len(awake.said("back from dead runners")) > taken, within=60)
    finally:
        asleep.cont()
    await eventually(lambda: any(map(asleep.said, REFUSALS)), within=60)
    await eventually(lambda: len(asleep.said("lost its lease")) > lost, within=60)
    death.until = time.monotonic()


@pytest.mark.parametrize("failpoint", ["checkpoint_before", "checkpoint_before_commit"])
async def test_a_runner_that_wakes_after_its_lease_has_run_out_changes_nothing(seed: int, failpoint: str) -> None:
    """Frozen before the transaction, and within it, with the experiment's lock."""
    chance = random.Random(seed)
    async with FakeProvider(answering(seed, 0.05, 0.5)) as provider, cluster(provider, runners=2) as lab:
        asleep, awake = lab.runners
        async with lab.client(awake) as client:
            quiet = await undisturbed(client, three_stages(RUNS))
            provider.history.clear()
            hit = chance.randrange(10, 20)
            asleep.kill()
            asleep.start(PROMPTLOOPER_FAILPOINTS=f"{failpoint}=stop@{hit}")
            await asleep.ready()
            created = await client.create(three_stages(RUNS), "frozen")
            watched = Watched()
            following = asyncio.create_task(watched.follow(client.watch(created.experiment_id)))
            await stop_where_it_stores(lab, failpoint, hit)
            for _ in range(FREEZES - 1):
                await freeze_past_its_lease(lab, watched, chance)
            await following
            known = await told(client, created.experiment_id)
        calls = calls_of(provider.history, lab.deaths, known.runs, known_commits(watched, known.events))
        check(
            watch_problems(watched, known.events),
            event_problems(known.events),
            row_problems(known),
            result_problems(known.runs, quiet.runs),
            total_problems(known.experiment, quiet.experiment),
            calls.problems,
        )
        refused = asleep.said("outcomes refused")
        print(
            f"{FREEZES} times frozen for longer than the lease: {len(asleep.said('lost its lease'))} times it said that"
            f" its lease was lost, {len(refused)} turns had outcomes refused; {calls.repeated} calls repeated of"
            f" {calls.bound} that were open"
        )
